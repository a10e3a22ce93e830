"""The error of central differences against their step: truncation on one side, rounding on the other.

With f smooth and ε the spacing of float64, (f(x + h) - f(x - h)) / 2h errs by about h² |f'''| / 6, for
it cuts the Taylor series off, and by about ε |f| / h, for it takes the difference of two rounded numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autograd.errors import InputError

# Okabe & Ito's colours, told apart with any kind of colour vision; the marks differ as well.
STYLES = [
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"),
    ("#56B4E9", "P"), ("#000000", "x"),
]  # fmt: skip
GREY = "#5f6368"
EPSILON = float(np.finfo(np.float64).eps)


def check_output(path: Path, num_curves: int) -> None:
    """See that a picture can be drawn into this file: before the work, not after it.

    Raises:
        InputError: an unknown kind of picture, no such folder, too many curves, matplotlib not installed.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot: expected a name ending in .png, .svg or .pdf; got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"--plot: there is no folder {path.parent}; make it first")
    if not 1 <= num_curves <= len(STYLES):
        raise InputError(
            f"--plot: a picture shows 1 to {len(STYLES)} Functions; got {num_curves}; choose by --only"
        )
    _figure_class()


def _figure_class() -> Any:
    """matplotlib's Figure; one of the two doors to matplotlib, for autograd may not import train.plot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib; install it with: pip install matplotlib") from None
    return Figure


def draw(steps: np.ndarray, curves: dict[str, np.ndarray], step: float, tolerance: float) -> Any:
    """The matplotlib Figure.

    Args:
        steps: (N), the step sizes h.
        curves: a Function's name → its relative errors (N).
        step, tolerance: what the gradient check uses; marked.
    """
    figure = _figure_class()(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlim=(steps[0], steps[-1]), ylim=(EPSILON / 10, 10))
    axes.set(xlabel="step h, along a random direction", ylabel="relative error of the central difference")
    axes.set_title("The check's own error: rounding to the left, truncation to the right", loc="left")
    axes.plot(steps, EPSILON / steps, "--", color=GREY, linewidth=1)
    axes.plot(steps, steps**2, "--", color=GREY, linewidth=1)
    axes.text(3e-12, 2.5 * EPSILON / 3e-12, "rounding: ε / h", color=GREY)
    axes.text(6e-5, (6e-5) ** 2 / 40, "truncation: h²", color=GREY)
    axes.axvline(step, color=GREY, linestyle=":", linewidth=1)
    axes.text(step * 1.15, EPSILON / 6, f"h = {step:.0e}, the check's", color=GREY)
    axes.axhline(tolerance, color=GREY, linestyle=":", linewidth=1)
    axes.text(steps[-1], tolerance * 1.3, f"error {tolerance:.0e}, the limit ", color=GREY, ha="right")
    for (name, errors), (colour, marker) in zip(curves.items(), STYLES, strict=False):
        drawn = np.where(errors > 0, errors, np.nan)  # an error of exactly 0 has no place on a log axis
        axes.plot(steps, drawn, color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure
