"""Drawings of the graph: every variable and function once, arrows in order, equal text for equal graphs."""

import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import autograd.functions as F
from autograd import InputError, Parameter, Variable
from autograd.functions.arithmetic import Negate
from autograd.graph import MAX_ITEMS, to_dot, write_svg

NODE = re.compile(r'^ +(\w+) \[label="((?:[^"\\]|\\.)*)"(.*)\]$')
EDGE = re.compile(r'^ +(\w+) -> (\w+)(?: \[label="(.*)"\])?$')


class Drawing:
    """A DOT text read back: nodes (id → label), their attributes, edges (from, to, label) in order."""

    def __init__(self, dot):
        self.labels, self.attributes, self.edges, self.frames, frame = {}, {}, [], {}, None
        for line in dot.splitlines():
            if "subgraph" in line:
                frame = re.search(r'label="(.*)"', line)[1]
            elif line == "  }":
                frame = None
            elif found := EDGE.match(line):
                self.edges.append(found.groups())
            elif found := NODE.match(line):
                assert found[1] not in self.labels
                self.labels[found[1]], self.attributes[found[1]] = found[2], found[3]
                self.frames[found[1]] = frame
        assert {end for edge in self.edges for end in edge[:2]} <= set(self.labels)

    def named(self, name):
        """The id of the one variable of this name, or of the one function of this label."""
        (found,) = (i for i, label in self.labels.items() if label == name or label.startswith(name + "\\n"))
        return found

    def functions(self):
        return sorted(label for i, label in self.labels.items() if "shape=box" in self.attributes[i])

    def inputs_of(self, name):
        """(label of the variable, label of the arrow) of all that goes into a function, in order."""
        return [(self.labels[a], label) for a, b, label in self.edges if b == self.named(name)]

    def outputs_of(self, name):
        return [(self.labels[b], label) for a, b, label in self.edges if a == self.named(name)]


def variable(name, *shape, dtype=np.float64, **options):
    return Variable(np.ones(shape, dtype), name=name, **options)


def affine():
    x, W, b = variable("x", 5, 3), Parameter(np.ones((2, 3)), "W"), Parameter(np.ones(2), "b")
    y = F.linear(x, W, b)
    y.name = "y"
    return y


def test_names_shapes_and_dtypes_stand_in_the_ellipses():
    drawing = Drawing(to_dot(affine()))
    assert list(drawing.labels.values()) == [
        "x\\n(5, 3) float64", "W\\n(2, 3) float64", "b\\n(2,) float64", "linear", "y\\n(5, 2) float64",
    ]  # fmt: skip
    assert "shape=box" not in drawing.attributes[drawing.named("y")]


def test_arrows_bear_the_arguments_names_in_their_order():
    drawing = Drawing(to_dot(affine()))
    expected = [("x\\n(5, 3) float64", "x"), ("W\\n(2, 3) float64", "W"), ("b\\n(2,) float64", "b")]
    assert drawing.inputs_of("linear") == expected
    assert drawing.outputs_of("linear") == [("y\\n(5, 2) float64", None)]


def test_several_arrays_of_one_argument_are_numbered():
    drawing = Drawing(to_dot(F.concatenate([variable("x", 1), variable("y", 2)])))
    assert [label for _, label in drawing.inputs_of("concatenate")] == ["arrays[0]", "arrays[1]"]


def test_an_output_bears_its_number_and_stands_only_where_it_leads_somewhere():
    first, second, third = F.split(variable("x", 6), 3)
    second.name, first.name = "second", "first"
    drawing = Drawing(to_dot([third * first]))
    assert drawing.outputs_of("split") == [("first\\n(2,) float64", "0"), ("(2,) float64", "2")]
    assert second.creator is first.creator


def test_each_kind_of_variable_is_told_apart():
    w = Parameter(np.ones(3), "w")
    x, mask = variable("x", 3), variable("mask", 3, requires_grad=False)
    drawing = Drawing(to_dot([total := (w * x) * mask]))
    assert total.shape == (3,)
    styles = {name: drawing.attributes[drawing.named(name)] for name in ("w", "x", "mask")}
    result = drawing.attributes[list(drawing.labels)[-1]]
    assert len({*styles.values(), result}) == 4
    assert "peripheries=2" in styles["w"]
    assert "dashed" in styles["mask"]
    assert result == ", penwidth=3"


def test_a_parameter_that_nobody_holds_any_more_is_still_one():
    """Functions hold the place of a variable and not the variable: the place must know what it was."""
    drawing = Drawing(to_dot(affine()))
    assert "peripheries=2" in drawing.attributes[drawing.named("W")]


def test_a_name_given_later_is_shown_though_the_variable_is_gone():
    x = variable("x", 2)
    y = F.exp(x)
    y.name = "hidden"
    total = y.sum()
    del x, y
    assert Drawing(to_dot(total)).named("hidden") == "v2"


