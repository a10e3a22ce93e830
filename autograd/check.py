"""Every Function's gradient against central differences, as a table: python -m autograd.check

A MODULE has a list CASES of `autograd.function_cases.Case`; the engine's own is the default. The exit
status is 1 if an error is above the limit, or if a Function of the module's package has no case.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autograd import check_plot
from autograd.command import Parser, run
from autograd.errors import InputError
from autograd.function import Function
from autograd.function_cases import Case, outputs_of
from autograd.gradient_check import STEP, TOLERANCE, compare_backward, worst_of
from autograd.variable import Variable

STEPS = 10.0 ** np.linspace(-12, 0, 49)
"""Of the plot: from where rounding has eaten everything to where truncation has."""


@dataclass
class Result:
    """What became of one case; `error` is the relative one, nan where `failure` says what was raised."""

    case: Case
    error: float
    seconds: float
    failure: str = ""


@dataclass
class Row:
    """What became of all cases of one Function."""

    kind: type[Function]
    results: list[Result]

    @property
    def worst(self) -> Result:
        """The result with the largest error; a failure is worse than any."""
        return max(self.results, key=lambda result: (math.isnan(result.error), result.error))

    @property
    def seconds(self) -> float:
        """What all cases took."""
        return sum(result.seconds for result in self.results)

    def fault(self, tolerance: float) -> str:
        """What is wrong with it, in words; empty if nothing is."""
        if not self.results:
            return "has no case"
        if self.worst.failure:
            return self.worst.failure
        return "" if self.worst.error <= tolerance else f"above {tolerance:.0e}"


def check_modules(modules: Sequence[ModuleType], only: Sequence[str] = ()) -> list[Row]:
    """Check the cases of these modules, a row for each Function of theirs, with a case or without.

    Args:
        modules: each has a list CASES.
        only: names of Functions, or empty for all.

    Raises:
        InputError: a name that no Function has.
    """
    kinds = list(dict.fromkeys(case.kind for module in modules for case in module.CASES))
    kinds += [kind for module in modules for kind in functions_without_case(module)]
    names = [kind.__name__ for kind in kinds]
    for name in only:
        if name not in names:
            raise InputError(f"--only: no Function {name!r}; there are {', '.join(sorted(names))}")
    cases = [case for module in modules for case in module.CASES]
    return [
        Row(kind, [check_case(case) for case in cases if case.kind is kind])
        for kind in kinds
        if not only or kind.__name__ in only
    ]


def check_case(case: Case) -> Result:
    """Compare `backward` with differences in one case; what is raised is told and not raised on.

    A call that applies no Function of the case's kind proves nothing about it, and is a failure too.
    """
    start = time.perf_counter()
    error, failure = math.nan, ""
    try:
        variables = [Variable(value, requires_grad=value.dtype.kind == "f") for value in case.inputs]
        if case.kind in kinds_behind(outputs_of(case, variables)):
            error = worst_of(compare_backward(case.function, case.inputs)).error
        else:
            failure = f"its call applies no {case.kind.__name__}"
    except Exception as exception:  # of one Function: the others are to be checked too
        failure = f"{type(exception).__name__}: {exception}"
    return Result(case, error, time.perf_counter() - start, failure)


def kinds_behind(outputs: Sequence[Variable]) -> set[type[Function]]:
    """The kinds of Function whose graph the outputs are at the end of."""
    kinds: set[type[Function]] = set()
    seen, open_ones = set(), [output.node for output in outputs]
    while open_ones:
        node = open_ones.pop()
        if node in seen or node.creator is None:
            continue
        seen.add(node)
        kinds.add(type(node.creator))
        open_ones += node.creator.inputs
    return kinds


def functions_without_case(module: ModuleType) -> list[type[Function]]:
    """The Functions of the module's package that none of its cases applies, by name.

    Those that need CUDA kernels are not asked for: they run only where kernels do.
    """
    package = importlib.import_module(module.__name__.rpartition(".")[0] or module.__name__)
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}."):
        importlib.import_module(found.name)
    inside = f"{package.__name__}."
    ours = {
        kind
        for kind in _subclasses(Function)
        if f"{kind.__module__}.".startswith(inside) and not kind.needs_kernels
    }
    return sorted(ours - {case.kind for case in module.CASES}, key=lambda kind: kind.__name__)


def _subclasses(kind: type[Function]) -> set[type[Function]]:
    children = kind.__subclasses__()
    return set(children).union(*map(_subclasses, children))


def table(rows: Sequence[Row], tolerance: float = TOLERANCE) -> str:
    """The rows as text: shapes and types of the worst case, its error, the time of all cases."""
    lines = [("function", "cases", "shapes of the worst", "dtype", "error", "time", "")]
    for row in rows:
        worst = row.worst if row.results else None
        lines.append(
            (
                row.kind.__name__,
                str(len(row.results)),
                " ".join(str(value.shape).replace(" ", "") for value in worst.case.inputs) if worst else "",
                ", ".join(dict.fromkeys(str(value.dtype) for value in worst.case.inputs)) if worst else "",
                f"{worst.error:.1e}" if worst else "",
                f"{1000 * row.seconds:.1f} ms",
                row.fault(tolerance),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_the_right = (False, True, False, False, True, True, False)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, to_the_right, strict=True)
        ).rstrip()
        for line in lines
    )


def summary(rows: Sequence[Row], tolerance: float = TOLERANCE) -> str:
    """One line: how many passed, in what time."""
    faults = [row.kind.__name__ for row in rows if row.fault(tolerance)]
    count, seconds = sum(len(row.results) for row in rows), sum(row.seconds for row in rows)
    end = f"wrong: {', '.join(faults)}" if faults else f"every error at most {tolerance:.0e}"
    return f"{len(rows)} functions, {count} cases in {seconds:.1f} s, step {STEP:.0e}: {end}"


def as_json(rows: Sequence[Row], tolerance: float = TOLERANCE) -> str:
    """Everything measured, case by case; an error that is no number is null."""

    def described(result: Result) -> dict[str, Any]:
        return {
            "shapes": [list(value.shape) for value in result.case.inputs],
            "dtypes": [str(value.dtype) for value in result.case.inputs],
            "error": result.error if math.isfinite(result.error) else None,
            "seconds": result.seconds,
        }

    functions = [
        {
            "function": row.kind.__name__,
            "module": row.kind.__module__,
            "fault": row.fault(tolerance),
            "cases": [described(result) for result in row.results],
        }
        for row in rows
    ]
    passed = not any(row.fault(tolerance) for row in rows)
    report = {"step": STEP, "tolerance": tolerance, "passed": passed, "functions": functions}
    return json.dumps(report, indent=1, allow_nan=False)


def errors_by_step(case: Case, steps: Sequence[float] | np.ndarray = STEPS) -> np.ndarray:
    """The relative error (N) of central differences with each of `steps` (N): the median of 15 directions."""
    return np.array(
        [
            np.median([c.error for c in compare_backward(case.function, case.inputs, step=h, directions=15)])
            for h in steps
        ]
    )


def plotted_names(modules: Sequence[ModuleType], only: Sequence[str] = ()) -> list[str]:
    """The Functions that a plot shows: those of `only`, or those that the modules list in PLOTTED."""
    return list(only) or [kind.__name__ for module in modules for kind in getattr(module, "PLOTTED", ())]


def curves(rows: Sequence[Row], names: Sequence[str]) -> dict[str, np.ndarray]:
    """`errors_by_step` of the largest case of each Function of these names that has one and runs."""
    shown = [row for row in rows if row.kind.__name__ in names and row.results and not row.worst.failure]
    largest = [
        max((result.case for result in row.results), key=lambda case: sum(x.size for x in case.inputs))
        for row in shown
    ]
    return {case.kind.__name__: errors_by_step(case) for case in largest}


def load_cases(name: str) -> ModuleType:
    """Import a module of cases by its dotted name.

    Raises:
        InputError: there is none, or it has no list CASES.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"{name}: no such module; expected one with a list CASES") from None
    if not isinstance(getattr(module, "CASES", None), list):
        raise InputError(f"{name}: expected a list CASES in it, as autograd.function_cases has; found none")
    return module


