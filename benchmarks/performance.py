"""Every figure of docs/performance.md: python -m benchmarks.performance, or `make bench`

Runs the benchmarks one after the other, each in a process of its own, keeps their JSON in benchmarks/results
and writes their tables between the document's marks. --short (which `make bench` gives) takes some minutes;
the long form takes more rounds, and adds ranks of a larger model and preparation at WikiText-103's size.
Without PyTorch there are no peers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from autograd.command import Parser
from autograd.errors import InputError
from train.files import atomic_write
from train.log import progress

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
DOCUMENT = ROOT / "docs/performance.md"
IMAGES = ROOT / "docs/images"
MARK = "<!-- {} -->"


def parts(short: bool, against: list[str]) -> dict[str, list[str]]:
    """Name of each part, and the arguments of `python -m` that make it; the name is that of its result."""
    step = ["benchmarks.training_step", *against]
    sizes, fewer = ("small", "wt2", "wt103"), ["--steps", "3"] if short else []
    many = [] if short else ["--rounds", "45"]  # steps that are short, and differ by little
    quick, part = (["--short"], ["--tokens", "60000"]) if short else ([], [])
    long_form = {"scaling_wt2": ["benchmarks.scaling", "--size", "wt2", "--rounds", "1", "--steps", "3"]}
    return {
        **{f"training_step_{size}": [*step, "--size", size] for size in sizes[:2]},
        "training_step_wt103": [*step, "--size", "wt103", *fewer],
        "evaluation_small": ["benchmarks.evaluation", *against, "--size", "small", *part],
        "evaluation_wt2": ["benchmarks.evaluation", *against, "--size", "wt2", "--rounds", "1", *part],
        "levers_small": ["benchmarks.levers", "--size", "small", *many],
        "levers_wt2": ["benchmarks.levers", "--size", "wt2"],
        "kernels": ["benchmarks.kernels", *against, "--rounds", "3" if short else "7"],
        "memory": ["benchmarks.memory", *against, *quick, "--plot", str(IMAGES / "memory.png")],
        "scaling_small": ["benchmarks.scaling", "--size", "small", "--rounds", "1" if short else "3"],
        **({} if short else long_form),
        "prepare": ["benchmarks.prepare", "--tokens", "20000000" if short else "103000000"],
    }


def run_part(name: str, arguments: list[str], results: Path) -> str:
    """Make a part; returns what it printed.

    Raises:
        InputError: it failed.
    """
    out = str(results / f"{name}.json")
    # Relative, for the result keeps the command: where a checkout lies is nobody's business.
    command = [sys.executable, "-m", *map(_relative, [*arguments, "--out", out])]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if found.returncode:
        raise InputError(f"{' '.join(command[1:])}: ended with status {found.returncode}")
    return found.stdout.rstrip("\n")


def with_table(document: str, name: str, arguments: list[str], text: str) -> str:
    """The document with a part's command and table between its marks; unchanged if it has none.

    The marks are the comments `<!-- NAME -->` and `<!-- end NAME -->`, each on a line of its own.
    """
    begin, end = MARK.format(name), MARK.format(f"end {name}")
    shown = " ".join(_relative(argument) for argument in arguments)
    lines = [f"    .venv/bin/python -m {shown}", "", *(f"    {line}".rstrip() for line in text.splitlines())]
    content = "\n".join([begin, "", *lines, "", end])
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: content, document)


def _relative(argument: str) -> str:
    """A path within the project as it is called from there; anything else as it is."""
    path = Path(argument)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else argument


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    against = ["--against", "torch"] if importlib.util.find_spec("torch") else []
    if not against:
        print("PyTorch is not installed: no comparisons (pip install torch)", file=sys.stderr)
    wanted = parts(options.short, against)
    if unknown := [name for name in options.only if name not in wanted]:
        raise InputError(f"--only: unknown {unknown[0]!r}; there are {', '.join(wanted)}")
    summary: dict[str, Any] = {}
    document = DOCUMENT.read_text(encoding="utf-8")
    chosen = {name: wanted[name] for name in options.only or wanted}
    with progress(len(chosen), "benchmarks", "parts") as bar:
        for name, arguments in chosen.items():
            bar.message(f"python -m {' '.join(arguments)}")
            text = run_part(name, arguments, RESULTS)
            summary[name] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
            print(f"{text}\n", flush=True)
            document = with_table(document, name, arguments, text)
            with atomic_write(DOCUMENT) as temporary:  # after each: what is measured is not lost
                temporary.write_text(document, encoding="utf-8")
            bar.update(1)
    if options.json:
        print(json.dumps(summary))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.performance", __doc__)
    parser.add_argument("--short", action="store_true", help="some minutes instead of half an hour")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some parts; default: all")
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object as well")
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
