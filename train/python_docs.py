"""English that every CPython carries: help topics, and the standard library's docstrings and comments.

It makes a small language model's training text out of nothing but the Python that runs: no network, no
licence to accept. The sources are parsed, never imported, so that collecting them has no side effects and
gives the same text on every machine with the same Python.
"""

import ast
import contextlib
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from autograd.errors import InputError

SPLIT_RULE = "of every 20 documents (help topics, modules) the 10th is valid, the 20th test"

_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
_FEWEST_WORDS = 50_000

# reStructuredText that is no English: :role:`target <...>`, **strong**, *emphasis*, list bullets.
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]*)[^`]*`")
_EMPHASIS = re.compile(r"(\*{1,2})(\w[^*\n]*)\1")
_BULLET = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n|\n(?=\s*[-*+] )")
_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")

# Code, tables and signatures share words with prose, but hardly these.
_FUNCTION_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "been", "by", "can", "for", "from", "has", "have", "if",
    "in", "is", "it", "its", "may", "must", "no", "not", "of", "on", "or", "that", "the", "then", "this",
    "to", "was", "when", "which", "will", "with", "you",
}  # fmt: skip


def version() -> str:
    """The Python whose English `collect` returns."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def collect() -> dict[str, str]:
    """Train, valid and test text: one paragraph a line, words and punctuation apart, no paragraph twice.

    Raises:
        InputError: this Python came without the sources of its standard library.
    """
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    seen: set[str] = set()
    for number, document in enumerate(_documents(), start=1):
        split = {10: "valid", 0: "test"}.get(number % 20, "train")
        for line in _prose(document):
            if line not in seen:  # boilerplate, and modules that exist twice, would leak from train into test
                seen.add(line)
                lines[split].append(line)
    num_words = sum(line.count(" ") + 1 for line in seen)
    if num_words < _FEWEST_WORDS or not all(lines.values()):
        raise InputError(
            f"python-docs: expected {_FEWEST_WORDS} words of English in {sysconfig.get_path('stdlib')}, got "
            f"{num_words}: this Python lacks its library's sources; give a text file or folder instead"
        )
    return {split: "\n".join(kept) + "\n" for split, kept in lines.items()}


def _documents() -> Iterator[list[str]]:
    """Each help topic, then each module of the library, as a list of runs of text; in a fixed order."""
    with contextlib.suppress(ImportError):  # some distributions leave it out
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield [topics[name]]
    for path in _modules(Path(sysconfig.get_path("stdlib"))):
        yield _texts_of_module(path)


def _modules(root: Path) -> Iterator[Path]:
    """The source files of the standard library, without tests and without what was installed beside it."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)
        for name in sorted(files):
            path = Path(folder, name)
            top = path.relative_to(root).parts[0].removesuffix(".py")
            if path.suffix == ".py" and top in sys.stdlib_module_names:
                yield path


def _texts_of_module(path: Path) -> list[str]:
    """The docstrings of a module's source, then its comments; nothing when it cannot be parsed."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences in somebody else's code
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return []
    return [ast.get_docstring(node) or "" for node in _documented(tree)] + _comments(source)


def _documented(
    node: ast.AST,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """`node` and every class and function in it, in their order; looks at statements alone."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for field in ("body", "handlers", "orelse", "finalbody"):
        for statement in getattr(node, field, []):
            yield from _documented(statement)


def _comments(source: str) -> list[str]:
    """Runs of lines that hold nothing but a comment."""
    runs: list[list[str]] = [[]]
    for line in source.splitlines():
        line = line.strip()
        if line.startswith("#"):
            runs[-1].append(line.strip("#!: "))
        elif runs[-1]:
            runs.append([])
    return ["\n".join(run) for run in runs]


def _prose(texts: list[str]) -> Iterator[str]:
    """The paragraphs that are English sentences, each as one line of words and punctuation between spaces."""
    for text in texts:
        plain = _EMPHASIS.sub(r"\2", _ROLE.sub(r"\1", text)).replace("`", "").replace("\u2019", "'")
        for paragraph in _PARAGRAPH_BREAK.split(plain):
            tokens = _TOKEN.findall(_BULLET.sub("", paragraph))
            if ">>>" not in paragraph and _is_prose(tokens):
                yield " ".join(tokens)


def _is_prose(tokens: list[str]) -> bool:
    """Five tokens or more, three fifths of them words, an eighth of the words function words."""
    words = [token for token in tokens if token.isalpha()]
    if len(tokens) < 5 or len(words) < max(3, 0.6 * len(tokens)):
        return False
    function_words = sum(word.lower() in _FUNCTION_WORDS for word in words)
    return function_words > 0 and 8 * function_words >= len(words)
