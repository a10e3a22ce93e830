"""The define-by-run graph as a drawing: DOT text by us, an SVG of it by Graphviz's program `dot`.

    >>> import numpy as np
    >>> from autograd import Variable
    >>> from autograd.graph import to_dot
    >>> x = Variable(np.ones((2, 3)), name="x")
    >>> drawing = to_dot((x * x).sum())
    >>> print(*(line for line in drawing.splitlines() if "label=" in line), sep="\\n")
      v0 [label="x\\n(2, 3) float64", fillcolor="#cfe8ff"]
      f1 [label="multiply", shape=box, fillcolor="#ffe2b8", ordering=in]
      v2 [label="(2, 3) float64"]
      f3 [label="sum", shape=box, fillcolor="#ffe2b8", ordering=in]
      v4 [label="() float64", penwidth=3]
      v0 -> f1 [label="x"]
      v0 -> f1 [label="y"]

Variables are ellipses: parameters green with a double line, other inputs blue, constants grey and dashed,
what a function made white, the outputs with a thick line. Functions are boxes. Where a function takes or
makes several arrays, its arrows say which: the argument's name, the output's number.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autograd.errors import InputError
from autograd.function import Function
from autograd.variable import Node, Variable

MAX_ITEMS = 1000
"""Variables and functions in one drawing: nobody can read more, and `dot` takes minutes over them."""

# Pale fills carry dark text, and all lines are of a middle grey: the page may be light or dark.
STYLE = """\
  bgcolor=transparent; ranksep=0.3; nodesep=0.2
  graph [fontname="Helvetica", fontsize=13, fontcolor="#7d828a", color="#7d828a"]
  node [fontname="Helvetica", fontsize=11, fontcolor="#1a1c1f", color="#7d828a"]
  node [style=filled, fillcolor=white, margin="0.08,0.03", height=0.3]
  edge [fontname="Helvetica", fontsize=9, fontcolor="#7d828a", color="#7d828a", arrowsize=0.7]"""
FUNCTION = 'shape=box, fillcolor="#ffe2b8"'
PARAMETER = 'peripheries=2, fillcolor="#c9ecd0"'
INPUT = 'fillcolor="#cfe8ff"'
CONSTANT = 'style="filled,dashed", fillcolor="#e6e8eb"'
OUTPUT = "penwidth=3"


def to_dot(
    outputs: Variable | Sequence[Variable],
    *,
    title: str = "",
    groups: Mapping[str, Sequence[Variable]] | None = None,
    direction: Literal["TB", "LR"] = "TB",
    max_items: int | None = MAX_ITEMS,
) -> str:
    """The graph behind some variables in the DOT language; the same graph gives the same text.

    Args:
        outputs: what was computed, one variable or several.
        title: stands over the drawing.
        groups: label → variables, as a step of time → its h and c. A frame with the label is drawn around
            all functions behind them that are in no group before, and around what those made.
        direction: from the top down, or from left to right.
        max_items: how many variables and functions are drawn at most; None: any number.

    Raises:
        InputError: more than `max_items`, or a graph that a backward pass has released.
    """
    roots = [variable.node for variable in ([outputs] if isinstance(outputs, Variable) else outputs)]
    items = _behind(roots, max_items)
    ids = {item: f"{'f' if isinstance(item, Function) else 'v'}{k}" for k, item in enumerate(items)}
    group_of = _groups_of_functions(groups or {})
    frames: dict[str | None, list[str]] = {name: [] for name in (None, *(groups or {}))}
    for item in items:
        function = item if isinstance(item, Function) else item.creator
        frame = frames[group_of.get(function) if function else None]
        frame.append(f"  {ids[item]} [{_attributes(item, is_root=item in roots)}]")
    return "\n".join(
        [
            "digraph {",
            f"  rankdir={direction}" + (f"; labelloc=t; label={_quoted(title)}" if title else ""),
            STYLE,
            *frames.pop(None),
            *(line for k, name in enumerate(frames) for line in _frame(k, str(name), frames[name])),
            *(edge for item in items if isinstance(item, Function) for edge in _edges(item, ids)),
            "}\n",
        ]
    )


def write_svg(outputs: Variable | Sequence[Variable], path: str | Path, **options: Any) -> None:
    """Draw the graph behind some variables into an SVG file; arguments as for `to_dot`.

    Raises:
        InputError: as `to_dot` does, or Graphviz is not installed.
    """
    svg = render_svg(to_dot(outputs, **options))  # all of it first: nothing is written if this fails
    Path(path).write_bytes(svg)


def render_svg(dot: str) -> bytes:
    """The SVG that Graphviz makes of a text in the DOT language.

    Raises:
        InputError: there is no program `dot` on the PATH.
    """
    program = shutil.which("dot")
    if program is None:
        raise InputError(
            "an SVG needs Graphviz's program dot, which is not on the PATH; install it "
            "(apt install graphviz, brew install graphviz), or write the DOT text instead"
        )
    return subprocess.run([program, "-Tsvg"], input=dot.encode(), stdout=subprocess.PIPE, check=True).stdout


def _behind(roots: Sequence[Node], max_items: int | None = None) -> list[Node | Function]:
    """The nodes and all that they were computed from, each thing after what it needs; never recursive."""
    in_order: list[Node | Function] = []
    seen: set[Node | Function] = set()
    waiting: list[tuple[Node | Function, bool]] = [(root, False) for root in reversed(roots)]
    while waiting:
        item, is_ready = waiting.pop()
        if is_ready:
            in_order.append(item)
        elif item not in seen:
            seen.add(item)
            waiting.append((item, True))
            waiting += [(needed, False) for needed in reversed(_needed(item))]
        if max_items is not None and len(seen) > max_items:
            raise InputError(
                f"graph: more than {max_items:,} variables and functions are too many to read; "
                "draw fewer steps, or give a larger max_items"
            )
    return in_order


def _needed(item: Node | Function) -> Sequence[Node | Function]:
    if isinstance(item, Node):
        return [item.creator] if item.creator else []
    if item.is_released:
        raise InputError(
            "graph: a backward pass has released this graph; draw it before, or pass retain_graph=True there"
        )
    return item.inputs


def _groups_of_functions(groups: Mapping[str, Sequence[Variable]]) -> dict[Function, str]:
    group_of: dict[Function, str] = {}
    for name, variables in groups.items():
        for item in _behind([variable.node for variable in variables]):
            if isinstance(item, Function):
                group_of.setdefault(item, name)
    return group_of


def _frame(number: int, label: str, statements: list[str]) -> list[str]:
    head = f"  subgraph cluster_{number} {{ label={_quoted(label)}; style=rounded"
    return [head, *(f"  {statement}" for statement in statements), "  }"]


def _attributes(item: Node | Function, is_root: bool) -> str:
    """What stands in the brackets behind a node's id."""
    if isinstance(item, Function):
        ordering = "out" if len(item.outputs) > 1 else "in"
        return f"label={_quoted(item.label)}, {FUNCTION}, ordering={ordering}"
    label = f"label={_quoted(*([item.name] if item.name else []), f'{item.shape} {item.dtype}')}"
    style = ""
    if item.is_parameter:
        style = PARAMETER
    elif item.creator is None:
        style = INPUT if item.requires_grad else CONSTANT
    return ", ".join(filter(None, [label, style, OUTPUT if is_root else ""]))


def _edges(function: Function, ids: Mapping[Node | Function, str]) -> list[str]:
    """Arrows from its inputs and to its outputs, in their order."""
    names = function.argument_names()
    edges = [
        f"  {ids[node]} -> {ids[function]}" + (f" [label={_quoted(name)}]" if len(names) > 1 else "")
        for node, name in zip(function.inputs, names, strict=True)
    ]
    outputs = function.outputs
    return edges + [
        f"  {ids[function]} -> {ids[node]}" + (f' [label="{index}"]' if len(outputs) > 1 else "")
        for index, node in enumerate(outputs)
        if node is not None and node in ids
    ]


def _quoted(*lines: str) -> str:
    """A string of the DOT language, in which backslash, quotation mark and ampersand mean something else."""
    text = "\n".join(lines).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'
