"""python -m minilstm.draw: every parameter and every function of the model stands in its drawing."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from autograd import InputError
from minilstm import LanguageModel, draw

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def labels(dot, kind=""):
    """The labels of a text's variables and functions, or of those whose attributes hold `kind`."""
    lines = re.findall(r'^ +\w+ \[label="([^"]*)"(.*)\]$', dot, re.MULTILINE)
    return [label for label, attributes in lines if kind in attributes]


def functions_behind(*variables):
    """Their labels, by a walk of its own."""
    unseen, seen = [variable.creator for variable in variables], set()
    while unseen:
        function = unseen.pop()
        if function is not None and function not in seen:
            seen.add(function)
            unseen += [node.creator for node in function.inputs]
    return Counter(function.label for function in seen)


def model_of(implementation):
    model = LanguageModel(draw.CONFIG)
    model.implementation = implementation
    return model


def described(parameter):
    return f"{parameter.name}\\n{parameter.shape} {parameter.dtype}"


@pytest.mark.parametrize("implementation", ["fused", "readable"])
def test_the_loss_shows_every_parameter_and_every_function(implementation):
    model = model_of(implementation)
    dot = draw.draw_loss(model)
    parameters = [described(parameter) for _, parameter in model.named_parameters()]
    assert sorted(labels(dot, "peripheries=2")) == sorted(parameters)
    window = np.zeros((draw.T, draw.B), int)
    expected = functions_behind(model.objective(window, window).objective)
    assert Counter(labels(dot, "shape=box")) == expected
    assert expected["tied_softmax_loss"] == 1
    assert expected["tanh"] == {"fused": 0, "readable": 2 * draw.T * draw.CONFIG.num_layers}[implementation]


def test_the_loss_is_a_sum_with_both_regularisers_and_the_tied_matrix_has_two_uses():
    dot = draw.draw_loss(model_of("fused"))
    assert {"activation_regularization", "temporal_activation_regularization"} <= set(labels(dot))
    assert [label.split("\\n")[0] for label in labels(dot, "penwidth")] == ["loss", "objective"]
    (tied,) = re.findall(r'(\w+) \[label="embedding.weight', dot)
    assert len(re.findall(rf"^ +{tied} -> ", dot, re.MULTILINE)) == 2


@pytest.mark.parametrize(("steps", "frames"), [(1, 0), (3, 3)])
def test_steps_share_their_weights_and_stand_in_frames(steps, frames):
    dot = draw.draw_steps(steps)
    once = {"linear": 2, "add": 2, "split": 1, "sigmoid": 3, "tanh": 2, "multiply": 3}
    expected = {label: steps * count for label, count in once.items()}
    assert Counter(labels(dot, "shape=box")) == expected
    assert labels(dot, "peripheries=2") == [
        "W_ih\\n(24, 4) float32", "W_hh\\n(24, 6) float32", "b\\n(24,) float32",
    ]  # fmt: skip
    names = {label.split("\\n")[0] for label in labels(dot)}
    for t in range(1, steps + 1):
        assert {f"x_{t}", f"h_{t}", f"c_{t}"} <= names
    assert [label.split("\\n")[0] for label in labels(dot, "penwidth")] == [f"c_{steps}", f"h_{steps}"]
    assert re.findall(r'subgraph \w+ \{ label="(.*)"; ', dot) == [f"step {t + 1}" for t in range(frames)]


def test_without_out_the_text_goes_to_the_terminal(capsys):
    assert draw.main(["cell"]) == 0
    assert capsys.readouterr().out == draw.draw_steps(1)


def test_dot_is_written_as_it_is(tmp_path):
    draw.main(["steps", "--out", str(tmp_path / "steps.dot")])
    assert (tmp_path / "steps.dot").read_text() == draw.draw_steps(3)
    draw.main(["loss", "--readable", "--out", str(tmp_path / "loss.dot")])
    assert (tmp_path / "loss.dot").read_text() == draw.draw_loss(model_of("readable"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cell", "--out", "cell.png"], r"--out: expected a name ending in .dot or .svg; got 'cell.png'"),
        (["gru"], "invalid choice: 'gru'"),
        (["cell", "--out", "cell.svg"], "needs Graphviz's program dot"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=message):
        draw.main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_one_line_and_status_2():
    command = [sys.executable, "-m", "minilstm.draw", "cell", "--out", "cell.png"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: --out: expected a name ending in .dot or .svg; got 'cell.png'\n"


@pytest.mark.parametrize("what", ["cell", "steps", "loss"])
def test_the_pictures_in_docs_are_of_this_model(what, capsys):
    """To draw them anew: python -m minilstm.draw cell --out docs/images/graph-cell.svg, and so on."""
    draw.main([what])
    expected = [line for label in labels(capsys.readouterr().out) for line in label.split("\\n")]
    picture = ElementTree.parse(IMAGES / f"graph-{what}.svg")
    nodes = picture.iterfind(".//{*}g[@class='node']/{*}text")
    assert sorted(text.text for text in nodes) == sorted(expected)
