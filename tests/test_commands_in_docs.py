"""Every command that the documents show: it runs as it stands, or it is marked as long and its flags exist.

A block of commands is indented by four spaces, or fenced as `sh`. The comment `<!-- long -->` before it says
that its commands take more than seconds, or a download; `LONG` lists them, so that none slips in unseen. What
the others name (RUN, DATA, …) is there: a tiny run, made once. Without a mark, `NEVER_RUN` are left out: what
changes this Python or calls the tests again, benchmarks, what needs a GPU.
"""

import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
from tiny import train_tiny, write_text

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMED = re.compile(r"(?<![\w/.-])(data/)?(OTHER|RUN|runs/wt2(?:-long)?|OUT|DATA|FILE|wikitext-2)(?![\w/.-])")
LONG_MARK = "<!-- long -->"
PROGRAM = re.compile(r"(\.venv/bin/)?(python|mpirun|make|pip)\b")
NEVER_RUN = re.compile(
    r"make |pip |python (-m (pip|pytest|ruff|mypy|mkdocs|benchmarks\.\w+)|tests/\w+\.py)\b|.* --device cuda\b"
)
LAUNCHER = re.compile(r"mpirun( -f hosts)?( -np \d+)? ")

LONG = """
python -m train.wt103 --preset wt2-small
mpirun -np 2 python -m train.wt103 --preset wt2-small
mpirun -np 4 python -m train.wt103
mpirun -np 2 python -m train.wt103 --preset wt2-small --max-tokens 1000000 --set evaluate_every=350 \
--run-dir runs/wt2
mpirun -np 2 python -m train.wt103 --run-dir runs/wt2 --resume
python -m train.wt103 --preset wt2-small --data my-text.txt --set hidden_size=300
python -m minilstm.check
python -m minilstm.check --plot errors.png
mpirun -np 2 python -m train.wt103 --preset wt2-small --data data/wikitext-2 --set evaluate_every=1000 \
--max-steps 2002 --run-dir runs/wt2-long
python -m train.wt103 --precision mixed
mpirun -np 4 python -m train.wt103 --preset wt103 --run-dir runs/long
mpirun -f hosts -np 4 python -m train.wt103 --preset wt103 --run-dir runs/long
python -m train.supervise --restart-on-failure 3 -- srun --kill-on-bad-exit=1 python -m train.wt103 \
--preset wt103 --run-dir runs/long
python -m train.supervise --restart-on-failure 3 -- COMMAND
""".strip().splitlines()
NAMES = {  # what documents call it → what it is in the folder of these tests
    "OTHER": "other",
    "RUN": "run",
    "runs/wt2": "run",
    "runs/wt2-long": "run",
    "OUT": "out",
    "DATA": "classes",
    "FILE": "prompts.txt",
    "wikitext-2": "text.txt",
}
SHORTER = {"minilstm.anatomy": ["--steps", "20", "--units", "4"]}  # added to a module's arguments
BEFORE = {  # what a document takes as given, made by these
    "README.md": ["python -m train.export RUN --to torch --output awd.pt"],
    "docs/exchange.md": ["python -m train.export RUN --to torch --output theirs.pt"],
}


def blocks(document):
    """(lines, is long) of every block that is indented or fenced as `sh`; other fences are left out."""
    lines, fence, is_long = [], None, False
    for line in [*document.splitlines(), "end"]:
        opening = re.match(r"```(\w*)", line)
        inside = fence == "sh" if fence is not None else line.startswith("    ")
        if inside and not opening:
            lines.append(line)
        elif lines and (line.strip() or fence is not None):
            yield textwrap.dedent("\n".join(lines)).replace("\\\n", "").splitlines(), is_long
            lines, is_long = [], False
        if opening:
            fence = None if fence is not None else opening[1]
        elif line.strip() and not inside:
            is_long = line == LONG_MARK


def commands(document):
    """(command, is marked as long) of a document's, without the path to the programs and without comments."""
    for lines, is_long in blocks(document):
        for line in filter(PROGRAM.match, lines):
            command = re.sub(r"\s+# .*", "", line).replace(".venv/bin/", "").strip()
            yield re.sub(r"\s+", " ", command), is_long


def here(argument):
    """An argument with the names of these tests' files."""
    return NAMED.sub(lambda found: NAMES[found[2]], argument)


def relative(path):
    return path.relative_to(ROOT).as_posix()


def of_documents():
    return {path: list(commands(path.read_text(encoding="utf-8"))) for path in DOCUMENTS}


def test_the_long_commands_are_those_that_are_marked():
    marked = [command for found in of_documents().values() for command, is_long in found if is_long]
    assert sorted(set(marked)) == sorted(LONG)


