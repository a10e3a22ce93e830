"""Downloads from a server that misbehaves, and archives that cannot be trusted."""

import contextlib
import hashlib
import io
import time
import zipfile
from types import SimpleNamespace

import pytest
from bad_server import CONTENT, Handler, bad_server
from wikitext import names

from autograd.errors import InputError
from train import sources
from train.corpus import open_corpus
from train.download import download, unpack
from train.prepare import ensure_prepared, prepare


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def server():
    with bad_server() as running:
        yield running


@pytest.fixture(autouse=True)
def no_pauses_and_no_proxy(monkeypatch):
    monkeypatch.setattr("train.download._PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server, tmp_path, **options):
    return download([server.url], tmp_path / "file.zip", md5=md5(CONTENT), timeout=5, **options)


def test_a_whole_file(server, tmp_path, capsys):
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["file.zip"]
    assert server.behaviour.ranges == [None]
    assert "file.zip: 512k" in capsys.readouterr().err


def test_a_cut_connection_is_resumed_where_it_broke_off(server, tmp_path):
    server.behaviour.cut_after = 200_000
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.behaviour.ranges == [None, "bytes=200000-", "bytes=400000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:300_000])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.behaviour.ranges == ["bytes=300000-"]


def test_a_part_that_was_complete_is_taken(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_fetched_anew(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.behaviour.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.behaviour.knows_ranges = False
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_another_range_than_was_asked_for_is_refused(server, tmp_path):
    server.behaviour.shift_ranges = 1
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    with pytest.raises(InputError, match="sent another range"):
        fetch(server, tmp_path)


def test_a_wrong_md5_leaves_nothing(server, tmp_path):
    server.behaviour.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"expected md5 {md5(CONTENT)}, got") as raised:
        fetch(server, tmp_path)
    assert names(tmp_path) == []
    assert "by hand" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/hostname", "/file.zip", "http://[", "http://127.0.0.1:1/x", "data:,abc"],
)
def test_a_redirection_to_anything_but_a_web_page_is_not_followed(server, tmp_path, location):
    """Nor is one that leads to itself."""
    server.behaviour.redirect = location
    with pytest.raises(InputError, match="no mirror could give it"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_where_a_redirection_leads_the_checksum_decides(server, tmp_path):
    server.behaviour.redirect = server.url.replace("file.zip", "other.zip")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.behaviour.content = b"something else"
    (tmp_path / "file.zip").unlink()
    with pytest.raises(InputError, match="expected md5"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("length", ["many", "9" * 5000, "-1"])
def test_a_length_that_is_none_is_one_line(server, tmp_path, length):
    server.behaviour.announce = length
    server.behaviour.content = b"something else"
    with pytest.raises(InputError, match="no mirror could give it"):
        fetch(server, tmp_path)


def test_the_next_mirror_is_tried(server, tmp_path):
    nobody = "http://127.0.0.1:1/file.zip"
    path = download([nobody, server.url], tmp_path / "file.zip", md5=md5(CONTENT), timeout=5)
    assert path.read_bytes() == CONTENT
    with pytest.raises(InputError, match="refused.*; http://127.0.0.1:1/other: .*refused.*by hand"):
        download([nobody, "http://127.0.0.1:1/other"], tmp_path / "other.zip", md5=md5(CONTENT), timeout=5)


def test_a_status_that_says_no_is_not_asked_again(server, tmp_path):
    class Forbidden(Handler):
        def do_GET(self):
            self.server.behaviour.ranges.append(None)
            self.send_error(403)

    server.RequestHandlerClass = Forbidden
    with pytest.raises(InputError, match="HTTP status 403"):
        fetch(server, tmp_path)
    assert server.behaviour.ranges == [None]


@pytest.mark.parametrize(
    ("knows_ranges", "message"), [(True, "expected md5"), (False, "cut after 511950 of 512100 bytes")]
)
def test_a_server_that_announces_more_than_it_sends_is_given_up(server, tmp_path, knows_ranges, message):
    server.behaviour.announce = len(CONTENT) + 100
    server.behaviour.knows_ranges = knows_ranges
    server.behaviour.content = CONTENT[:-50]
    with pytest.raises(InputError, match=message):
        fetch(server, tmp_path)
    assert len(server.behaviour.ranges) <= 5


def test_a_server_that_announces_less_than_there_is_fails_the_check(server, tmp_path):
    server.behaviour.announce = len(CONTENT) - 7
    with pytest.raises(InputError, match="expected md5"):
        fetch(server, tmp_path)


def test_an_absurd_size_is_refused_before_it_is_fetched(server, tmp_path):
    with pytest.raises(InputError, match="announces 512000 bytes, more than the 1000 expected"):
        fetch(server, tmp_path, max_bytes=1000)
    assert names(tmp_path) == []


def test_a_server_that_names_no_length_cannot_send_without_end(server, tmp_path):
    class Endless(Handler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while True:
                    self.wfile.write(CONTENT)

    server.RequestHandlerClass = Endless
    with pytest.raises(InputError, match="goes on beyond the 600000 bytes"):
        fetch(server, tmp_path, max_bytes=600_000)
    assert not (tmp_path / "file.zip").exists()


def test_a_silent_server_times_out(server, tmp_path):
    server.behaviour.stall_at = 0
    start = time.monotonic()
    with pytest.raises(InputError, match="timed out"):
        download([server.url], tmp_path / "file.zip", md5=md5(CONTENT), timeout=0.1)
    assert time.monotonic() - start < 5
    assert len(server.behaviour.ranges) == 3


# Unpacking.


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


MEMBERS = {"wt/wiki.train.tokens": "wiki.train.tokens"}


def test_only_expected_members_are_written(tmp_path):
    archive = write_zip(
        tmp_path / "a.zip", {"wt/wiki.train.tokens": "text", "wt/setup.py": "other", "readme": "x"}
    )
    unpack(archive, MEMBERS, tmp_path / "out")
    assert names(tmp_path / "out") == ["wiki.train.tokens"]
    assert (tmp_path / "out" / "wiki.train.tokens").read_text() == "text"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "wt/../../evil", "..\\evil", "C:evil"])
def test_an_archive_with_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    archive = write_zip(tmp_path / "a.zip", {"wt/wiki.train.tokens": "text", name: "evil"})
    with pytest.raises(InputError, match="would leave the folder"):
        unpack(archive, MEMBERS, tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


def test_a_missing_member_is_named(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"readme": "x"})
    with pytest.raises(InputError, match=r"expected the member wt/wiki\.train\.tokens, got readme"):
        unpack(archive, MEMBERS, tmp_path / "out")


def test_an_absurd_member_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"wt/wiki.train.tokens": "0" * 100_000})
    with pytest.raises(InputError, match="to be 1000 bytes at most, it declares 100000"):
        unpack(archive, MEMBERS, tmp_path / "out", max_bytes=1000)
    assert names(tmp_path) == ["a.zip"]


def test_a_member_that_is_longer_than_it_declares_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"wt/wiki.train.tokens": "0" * 100_000})
    size = (100_000).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(InputError, match="sound zip file"):
        unpack(archive, MEMBERS, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_what_is_no_zip_file_and_a_damaged_one_are_refused(tmp_path):
    page, damaged = tmp_path / "page.zip", tmp_path / "damaged.zip"
    page.write_text("<html>not found</html>")
    write_zip(damaged, {"wt/wiki.train.tokens": "".join(map(str, range(9999)))})
    content = bytearray(damaged.read_bytes())
    content[200:220] = bytes(20)
    damaged.write_bytes(content)
    for archive in (page, damaged):
        with pytest.raises(InputError, match="expected a sound zip file"):
            unpack(archive, MEMBERS, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3))
    archive = write_zip(tmp_path / "a.zip", {"wt/wiki.train.tokens": "text"})
    with pytest.raises(InputError, match="free disk"):
        unpack(archive, MEMBERS, tmp_path / "out")


