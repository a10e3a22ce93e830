"""python -m minilstm.anatomy: the page's numbers are the model's, its gradients the fused backward pass's."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tiny import train_tiny, write_text

import train.anatomy
from autograd import InputError, Variable, evaluation_mode
from minilstm import LanguageModel, MaskStream, ModelConfig, anatomy, dissection, drawn_masks, first_model
from minilstm.lstm import GATES

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ["<eos>", "<unk>", "the", "cat", "sees", "a", "fish", "and", "dog", ".", "not", "rain"]
WORDS = ["the", "cat", "sees", "a", "fish"]
SIZES = {"vocab_size": 12, "embedding_size": 5, "hidden_size": 7, "num_layers": 2}
KINDS = {
    "plain": SIZES,
    "residual": {**SIZES, "hidden_size": 5, "residual": True},
    "adaptive": {**SIZES, "softmax": "adaptive", "adaptive_bands": (4, 9)},
    "untied": {**SIZES, "last_hidden_size": 6, "tied_weights": False, "num_layers": 1},
    "layer_norm": {**SIZES, "layer_norm": True, "layer_norm_epsilon": 1e-3},
}


def built(**knobs):
    model = LanguageModel(ModelConfig(**{**SIZES, **knobs}), seed=1, dtype=np.float64)
    model.flat_parameters *= 2
    if model.config.layer_norm:  # gains and shifts that differ, as learning makes them
        rng = np.random.default_rng(5)
        for layer in model.layers:
            for vector in layer.vectors:
                vector.data += 0.3 * rng.standard_normal(vector.shape)
    return model


def sentence(words=WORDS):
    ids = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in words]
    return anatomy.sentence_of(words, ids, VOCABULARY, 0)


@pytest.fixture(scope="module", params=KINDS)
def dissected(request):
    """A model and what the page tells of it; arrays as such."""
    model = built(**KINDS[request.param])
    return model, dissection.dissect(model, sentence(), VOCABULARY)


def text():
    ids = np.array(sentence().ids)[:, None]
    return ids[:-1], ids[1:]


def near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_values_are_those_of_the_fused_lstm(dissected):
    model, found = dissected
    inputs, _ = text()
    with evaluation_mode():
        for t in range(len(inputs)):
            _, state = model.encode(inputs[: t + 1], None)
            for layer, (h, c) in zip(found["layers"], state, strict=True):
                near(layer["values"]["h"][t], h.data[0])
                near(layer["values"]["c"][t], c.data[0])


def differentiated(model, loss, t, state):
    """One loss of the sentence, differentiated by the fused functions from step t on, `state` before it."""
    inputs, targets = text()
    targets = targets.copy()
    share = (len(inputs) - t) / len(inputs)
    if loss == "last":
        targets[:-1], share = -1, 1.0
    model.zero_grads()
    with evaluation_mode():
        (model(inputs[t:], targets[t:], state)[0] * share).backward()


@pytest.mark.parametrize("loss", ["all", "last"])
def test_what_arrives_from_the_next_step_is_the_engines_gradient_of_its_state(dissected, loss):
    model, found = dissected
    layers = found["layers"]
    for t in range(1, len(WORDS)):
        state = [
            tuple(Variable(np.array([layer["values"][name][t - 1]])) for name in "hc") for layer in layers
        ]
        differentiated(model, loss, t, state)
        for layer, (h, c) in zip(layers, state, strict=True):
            near(layer["gradients"][loss]["h_on"][t - 1], h.grad[0])
            near(layer["gradients"][loss]["c_on"][t - 1], c.grad[0])
    for layer in layers:
        assert not np.any([layer["gradients"][loss][name][-1] for name in ("h_on", "c_on")])


@pytest.mark.parametrize("loss", ["all", "last"])
def test_the_gates_gradients_add_up_to_the_engines_gradients_of_the_weights(dissected, loss):
    model, found = dissected
    differentiated(model, loss, 0, None)
    for layer, weights in zip(found["layers"], model.layers, strict=True):
        normalizes = "norm" in layer
        before, after = ("a" if normalizes else "z"), np.array(layer["values"]["h"])
        da, dz = (
            np.hstack([layer["gradients"][loss][f"{name}_{gate}"] for gate in GATES])
            for name in (before, "z")
        )
        near(dz.sum(axis=0), weights.vectors[1 if normalizes else 0].grad)  # the shift, or the bias
        near(da[1:].T @ after[:-1], weights.W_hh.grad)


def arrays(by_name):
    return {name: np.array(values) for name, values in by_name.items()}


def test_every_equation_holds_between_the_shown_numbers(dissected):
    """What the page fills in, from the numbers in it: (1) to (11), of a normalised cell (50) to (60)."""
    _, found = dissected
    for layer in found["layers"]:
        v, norm = arrays(layer["values"]), layer.get("norm")
        before = np.vstack([np.zeros_like(v["c"][:1]), v["c"][:-1]])
        for gate in GATES:
            products = v[f"x_{gate}"] + v[f"h_{gate}"]
            if norm:
                near(products, v[f"a_{gate}"])  # (50)
                near(normalized(norm[gate], v[f"a_{gate}"]) + (gate == "f"), v[f"z_{gate}"])  # (51)
            else:
                near(products + layer["bias"][gate], v[f"z_{gate}"])  # (1)
            squashed = np.tanh(v[f"z_{gate}"]) if gate == "g" else 1 / (1 + np.exp(-v[f"z_{gate}"]))
            near(v[gate], squashed)  # (2), (3)
        i, f, g, o = (v[gate] for gate in GATES)
        near(v["s" if norm else "c"], f * before + i * g)  # (4), (52)
        if norm:
            near(normalized(norm["s"], v["s"]), v["c"])  # (53)
        near(v["h"], o * np.tanh(v["c"]))  # (5)
        for loss, by_name in layer["gradients"].items():
            d = arrays(by_name)
            ds = d["s" if norm else "c"]
            near(d["h"], d["y"] + d["h_on"])  # (6)
            near(d["c"], d["c_on"] + d["h"] * o * (1 - np.tanh(v["c"]) ** 2))  # (7)
            near(d["z_i"], ds * g * i * (1 - i))  # (8), (56)
            near(d["z_f"], ds * before * f * (1 - f))
            near(d["z_g"], ds * i * (1 - g**2))
            near(d["z_o"], d["h"] * np.tanh(v["c"]) * o * (1 - o))  # (9)
            near(d["c_on"][:-1], (ds * f)[1:])  # (10), (57)
            near(d["h_on"], sum(d[f"through_{gate}"] for gate in GATES))  # (11), (60)
            if norm:
                near(ds, undone(norm["s"], d["c"], loss))  # (55)
                for gate in GATES:
                    near(d[f"a_{gate}"], undone(norm[gate], d[f"z_{gate}"], loss))  # (59)


def normalized(norm, x):
    n = (x - np.array(norm["mean"])[:, None]) / np.array(norm["std"])[:, None]
    near(n, norm["n"])
    return norm["gain"] * n + norm["shift"]


def undone(norm, dy, loss):
    u, un = (np.array(norm["back"][loss][name])[:, None] for name in ("u", "un"))
    return (np.array(norm["gain"]) * dy - u - np.array(norm["n"]) * un) / np.array(norm["std"])[:, None]


def test_every_gradient_agrees_with_differences(dissected):
    _, found = dissected
    for layer in found["layers"]:
        for loss, by_name in layer["numerical"].items():
            names = dissection.NUDGED + dissection.NORMALIZED * ("norm" in layer)
            assert sorted(by_name) == sorted(names)
            for name, numerical in by_name.items():
                assert np.max(layer["error"][loss][name]) <= 1e-6
                assert np.abs(numerical).max() > 1e-6
                analytic = layer["gradients"][loss][name]
                np.testing.assert_allclose(numerical, analytic, rtol=1e-6, atol=1e-6 * np.abs(analytic).max())


def test_a_wrong_gradient_is_told_by_its_error():
    numerical = np.array([[1.0, 1e-9], [-2.0, 0.0]])
    assert dissection.relative_error(numerical * 1.001, numerical).max() == pytest.approx(1e-3, rel=0.01)
    assert dissection.relative_error(numerical, numerical).max() == 0
    assert dissection.relative_error(np.zeros((1, 1)), np.zeros((1, 1))).max() == 0


def test_next_words_and_losses_are_the_models(dissected):
    model, found = dissected
    inputs, targets = text()
    with evaluation_mode():
        h, _ = model.encode(inputs, None)
        loss = model(inputs, targets)[0].item()
    p = np.exp(model.log_probs(h.data[:, 0]))
    for step, probabilities, target in zip(found["next"], p, targets[:, 0], strict=True):
        assert step["target"] == pytest.approx(probabilities[target], rel=1e-9)
        assert [probability for _, probability in step["top"]] == pytest.approx(sorted(probabilities)[:-6:-1])
        assert VOCABULARY.index(step["top"][0][0]) == probabilities.argmax()
        assert sorted(probabilities)[-step["rank"]] == probabilities[target]
    assert found["losses"] == pytest.approx({"all": loss, "last": -np.log(p[-1, targets[-1, 0]])})


def test_forget_gates_near_one_let_the_gradient_of_the_cell_live():
    model = built()
    inputs, targets = (np.tile(part, (4, 1)) for part in text())
    learned, near_one, half = dissection.memory(model, inputs, targets)
    assert (learned["forget"], near_one["forget"], half["forget"]) == (None, 0.99, 0.5)
    left = [curve["layers"][0]["c"][0] / curve["layers"][0]["c"][-2] for curve in (near_one, half)]
    assert left[0] > 100 * left[1]
    steps = dissection.watch(model, inputs, targets, only_last=True).layers[1]
    near(learned["layers"][1]["f"], np.mean([step.gates[1].data[0] for step in steps], axis=0))
    near(learned["layers"][1]["h"], [np.linalg.norm(step.h.grad) for step in steps])


@pytest.mark.parametrize("kinds", [("rows", "locked"), ("elements", "per_step")])
def test_masks_are_the_models_own(kinds):
    rows, locked = kinds
    names = [name for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")]
    keeps = dict.fromkeys(names, 0.5)
    model = built(**keeps, encoder_emb_dropout=rows, activation_dropout=locked)
    inputs, targets = text()
    found = {mask["place"]: mask for mask in drawn_masks.drawn_masks(model, inputs, targets, seed=3)}
    assert len(found) == 2 + 2 * 5
    stream = MaskStream(3)
    expected = stream.weight_mask("recurrent_weight.1", (20, 5), 0.5) != 0
    assert found["recurrent_weight.1"]["rows"] == [
        "".join("01"[k] for k in row.astype(int)) for row in expected
    ]
    assert found["recurrent_weight.1"]["dropped"] == pytest.approx(1 - expected.mean())
    steps = stream.step_mask("candidate.0", (5, 1, 7), 0.5)[:, 0] != 0
    assert found["candidate.0"]["rows"] == ["".join("01"[k] for k in row.astype(int)) for row in steps]
    assert {
        len(mask["rows"]) for place, mask in found.items() if place.startswith(("input.", "output."))
    } == {5}
    assert (len(set(found["output.0"]["rows"])) == 1) == (locked == "locked")
    if rows == "rows":
        words = stream.weight_mask("embedding", (12,), 0.5)[inputs[:, 0]] != 0
        assert found["embedding"]["rows"] == ["".join("01"[k] for k in words.astype(int))]
    else:
        assert np.shape([list(row) for row in found["embedding"]["rows"]]) == (5, 5)


def test_without_dropout_there_are_no_masks():
    assert drawn_masks.drawn_masks(built(), *text()) == []


def test_of_a_larger_layer_the_units_with_most_gradient_are_shown():
    model = built(hidden_size=9)
    few, all_ = (dissection.dissect(model, sentence(), VOCABULARY, n)["layers"][0] for n in (3, 24))
    strength = np.abs(all_["gradients"]["all"]["c"]).sum(axis=0)
    assert few["units"] == sorted(np.argsort(-strength)[:3])
    for name in ("z_f", "c"):
        near(np.array(all_["gradients"]["last"][name])[:, few["units"]], few["gradients"]["last"][name])
        near(np.array(all_["numerical"]["last"][name])[:, few["units"]], few["numerical"]["last"][name])
    assert all_["units"] == list(range(9))


@pytest.mark.parametrize("cell", ["plain", "layer_norm"])
def test_the_lines_of_code_are_those_of_the_files(cell):
    code = anatomy.code_of_equations(cell)
    assert sorted(code) == sorted(anatomy.EQUATIONS[cell])
    for number, blocks in code.items():
        files = [block["file"] for block in blocks]
        assert "minilstm/lstm.py" in files or f"minilstm/{cell}_lstm.py" in files
        forward = number <= 5 or 50 <= number <= 53
        assert (blocks[0]["file"] == "minilstm/lstm_cell.py") == forward
        for block in blocks:
            source = (ROOT / block["file"]).read_text(encoding="utf-8").split("\n")
            hits = [line for line in block["lines"] if line["hit"]]
            assert hits
            assert all(line["text"].strip() == source[line["number"] - 1].strip() for line in block["lines"])
            assert all(f"({number})" in line["text"] for line in hits)
    if cell == "plain":
        assert "dc_t *= f[t, :, units]" in code[10][0]["lines"][-1]["text"]
        assert {block["within"] for block in code[8]} == {"LSTM.backward", "local_derivatives"}
    else:
        assert "undo_normalization(dc_t," in code[55][0]["lines"][-1]["text"]
        assert {block["within"] for block in code[43]} == {"undo_normalization"}


class Scripts(HTMLParser):
    """The contents of a page's script elements, as a browser would part them; and its title."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.title, self.inside = [], "", None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside == "title":
            self.title += data