def test_what_is_used_twice_stands_once():
    x = variable("x", 3)
    y = F.exp(x)
    drawing = Drawing(to_dot(y * y + x))
    assert drawing.functions() == ["add", "exp", "multiply"]
    assert [label for _, label in drawing.inputs_of("multiply")] == ["x", "y"]
    assert len(drawing.labels) == 7


def test_a_variable_without_a_graph_is_one_ellipse():
    drawing = Drawing(to_dot(variable("x", 3)))
    assert list(drawing.labels.values()) == ["x\\n(3,) float64"]
    assert drawing.edges == []


SCRIPT = """
import sys
import numpy as np
import autograd.functions as F
from autograd import Parameter, Variable
from autograd.graph import to_dot
clutter = [object() for _ in range(int(sys.argv[1]))]
x, W = Variable(np.ones((2, 3))), Parameter(np.ones((4, 3)), "W")
a, b = F.split(F.linear(x, W), 2, axis=1)
print(to_dot([F.tanh(a) * b, (W * W).sum()], groups={"left": [a], "right": [b * 2]}))
"""


def test_equal_graphs_give_equal_text():
    """In processes with other hashes and other addresses."""
    texts = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, seed],
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "7", "4321")
    }
    assert len(texts) == 1
    assert len(Drawing(texts.pop()).labels) > 10


def test_the_text_goes_from_inputs_to_outputs():
    y = affine()
    drawing = Drawing(to_dot((y * y).sum() + F.exp(y).sum()))
    position = {i: k for k, i in enumerate(drawing.labels)}
    assert all(position[a] < position[b] for a, b, _ in drawing.edges)


def test_groups_frame_what_was_made_after_the_group_before():
    x = variable("x", 3)
    y = F.exp(x)
    z = F.tanh(y)
    drawing = Drawing(to_dot(F.negate(z), groups={"first": [y], "second": [z]}))
    frames = {drawing.labels[i]: frame for i, frame in drawing.frames.items() if i[0] == "f"}
    assert frames == {"exp": "first", "tanh": "second", "negate": None}
    assert drawing.frames[drawing.named("x")] is None
    made_by_exp = next(b for a, b, _ in drawing.edges if a == drawing.named("exp"))
    assert drawing.frames[made_by_exp] == "first"


def test_title_and_direction():
    dot = to_dot(affine(), title='a "title"', direction="LR")
    assert "rankdir=LR" in dot
    assert 'label="a \\"title\\""' in dot


def chain(length):
    x = variable("x", 1)
    for _ in range(length):
        x = Negate().apply(x)
    return x


def test_a_long_chain_needs_no_deep_stack():
    dot = to_dot(chain(20_000), max_items=None)  # Python itself goes 1,000 calls deep
    assert dot.count('label="negate"') == 20_000
    assert dot.count(" -> ") == 40_000


def test_too_much_is_refused_before_it_is_drawn():
    with pytest.raises(InputError, match="more than 1,000 .* draw fewer steps, or give a larger max_items"):
        to_dot(chain(MAX_ITEMS))
    with pytest.raises(InputError, match="more than 6 "):
        to_dot(chain(3), max_items=6)
    assert len(Drawing(to_dot(chain(3), max_items=7)).labels) == 7


def test_a_released_graph_is_refused():
    total = affine().sum()
    total.backward()
    with pytest.raises(InputError, match="has released this graph; .* retain_graph=True"):
        to_dot(total)


def test_a_retained_graph_can_be_drawn_after_the_backward_pass():
    total = affine().sum()
    before = to_dot(total)
    total.backward(retain_graph=True)
    assert to_dot(total) == before


FAKE_DOT = '#!/bin/sh\nif [ "$1" = -Tsvg ]; then echo "<svg>"; cat; fi\n'


def test_an_svg_is_what_dot_makes_of_the_text(tmp_path, monkeypatch):
    program = tmp_path / "dot"
    program.write_text(FAKE_DOT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    write_svg(affine(), tmp_path / "graph.svg", direction="LR")
    assert (tmp_path / "graph.svg").read_text() == "<svg>\n" + to_dot(affine(), direction="LR")


def test_without_graphviz_an_svg_is_refused_and_nothing_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs Graphviz's program dot, .*; install it .*, or write"):
        write_svg(affine(), tmp_path / "graph.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("name", ["plain", 'a "quote"', "back\\slash", "\\N", "two\nlines", "W₁ <b>&amp;"])
def test_graphviz_reads_any_name(tmp_path, name):
    write_svg(variable(name, 2) * 1.0, tmp_path / "graph.svg", groups={name: []}, title=name)
    texts = [
        element.text
        for element in ElementTree.parse(tmp_path / "graph.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    for line in name.splitlines():
        assert texts.count(line) >= 2  # as the title and in its ellipse
    assert {"(2,) float64", "multiply"} <= set(texts)