# From the name to the tokens.


@pytest.fixture
def wikitext_server(server, monkeypatch):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        for split in ("train", "valid", "test"):
            zipped.writestr(f"wikitext-2/wiki.{split}.tokens", f"text of {split} \n")
    server.behaviour.content = stream.getvalue()
    archive = sources.Archive((server.url,), md5(stream.getvalue()), 1 << 20)
    monkeypatch.setitem(sources.ARCHIVES, "wikitext-2", archive)
    return server


def test_a_name_is_fetched_unpacked_and_prepared_once(wikitext_server, tmp_path):
    wikitext_server.behaviour.cut_after = 100
    path = ensure_prepared("wikitext-2", tmp_path / "data")
    with open_corpus(path) as corpus:
        assert corpus.vocabulary.words == ["text", "of", "train", "<eos>", "<unk>"]
    requests = len(wikitext_server.behaviour.ranges)
    assert requests > 1
    assert names(tmp_path / "data") == ["wikitext-2", "wikitext-2.h5"]
    path.unlink()
    assert ensure_prepared("wikitext-2", tmp_path / "data") == path
    assert len(wikitext_server.behaviour.ranges) == requests


def test_without_network_it_is_one_line_and_nothing_written(wikitext_server, tmp_path, monkeypatch):
    archive = sources.Archive(("http://127.0.0.1:1/wikitext-2-v1.zip",), "0", 1 << 20)
    monkeypatch.setitem(sources.ARCHIVES, "wikitext-2", archive)
    with pytest.raises(InputError, match=r"by hand \(md5 0\), unzip it, and give the unzipped folder"):
        prepare("wikitext-2", data_dir=tmp_path / "data")
    assert names(tmp_path) == []


def test_what_came_before_the_server_went_down_is_kept_and_taken_up(wikitext_server, tmp_path):
    wikitext_server.behaviour.cut_after = 100
    wikitext_server.behaviour.answers = 2
    with pytest.raises(InputError, match="HTTP status 503"):
        prepare("wikitext-2", data_dir=tmp_path / "data")
    assert names(tmp_path / "data") == ["wikitext-2-v1.zip.part"]
    wikitext_server.behaviour.answers = None
    prepare("wikitext-2", data_dir=tmp_path / "data")
    assert wikitext_server.behaviour.ranges[:3] == [None, "bytes=100-", "bytes=200-"]
    assert names(tmp_path / "data") == ["wikitext-2", "wikitext-2.h5"]