HOSTILE = ["the", '</script><script>alert("x")</script>', "<!--", "'\"&amp;", "\u2028", "{{script}}", "cat"]


def test_a_sentence_cannot_leave_its_place(tmp_path, capsys):
    anatomy.write_page(tmp_path / "a.html", built(), sentence(HOSTILE), VOCABULARY, "A <b>model</b>.")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    parsed = Scripts(page)
    data, script = parsed.scripts
    assert json.loads(data)["sentence"]["words"][1:] == HOSTILE
    assert json.loads(data)["model"] == "A <b>model</b>."
    sources = [ROOT / "minilstm/anatomy_page" / name for name in ("equations.js", "page.js")]
    assert script.strip() == "\n".join(path.read_text(encoding="utf-8") for path in sources).strip()
    assert parsed.title == f"Anatomy of “{' '.join(HOSTILE)}”"
    assert capsys.readouterr().err.startswith("not in the vocabulary, read as <unk>: </script>")


def test_the_page_is_one_small_file_that_asks_for_nothing(tmp_path):
    model = built(embedding_size=24, hidden_size=24)
    anatomy.write_page(tmp_path / "a.html", model, sentence(WORDS), VOCABULARY, "A model.")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 2_000_000 * len(WORDS) / 25  # 25 words are a typical sentence and more
    assert "default-src 'none'" in page
    assert not [part for part in ("http://", "https://", "url(", "@import", "innerHTML") if part in
                page.replace("http://www.w3.org/2000/svg", "")]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    anatomy.write_page(tmp_path / "a.html", model, sentence(["the", "dog"]), VOCABULARY, "A model.")
    assert "Anatomy of “the dog”" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "sentence: is empty; give some words"),
        ([" \n"], "sentence: is empty; give some words"),
        (["the \udcff"], "sentence: must be UTF-8; got 'the \\udcff'"),
        (["the " * 41], "sentence: must have at most 40 words and signs; got 41"),
        (["the value", "--out", "page.png"], "--out: expected a name ending in .html; got 'page.png'"),
        (["the value", "--out", "mine.html"], "--out: mine.html is there and is no page of this command"),
        (["the value", "--out", "gone/a.html"], "--out: the folder gone is not there; make it first"),
        (["the value", "--out", "folder.html"], "--out: folder.html is a folder; give the name of a file"),
        (["the value", "--units", "0"], "--units: must be within 1 and 64; got 0"),
        (["the value", "--steps", "0"], "--steps: must be at least 1; got 0"),
        (["the value", "--seed", "-1"], "--seed: must be at least 0; got -1"),
        (["--run", "runs/mine"], "--run: a run is looked into by python -m train.anatomy runs/mine"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_learned(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(anatomy, "train_first_model", lambda **knobs: pytest.fail("learned"))
    (tmp_path / "mine.html").write_text("<!doctype html>\nmine")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError) as raised:
        anatomy.main(arguments)
    assert message in str(raised.value)
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>\nmine"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_picture_in_docs_is_small():
    """To take it anew: docs/look_inside.md has the commands."""
    assert (ROOT / "docs/images/anatomy.png").stat().st_size < 300_000


def test_a_model_that_diverged_is_refused(tmp_path):
    model = built()
    model.flat_parameters[3] = np.nan
    with pytest.raises(InputError, match="holds numbers that are not finite"):
        anatomy.write_page(tmp_path / "a.html", model, sentence(), VOCABULARY, "A model.")


def test_the_first_model_learns_and_is_the_same_each_time():
    losses = []
    model, vocabulary = first_model.train_first_model(
        units=8, layers=1, steps=60, progress=lambda step, loss: losses.append(loss)
    )
    assert losses[0] == pytest.approx(np.log(len(vocabulary)), rel=0.01)
    assert np.mean(losses[-10:]) < losses[0] - 1
    again, _ = first_model.train_first_model(units=8, layers=1, steps=60)
    assert (model.flat_parameters == again.flat_parameters).all()


def test_a_first_model_of_normalised_cells(tmp_path):
    out = tmp_path / "a.html"
    arguments = ["the value", "--layer-norm", "--steps", "2", "--units", "1", "--out", str(out)]
    assert anatomy.main(arguments) == 0
    data = json.loads(Scripts(out.read_text(encoding="utf-8")).scripts[0])
    assert data["cell"] == "layer_norm"
    assert {"50", "53", "55", "59"} <= set(data["code"])


def test_a_readers_text_is_cut_into_words_and_loses_none():
    assert first_model.words_of("Don’t say “naïve” @ 3.5 </b>") == [
        "don't", "say", "“", "naïve", "”", "@", "3", ".", "5", "<", "/", "b", ">",
    ]  # fmt: skip


@pytest.mark.long
def test_the_command_writes_a_page_of_a_model_that_has_learned(tmp_path):
    """With the updates that it has by default; of one unit alone, whose checks take no time."""
    command = [
        sys.executable,
        "-m",
        "minilstm.anatomy",
        "The value of zzz is returned.",
        "--units",
        "1",
        "--out",
    ]
    result = subprocess.run([*command, str(tmp_path / "a.html")], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "not in the vocabulary, read as <unk>: zzz\n")
    assert result.stdout.startswith(f"wrote {tmp_path / 'a.html'} (")
    data = json.loads(Scripts((tmp_path / "a.html").read_text(encoding="utf-8")).scripts[0])
    assert data["model"].endswith("help topics for 700 updates.")
    assert data["losses"]["all"] < np.log(data["sizes"]["vocabulary"]) - 2
    worst = max(np.max(e) for layer in data["layers"] for by in layer["error"].values() for e in by.values())
    assert worst <= 1e-6
    result = subprocess.run([*command, "a.png"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --out: expected a name ending in .html; got 'a.png'\n"


def test_a_run_is_looked_into(tmp_path, capsys):
    run = tmp_path / "run"
    train_tiny(1, write_text(tmp_path / "text.txt"), run, max_steps=3)
    capsys.readouterr()  # what the training said
    out = tmp_path / "a.html"
    assert train.anatomy.main([str(run), "The cat sees rain, zebra", "--out", str(out), "--units", "4"]) == 0
    said = capsys.readouterr()
    assert said.err == "not in the vocabulary, read as <unk>: , zebra\n"
    data = json.loads(Scripts(out.read_text(encoding="utf-8")).scripts[0])
    assert data["sentence"]["words"] == ["<eos>", "the", "cat", "sees", "rain", ",", "zebra"]
    assert data["sentence"]["names"][-2:] == ["<unk>", "<unk>"]
    assert data["model"] == f"The model of {run}, after 3 updates."
    assert [len(layer["units"]) for layer in data["layers"]] == [4, 4]
    assert [mask["place"] for mask in data["masks"]] == [
        "embedding", "recurrent_weight.0", "input.0", "recurrent_weight.1", "input.1", "output.1",
    ]  # fmt: skip
    for words, message in [
        ("xylophone", "the model knows none of its words"),
        ("the " * 41, "at most 40 words"),
    ]:
        with pytest.raises(InputError, match=message):
            train.anatomy.main([str(run), words, "--out", str(out)])
    with pytest.raises(InputError, match="expected the folder of a run"):
        train.anatomy.main([str(tmp_path), "the cat", "--out", str(out)])
