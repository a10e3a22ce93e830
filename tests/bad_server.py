"""A real web server on this machine that behaves badly in the ways that real ones do."""

import contextlib
import http.server
import threading
from dataclasses import dataclass, field

CONTENT = bytes(range(256)) * 2000  # several blocks


@dataclass
class Behaviour:
    """How the server answers; `ranges` notes what was asked for."""

    content: bytes = CONTENT
    cut_after: int | None = None  # bytes of one answer, then the connection is closed
    announce: int | str | None = None  # Content-Length, if not the true one
    redirect: str | None = None  # answer with status 302 and this as Location
    knows_ranges: bool = True
    shift_ranges: int = 0  # answer with another range than was asked for
    answers: int | None = None  # so many requests are answered, the later ones with status 503
    stall_at: int | None = None  # bytes of one answer, then silence
    ranges: list = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        does = self.server.behaviour
        asked = self.headers.get("Range")
        does.ranges.append(asked)
        if does.answers is not None and len(does.ranges) > does.answers:
            self.send_error(503)
            return
        if does.redirect is not None and self.path == "/file.zip":
            self.send_response(302)
            self.send_header("Location", does.redirect)
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and does.knows_ranges else 0
        if start >= len(does.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(does.content)}")
            self.end_headers()
            return
        body = does.content[start:]
        self.send_response(206 if asked and does.knows_ranges else 200)
        first = start + does.shift_ranges
        self.send_header("Content-Range", f"bytes {first}-{len(does.content) - 1}/{len(does.content)}")
        self.send_header("Content-Length", str(does.announce or len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if does.stall_at is not None:
                self.wfile.write(body[: does.stall_at])
                self.wfile.flush()
                does.released.wait(30)
            else:
                self.wfile.write(body[: does.cut_after])

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def bad_server():
    """The server, running; its `behaviour` can be changed, its `url` names the one file that it has."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.behaviour = Behaviour()
        running.daemon_threads = True
        running.url = f"http://127.0.0.1:{running.server_port}/file.zip"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.behaviour.released.set()
        running.shutdown()
        thread.join()
