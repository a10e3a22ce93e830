"""The documents hold what they promise: equations stand in the code, examples run, links lead somewhere."""

import ast
import doctest
import importlib
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

from train.log import duration

ROOT = Path(__file__).resolve().parent.parent
DERIVATION = ROOT / "docs" / "lstm_backward.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CUDA_SOURCES = sorted(ROOT.glob("*/cuda/*.cu*"))
SOURCES = sorted(path for package in ("autograd", "minilstm") for path in (ROOT / package).rglob("*.py"))
SOURCES += [ROOT / "train" / "step.py", ROOT / "train" / "mixed_precision.py"]

REFERENCE = re.compile(r"(?<!\w)\((\d{1,2})\)(?: to \((\d{1,2})\))?")
TAG = re.compile(r"\\tag\{(\d+)\}")
TABLE_ROW = re.compile(r"^\| (\(\d.*?) \| \[([\w/.]+\.(?:py|cu))\]", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def references(text):
    """The equation numbers named in a text: (7), and all of (20) to (25)."""
    pairs = [(int(first), int(last or first)) for first, last in REFERENCE.findall(text)]
    return {number for first, last in pairs for number in range(first, last + 1)}


def without_fences(document):
    return FENCE.sub("", document)


def numbers_by_file(document):
    """What the table at the derivation's head says: file -> the equations computed in it."""
    return {file: references(equations) for equations, file in TABLE_ROW.findall(document)}


def comments(source):
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


def docstrings(source):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def faults_of_document(document):
    """What does not fit within the derivation itself, a line each."""
    tags = [int(tag) for tag in TAG.findall(document)]
    placed = set().union(*numbers_by_file(document).values())
    if tags != sorted(set(tags)):
        yield f"equations must be numbered upwards, each once; got {tags}"
    yield from (f"({number}) is in no row of the table" for number in sorted(set(tags) - placed))
    unknown = placed | references(without_fences(document))
    yield from (f"({number}) is named but never derived" for number in sorted(unknown - set(tags)))


def references_in(file, text):
    """Those of a source file; in train/ numbers of one digit are steps of mixed precision, no equations."""
    found = references(text)
    return {number for number in found if number > 9} if file.startswith("train/") else found


def faults_of_source(file, source, document):
    """What does not fit between a source file and the derivation, a line each."""
    expected = numbers_by_file(document).get(file, set())
    is_python = file.endswith(".py")
    in_comments = references_in(
        file, comments(source) if is_python else "\n".join(re.findall("//.*", source))
    )
    yield from (f"no comment in {file} names ({number})" for number in sorted(expected - in_comments))
    unknown = (in_comments | references_in(file, docstrings(source) if is_python else "")) - expected
    yield from (f"{file} names ({number}), but the table does not" for number in sorted(unknown))


def test_the_equations_are_numbered_and_placed():
    document = DERIVATION.read_text(encoding="utf-8")
    assert list(faults_of_document(document)) == []
    assert [file for file in numbers_by_file(document) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("path", SOURCES + CUDA_SOURCES, ids=relative)
def test_equations_and_code_are_partners(path):
    document = DERIVATION.read_text(encoding="utf-8")
    assert list(faults_of_source(relative(path), path.read_text(encoding="utf-8"), document)) == []


TINY = "| (1), (2) | [m/a.py](../m/a.py) |\n\nBy (1)\n```math\nx \\tag{1}\ny \\tag{2}\n```\n"


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (TINY.replace("\\tag{2}", "\\tag{3}"), "(3) is in no row"),
        (TINY.replace("\\tag{2}", ""), "(2) is named but never derived"),
        (TINY.replace("By (1)", "By (7)"), "(7) is named but never derived"),
        (TINY.replace("\\tag{2}", "\\tag{2} \\tag{1}"), "numbered upwards"),
    ],
)
def test_a_fault_of_the_document_is_seen(document, fault):
    assert list(faults_of_document(TINY)) == []
    assert fault in "\n".join(faults_of_document(document))


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = 1  # (1)", "no comment in m/a.py names (2)"),
        ('"""(1) and (2)."""\nx = 1  # (1)', "no comment in m/a.py names (2)"),
        ("x = 1  # (1) to (3)", "m/a.py names (3), but"),
        ('def f():\n    """By (4)."""\n    # (1)\n    # (2)', "m/a.py names (4), but"),
    ],
)
def test_a_missing_partner_is_seen(source, fault):
    assert list(faults_of_source("m/a.py", "x = 1  # (1)\ny = f(3)  # (2), see above", TINY)) == []
    assert list(faults_of_source("m/b.py", "x = f(3)", TINY)) == []
    found = list(faults_of_source("m/a.py", source, TINY))
    assert len(found) == 1
    assert fault in found[0]


def readme_numbers():
    """What the README says of speed and of learning, as it writes it, from the committed results."""
    results = ROOT / "benchmarks" / "results"
    for size in ("small", "wt2", "wt103"):
        result = json.loads((results / f"training_step_{size}.json").read_text())
        ours, torch, megabytes = result["ours"], result["torch"], result["ours"]["peak_rss_mb"]
        yield (
            f"| {ours['seconds']:.3f} s | {torch['seconds']:.3f} s | **{result['speedup']:.2f}×** "
            f"| {result['memory_ratio']:.2f}× ({megabytes:,.0f} MB) | {result['peak_fraction']:.0%} |"
        )
    result = json.loads((results / "quickstart.json").read_text())
    yield f"trained on {result['tokens']:,} tokens in {duration(result['seconds'])}"
    valid, test = result["valid"], result["test"]["perplexity"]
    yield f"valid perplexity {valid['perplexity']:.2f}, test perplexity {test:.2f}"
    yield f"weights of step {valid['step']:,})"
    result = json.loads((results / "wikitext2.json").read_text())
    valid, test = result["valid"], result["test"]
    yield (
        f"Validation perplexity {valid['perplexity']:.2f} over {valid['scored_tokens']:,} tokens, "
        f"test {test['perplexity']:.2f} over {test['scored_tokens']:,}"
    )
    result = json.loads((results / "prepare.json").read_text())
    millions, megabytes = result["tokens_per_second"] / 1e6, result["peak_rss_mb"]
    yield f"{millions:.1f} million tokens a second on one core, in {megabytes:.0f} MB of memory"
    result = json.loads((results / "convergence.json").read_text())
    difference, error = result["difference"], result["standard_error"]
    yield f"The difference of the means is {difference:+.1f}, its standard error {error:.1f}."
    order = json.loads((results / "classification.json").read_text())["tasks"]["order"]["accuracy"]
    ours, pairs = order["pretrained"]["mean"], order["pairs"]["mean"]
    yield f"with {ours:.1%} against {pairs:.1%} of a bag of words and pairs"
    runs = json.loads((results / "ablation_200k_20.json").read_text())["runs"]
    recipe, plain = (
        next(run["best_valid_perplexity"] for run in runs if run["variant"] == variant)
        for variant in ("awd", "plain-dropout")
    )
    yield f"recipe comes to {recipe:.1f} and plain dropout of the same size to {plain:.1f}"


def test_the_numbers_of_the_readme_are_those_of_the_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [numbers for numbers in readme_numbers() if numbers not in readme] == []


def python_blocks(document):
    """(first line, code) of every fenced block of Python."""
    fences = [match for match in FENCE.finditer(document) if match[1] in ("python", "pycon")]
    return [(document.count("\n", 0, match.start()) + 1, match[2]) for match in fences]


def run_blocks(name, document):
    """Run a document's Python from top to bottom in one namespace; returns the number of failed examples."""
    names = {"__name__": name}
    runner = doctest.DocTestRunner(verbose=False)
    for line, code in python_blocks(document):
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, {}, name, name, line)
            test.globs = names
            runner.run(test, clear_globs=False)
        else:
            exec(compile(code, f"{name}, line {line}", "exec"), names)
    return runner.summarize(verbose=False).failed


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_code_in_documents_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(relative(path), path.read_text(encoding="utf-8")) == 0


def test_code_that_is_wrong_fails():
    assert run_blocks("right", "```python\n>>> x = 2\n>>> x\n2\n```\n") == 0
    assert run_blocks("wrong", "```python\n>>> x = 2\n>>> x\n3\n```\n") == 1
    with pytest.raises(ZeroDivisionError):
        run_blocks("plain", "```python\nx = 0\n```\n\n```python\n1 / x\n```\n")


def test_the_worked_example_is_found():
    assert len(python_blocks(DERIVATION.read_text(encoding="utf-8"))) >= 4


def with_examples():
    return [path for path in SOURCES if ">>>" in docstrings(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", with_examples(), ids=relative)
def test_examples_in_docstrings(path):
    name = relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_both_packages_open_with_an_example():
    assert {"autograd/__init__.py", "minilstm/__init__.py"} <= {relative(path) for path in with_examples()}


def dead_links(path, document):
    """Relative links of a document at `path` to files that are not there."""
    targets = [link.split("#")[0] for link in LINK.findall(without_fences(document)) if "://" not in link]
    return [target for target in targets if target and not (path.parent / target).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path):
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_seen():
    links = "[a](test_docs.py) [b](gone.py) [c](#here) [d](https://example.org/gone.py) ![e](gone.png)"
    assert dead_links(Path(__file__), links) == ["gone.py", "gone.png"]
