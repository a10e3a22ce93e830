"""What the site has beyond docs/*.md: the README as its first page, lessons with what they print, the API.

Links between documents are written as a repository shows them. Here those to a module lead to its page of the
API, those to another file to a page with its contents; a link that leads nowhere ends the build.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import posixpath
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("autograd", "minilstm", "train")
TOP_LEVEL = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FIRST = ["index.md", "Lessons", "lstm_backward.md", "look_inside.md", "results.md"]
LAST = ["Api", "contributing.md", "changes.md"]
TITLES = {"Api": "Every module"}
LANGUAGES = {".json": "json", ".toml": "toml", ".py": "python", ".cff": "yaml"}
MOST_BYTES = 100_000
"""Of a file that is shown as a page."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here, and those of all files that they and docs/*.md link to."""
    pages = {path: (ROOT / source).read_text("utf-8") for source, path in TOP_LEVEL.items()}
    sources = {TOP_LEVEL[source]: source for source in TOP_LEVEL}
    sources |= {file.src_uri: f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")}
    for script in sorted((ROOT / "docs" / "lessons").glob("*.py")):
        path = f"lessons/{script.stem}.md"
        pages[path], sources[path] = lesson_page(script), f"docs/lessons/{script.name}"
    for module in modules():
        pages[f"api/{module}.md"] = f"# {module}\n\n::: {module}\n"
    texts = pages | {
        file.src_uri: Path(str(file.abs_src_path)).read_text("utf-8")
        for file in files
        if file.src_uri.endswith(".md")
    }
    linked = {target for path, text in texts.items() for target in targets(text, sources.get(path, path))}
    for target in sorted(linked):
        if page_of(target) == f"files/{target}.md" and (ROOT / target).exists():
            pages[f"files/{target}.md"] = file_page(ROOT / target)
    for path, text in pages.items():
        content = with_site_links(text, path, sources.get(path, path))
        files.append(File.generated(config, path, content=content))
    config.extra["sources"] = sources
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead the links of docs/*.md to pages of the site; those that are made here lead there already."""
    if page.file.generated_by is not None:
        return markdown
    return with_site_links(markdown, page.file.src_uri, config.extra["sources"][page.file.src_uri])


def on_nav(nav: Navigation, config: Any, files: Files) -> Navigation:
    """Put the bar at the side into the order in which one reads; pages of plain files are left out of it."""
    shown = [item for item in nav.items if item.title != "Files"]
    nav.items = sorted(shown, key=_place)
    for section in (item for item in nav.items if item.title in TITLES):
        section.title = TITLES[section.title]
    pages = [page for item in nav.items for page in (item.children if item.is_section else [item])]
    for page, before, after in zip(pages, [None, *pages], [*pages[1:], None], strict=False):
        page.previous_page, page.next_page = before, after
    return nav


def _place(item: Any) -> int:
    name = item.title if item.is_section else item.file.src_uri
    return FIRST.index(name) if name in FIRST else 100 + LAST.index(name) if name in LAST else 50


def modules() -> list[str]:
    """The names of all modules, packages by their own name."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def targets(text: str, source: str) -> list[str]:
    """The files, relative to the root, that a document at `source` links to."""
    return [resolved(found[2], source) for found in LINK.finditer(FENCED.sub("", text))]


def resolved(link: str, source: str) -> str:
    """A link of a document at `source`, relative to the root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def page_of(target: str) -> str:
    """The page or file of the site that stands for a file of the repository."""
    if target in TOP_LEVEL:
        return TOP_LEVEL[target]
    if target.startswith("docs/"):
        inside = target.removeprefix("docs/")
        return re.sub(r"^(lessons/\w+)\.py$", r"\1.md", inside)
    module = target.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"api/{module}.md" if module in modules() else f"files/{target}.md"


def with_site_links(text: str, path: str, source: str) -> str:
    """The text of a page at `path`, its links, which are those of the document at `source`, led to pages."""

    def led(found: re.Match) -> str:
        page = page_of(resolved(found[2], source))
        relative = posixpath.relpath(page, posixpath.dirname(path) or ".")
        return f"{found[1]}{relative}{found[3] or ''}{found[4]}"

    parts = FENCED.split(text)  # every second one is code
    return "".join(part if index % 2 else LINK.sub(led, part) for index, part in enumerate(parts))


def file_page(path: Path) -> str:
    """A page with the contents of a file, or of all files of a folder."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        parts = [_shown(file, f"## {file.name}") for file in sorted(path.iterdir()) if file.is_file()]
        return "\n".join([f"# {name}", "", *parts])
    return _shown(path, f"# {name}")


def _shown(path: Path, heading: str) -> str:
    text = path.read_text("utf-8")[:MOST_BYTES].rstrip("\n")
    return f"{heading}\n\n````{LANGUAGES.get(path.suffix, '')}\n{text}\n````\n"


def lesson_page(script: Path) -> str:
    """A lesson as a page: each cell of code with what it prints, for it is run here."""
    percent = _load(ROOT / "docs" / "site" / "percent.py")
    names: dict[str, Any] = {"__name__": script.stem}
    parts, ended = [], False
    for cell in percent.read_cells(script.read_text("utf-8")):
        if cell.is_text:
            parts.append(cell.source)
            continue
        printed = ""
        if not ended:
            try:
                printed = _run(cell.source, names, script)
            except SystemExit as exit:  # it needs what is not here
                printed, ended = str(exit), True
        parts.append(f"```python\n{cell.source}\n```")
        if printed:
            parts.append(f"```{{.text .printed}}\n{printed}\n```")
    parts.append(f"As a script: `python docs/lessons/{script.name}`.")
    return "\n\n".join(parts) + "\n"


def _run(code: str, names: dict[str, Any], script: Path) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _importable():
        exec(compile(code, str(script), "exec"), names)
    return printed.getvalue().rstrip("\n")


@contextlib.contextmanager
def _importable():
    """The project's modules can be imported, installed or not."""
    sys.path.insert(0, str(ROOT))
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