def main(
    argv: list[str] | None = None,
    default: Sequence[str] = ("autograd.function_cases",),
    prog: str = "python -m autograd.check",
) -> int:
    """The command, also of layers above, which name their own modules of cases."""
    parser = Parser.documented(prog, __doc__)
    parser.add_argument("modules", metavar="MODULE", nargs="*", help=f"default: {' '.join(default)}")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these Functions alone")
    parser.add_argument("--tolerance", metavar="ERROR", type=float, default=TOLERANCE, help="%(default)s")
    parser.add_argument("--json", action="store_true", help="every case, as JSON instead of a table")
    parser.add_argument(
        "--plot", metavar="FILE.png", type=Path, help="error against step size, of a few or those of --only"
    )
    args = parser.parse_args(argv)
    modules = [load_cases(name) for name in args.modules or default]
    if args.plot:
        check_plot.check_output(args.plot, len(plotted_names(modules, args.only)))
    rows = check_modules(modules, args.only)
    if args.json:
        print(as_json(rows, args.tolerance))
    else:
        print(table(rows, args.tolerance), summary(rows, args.tolerance), sep="\n\n")
    if args.plot:
        shown = curves(rows, plotted_names(modules, args.only))
        check_plot.draw(STEPS, shown, STEP, args.tolerance).savefig(args.plot, dpi=150)
    return int(any(row.fault(args.tolerance) for row in rows))


if __name__ == "__main__":
    run(main)