def module_of(command):
    """The module and the arguments of `python -m MODULE …`, with or without a launcher; None of any other.

    What follows `--` is another command, and left out.
    """
    words = shlex.split(LAUNCHER.sub("", command).partition(" -- ")[0])
    ours = ("autograd.", "minilstm.", "train.", "benchmarks.")
    return (words[2], words[3:]) if words[:2] == ["python", "-m"] and words[2].startswith(ours) else None


def help_of(module):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return text.getvalue()


def not_run():
    shown = {command for found in of_documents().values() for command, _ in found}
    return sorted({*filter(NEVER_RUN.match, shown), *LONG})


@pytest.mark.parametrize("command", [command for command in not_run() if module_of(command)])
def test_a_long_command_has_the_flags_that_it_uses(command):
    module, arguments = module_of(command)
    flags = [word for word in arguments if word.startswith("--")]
    assert set(flags) <= set(re.findall(r"--[\w-]+", help_of(module)))


@pytest.mark.parametrize(
    "command", [c for c in LONG if module_of(c)[0] == "train.wt103" and "--resume" not in c]
)
def test_a_long_training_has_knobs_and_a_preset_that_exist(command, capsys):
    module, arguments = module_of(command)
    assert importlib.import_module(module).main([*arguments, "--dry-run", "--set", "vocab_size=1000"]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the commands name."""
    folder = tmp_path_factory.mktemp("docs")
    text = write_text(folder / "text.txt")
    train_tiny(1, text, folder / "run", epochs=1)
    shutil.copytree(folder / "run", folder / "other")
    shutil.copy(text, folder / "my-text.txt")
    shutil.copy(folder / "run" / "vocabulary.txt", folder / "theirs.txt")
    (folder / "prompts.txt").write_text("the cat\nthe dog sees\n")
    (folder / "reviews.txt").write_text("the cat sees fish\n")
    for split in ("train", "valid", "test"):
        for name in ("cat", "dog"):
            texts = folder / "classes" / split / name
            texts.mkdir(parents=True)
            for number in range(3):
                (texts / f"{number}.txt").write_text(f"the {name} sees the fish\n")
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "function_cases.py").write_text(
        "import autograd.functions as F\nfrom autograd.function_cases import Case, Tanh, normal\n"
        "CASES = [Case(Tanh, F.tanh, [normal(2, 3)])]\n"
    )
    return folder


def run(command):
    """Run a command in this process, as its module's `main` or as a script; the exit status."""
    if module_of(command) is None:
        program, script = command.split()
        assert program == "python", command
        runpy.run_path(str(ROOT / script))
        return 0
    module, arguments = module_of(command)
    arguments = [*map(here, arguments), *SHORTER.get(module, [])]
    try:
        return importlib.import_module(module).main(arguments)
    except SystemExit as ended:  # of a flag that only prints
        return ended.code


def can_run_here(command):
    """Whether the programs that some commands need besides are installed: PyTorch, Graphviz."""
    has_torch, has_graphviz = importlib.util.find_spec("torch") is not None, shutil.which("dot") is not None
    needs_torch, needs_graphviz = "torch" in command or ".pt" in command, ".svg" in command
    return (has_torch or not needs_torch) and (has_graphviz or not needs_graphviz)


def quick(path):
    found = of_documents()[path]
    return [command for command, is_long in found if not is_long and not NEVER_RUN.match(command)]


@pytest.mark.long
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if quick(path)], ids=relative)
def test_the_other_commands_run(path, place, tmp_path, monkeypatch, capsys):
    """One after the other, as a reader would."""
    work = tmp_path / "work"
    shutil.copytree(place, work)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    monkeypatch.setenv("MINILSTM_DATA", str(work / "prepared"))
    for command in [*BEFORE.get(relative(path), []), *quick(path)]:
        if can_run_here(command):
            assert run(command) == 0, command
            assert capsys.readouterr().out or "--out" in command, command


def test_commands_are_found():
    document = f"""Text.

    .venv/bin/python -m a.b RUN --x 1     # a comment
    .venv/bin/mpirun -np 2 .venv/bin/python -m a.c
    not a command

{LONG_MARK}

    make train

```sh
python -m a.d \\
    --y
```

```python
    python -m no.code
```
"""
    assert list(commands(document)) == [
        ("python -m a.b RUN --x 1", False),
        ("mpirun -np 2 python -m a.c", False),
        ("make train", True),
        ("python -m a.d --y", False),
    ]
    assert module_of("mpirun -np 2 python -m train.c --z") == ("train.c", ["--z"])
    assert [here(word) for word in ("RUN", "data/wikitext-2", "RUNS")] == ["run", "text.txt", "RUNS"]
