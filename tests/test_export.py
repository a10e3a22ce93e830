"""Weights that leave and come back: the same perplexity on both sides, and bad files refused in one line."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi import ROOT, run_ranks
from tiny import write_text

import train.evaluate
import train.plot
import train.weight_files
import train.wt103
from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig, to_torch_state_dict
from train import export, import_weights
from train.awd_names import plain_names
from train.config import RunConfig, TrainConfig
from train.corpus import open_corpus
from train.import_weights import write_run
from train.prepare import ensure_prepared, prepare
from train.run_folder import load_trained
from train.weight_files import SUFFIXES, read_tensors, write_tensors

SIZES = {"embedding_size": 6, "hidden_size": 9, "num_layers": 3}


def needs(form):
    if form != "npz":
        pytest.importorskip(form)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared text."""
    folder = tmp_path_factory.mktemp("data")
    return prepare(write_text(folder / "text.txt"), folder / "text.h5")


def make_run(path, data, scale=6, **knobs):
    """A run's folder with random weights, scaled to be far from uniform predictions."""
    with open_corpus(data) as corpus:
        vocabulary = corpus.vocabulary
    model_knobs = {**SIZES, "vocab_size": len(vocabulary), "encoder_emb_keep_prob": 0.9, **knobs}
    config = RunConfig(model_knobs, TrainConfig(data=str(data), batch_size=7))
    model = LanguageModel(config.model_config(), seed=4)
    model.flat_parameters *= scale
    write_run(path, model, config, vocabulary, step=123)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("run") / "run", data)


def loss_of(run, capsys):
    """Nats per token of the test split, as the command tells them."""
    capsys.readouterr()
    assert train.evaluate.main([str(run), "--json", "--batch-size", "1"]) == 0
    return json.loads(capsys.readouterr().out)["loss"]


def documented():
    """The names defined by the PyTorch code in docs/exchange.md."""
    (code,) = re.findall(r"^```py\n(.*?)^```$", (ROOT / "docs" / "exchange.md").read_text(), re.M | re.S)
    names = {}
    exec(compile(code, "docs/exchange.md", "exec"), names)
    return names


def torch_loss(model, data, words):
    """The same of a PyTorch model whose ids are those of `words`; state carried through the split."""
    import torch

    with open_corpus(data) as corpus:
        tokens = corpus.read("test", 0, corpus.num_tokens("test"))
        ids = np.array([words.index(word) for word in corpus.vocabulary.words])[tokens]
        eos = words.index("<eos>")
    inputs = torch.tensor(np.concatenate([[eos], ids[:-1]]))[:, None]
    torch.set_num_threads(1)  # more of them only wait for each other over matrices as small as these
    with torch.no_grad():
        logits, _ = model.eval()(inputs)
    return torch.nn.functional.cross_entropy(logits[:, 0], torch.tensor(ids)).item()


@pytest.mark.parametrize("form", SUFFIXES)
def test_an_exported_model_has_the_same_perplexity_in_torch(run, data, tmp_path, capsys, form):
    torch = pytest.importorskip("torch")
    needs(form)
    path = tmp_path / f"weights{SUFFIXES[form]}"
    assert export.main([str(run), "--to", form, "--output", str(path)]) == 0
    names = documented()
    if form == "torch":
        peer, words = names["load"](path)
        assert peer.encoder.weight is peer.decoder.weight
    else:
        facts = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
        peer, words = names["Reference"](**facts["configuration"]["model"]), facts["words"]
        peer.load_state_dict({name: torch.tensor(array) for name, array in read_tensors(path).items()})
    ours, theirs = loss_of(run, capsys), torch_loss(peer, data, words)
    assert ours > 1.5  # weights that were lost would predict no worse than this text's few words allow
    assert np.exp(theirs) == pytest.approx(np.exp(ours), rel=1e-5)


@pytest.mark.parametrize("form", SUFFIXES)
def test_an_exported_run_comes_back_bit_for_bit(run, tmp_path, capsys, form):
    needs(form)
    path = tmp_path / f"model{SUFFIXES[form]}"
    export.main([str(run), "--to", form, "--output", str(path)])
    returned = tmp_path / "returned"
    assert import_weights.main([str(path), "--run-dir", str(returned)]) == 0
    capsys.readouterr()
    (model, config, words, facts), (other, its_config, its_words, its_facts) = map(
        load_trained, (run, returned)
    )
    assert model.flat_parameters.tobytes() == other.flat_parameters.tobytes()
    assert (config, words.words) == (its_config, its_words.words)
    assert its_facts["position"]["step"] == facts["position"]["step"] == 123
    assert {file.name for file in returned.iterdir()} == {"config.toml", "vocabulary.txt", "checkpoints"}


def test_the_default_output_lies_in_the_run_and_nothing_is_written_over(data, tmp_path, capsys):
    run = make_run(tmp_path / "run", data)
    export.main([str(run), "--to", "npz"])
    printed = capsys.readouterr().out
    assert f"weights: {run / 'model.npz'}, " in printed
    assert str(run / "model.npz.json") in printed
    before = (run / "model.npz").read_bytes()
    with pytest.raises(InputError, match="model.npz: is there already; remove it, or choose another"):
        export.main([str(run), "--to", "npz", "--checkpoint", "latest"])
    assert (run / "model.npz").read_bytes() == before
    (run / "model.npz").unlink()
    with pytest.raises(InputError, match="model.npz.json: is there already"):
        export.main([str(run), "--to", "npz"])
    assert not (run / "model.npz").exists()


def test_a_torch_file_holds_the_tied_matrix_once(run, tmp_path):
    needs("torch")
    model, *_ = load_trained(run)
    tensors = to_torch_state_dict(model)
    write_tensors(tmp_path / "a.pt", "torch", tensors, {})
    alone = {name: array for name, array in tensors.items() if name != "decoder.weight"}
    write_tensors(tmp_path / "b.pt", "torch", alone, {})
    grown = (tmp_path / "a.pt").stat().st_size - (tmp_path / "b.pt").stat().st_size
    assert grown < model.embedding.data.nbytes


def test_safetensors_are_read_by_its_own_package_and_name_the_vocabulary(run, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    export.main([str(run), "--to", "safetensors", "--output", str(tmp_path / "x")])
    model, _, vocabulary, _ = load_trained(run)
    with safetensors.safe_open(tmp_path / "x", framework="numpy") as file:
        assert file.metadata()["vocabulary"] == vocabulary.fingerprint()
        np.testing.assert_array_equal(file.get_tensor("rnns.1.weight_hh_l0"), model.layers[1].W_hh.data)


@pytest.mark.parametrize("form", SUFFIXES)
def test_whoever_may_read_other_files_may_read_these(run, tmp_path, form):
    needs(form)
    (tmp_path / "other").write_text("")
    export.main([str(run), "--to", form, "--output", str(tmp_path / "x")])
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def no_disk(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export, "sha256", no_disk)  # after the weights, before the words
    with pytest.raises(InputError, match="cannot be written: No space left"):
        export.main([str(run), "--to", "npz", "--output", str(tmp_path / "new" / "x.npz")])
    assert list(tmp_path.iterdir()) == []


# From elsewhere.


def awd_model(torch, vocab_size, tied=True):
    """As AWD-LSTM makes it: two biases for each layer, none of them zero."""
    torch.manual_seed(0)
    knobs = {"vocab_size": vocab_size, **SIZES, "tied_weights": tied}
    if not tied:
        knobs["last_hidden_size"] = SIZES["hidden_size"]
    model = documented()["Reference"](**knobs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.6, 0.6)
    return model


def renamed(tensors, form):
    """A state_dict by the names that some version of AWD-LSTM has for it."""
    if form == "plain":
        return tensors
    if form == "tied decoder left out":
        return {name: value for name, value in tensors.items() if name != "decoder.weight"}
    if form == "DataParallel":
        return {f"module.{name}": value for name, value in tensors.items()}
    if form == "state_dict":
        return {"epoch": 3, "state_dict": tensors}
    found = {}
    for name, value in tensors.items():
        layer = re.fullmatch(r"(rnns\.\d)\.(.*)", name)
        if not layer:
            found[("1." if name[0] == "d" else "0.") * (form == "fastai") + name] = value
        elif form == "weight drop" and name.endswith("weight_hh_l0"):
            found[f"{layer[1]}.module.{layer[2]}_raw"] = value
        elif form == "weight drop":
            found[f"{layer[1]}.module.{layer[2]}"] = value
        elif name.endswith("weight_hh_l0"):
            found[f"0.{layer[1]}.{layer[2]}_raw"] = value
            found[f"0.{layer[1]}.module.{layer[2]}"] = value * 0  # the copy with a mask on
        else:
            found[f"0.{layer[1]}.module.{layer[2]}"] = value
    if form == "fastai":
        found["0.encoder_dp.emb.weight"] = found["0.encoder.weight"]
    return found


def foreign_words(data):
    """The data's words in another order, as a system with other ids has them."""
    with open_corpus(data) as corpus:
        words = corpus.vocabulary.words
    return [words[index] for index in np.random.default_rng(8).permutation(len(words))]


FORMS = ["plain", "tied decoder left out", "DataParallel", "state_dict", "weight drop", "fastai"]


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_awd_lstm_has_the_same_perplexity_here(data, tmp_path, capsys, form):
    torch = pytest.importorskip("torch")
    words = foreign_words(data)
    theirs = awd_model(torch, len(words))
    torch.save(renamed(theirs.state_dict(), form), tmp_path / "awd.pt")
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    arguments = ["--words", str(tmp_path / "words.txt"), "--data", str(data)]
    assert (
        import_weights.main([str(tmp_path / "awd.pt"), *arguments, "--run-dir", str(tmp_path / "run")]) == 0
    )
    ours = loss_of(tmp_path / "run", capsys)
    assert np.exp(ours) == pytest.approx(np.exp(torch_loss(theirs, data, words)), rel=1e-5)


@pytest.mark.skipif("tied_weights" not in ModelConfig.__dataclass_fields__, reason="weights are always tied")
def test_untied_weights_have_the_same_perplexity_both_ways(data, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    words = foreign_words(data)
    theirs = awd_model(torch, len(words), tied=False)
    torch.save(theirs.state_dict(), tmp_path / "awd.pt")
    (tmp_path / "words.json").write_text(json.dumps(words))
    arguments = ["--words", str(tmp_path / "words.json"), "--data", str(data)]
    run = tmp_path / "run"
    import_weights.main([str(tmp_path / "awd.pt"), *arguments, "--run-dir", str(run)])
    expected = np.exp(torch_loss(theirs, data, words))
    assert np.exp(loss_of(run, capsys)) == pytest.approx(expected, rel=1e-5)
    export.main([str(run), "--to", "torch"])
    peer, its_words = documented()["load"](run / "model.pt")
    assert np.exp(torch_loss(peer, data, its_words)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif("residual" not in ModelConfig.__dataclass_fields__, reason="no residual connections")
def test_residual_connections_go_along(data, tmp_path, capsys):
    pytest.importorskip("torch")
    run = make_run(tmp_path / "run", data, residual=True, hidden_size=6)
    export.main([str(run), "--to", "torch"])
    peer, words = documented()["load"](run / "model.pt")
    assert np.exp(torch_loss(peer, data, words)) == pytest.approx(np.exp(loss_of(run, capsys)), rel=1e-5)
    import_weights.main([str(run / "model.pt"), "--run-dir", str(tmp_path / "other")])
    assert loss_of(tmp_path / "other", capsys) == loss_of(run, capsys)


@pytest.mark.parametrize(
    "knobs",
    [
        {"layer_norm": True},
        {"layer_norm": True, "layer_norm_epsilon": 0.3},
        {"softmax": "adaptive", "adaptive_bands": (3, 9)},
        {"softmax": "adaptive", "adaptive_bands": (4,), "tied_weights": False, "last_hidden_size": 5},
    ],
    ids=str,
)
def test_what_torch_has_no_layer_for_has_the_same_perplexity_both_ways(data, tmp_path, capsys, knobs):
    pytest.importorskip("torch")
    scale = 2 if "layer_norm" in knobs else 6  # gains of 6 make the recursion chaotic
    run = make_run(tmp_path / "run", data, scale, **knobs)
    export.main([str(run), "--to", "torch"])
    peer, words = documented()["load"](run / "model.pt")
    assert np.exp(torch_loss(peer, data, words)) == pytest.approx(np.exp(loss_of(run, capsys)), rel=1e-5)
    import_weights.main([str(run / "model.pt"), "--run-dir", str(tmp_path / "other")])
    (model, config, *_), (other, its_config, *_) = map(load_trained, (run, tmp_path / "other"))
    assert model.flat_parameters.tobytes() == other.flat_parameters.tobytes()
    assert config == its_config


def test_bands_are_not_guessed(data, tmp_path):
    run = make_run(tmp_path / "run", data, softmax="adaptive", adaptive_bands=(3,))
    weights = tmp_path / "x.npz"
    export.main([str(run), "--to", "npz", "--output", str(weights)])
    other = prepare(write_text(tmp_path / "text.txt", seed=1), tmp_path / "text.h5")
    assert "numbers the words otherwise than the weights" in refused(tmp_path, weights, "--data", other)
    Path(f"{weights}.json").unlink()
    message = "has an adaptive softmax, whose bands x.npz.json tells; put that beside it"
    assert message in refused(tmp_path, weights, "--data", data)


def test_data_alone_says_that_ids_are_its_own(run, data, tmp_path, capsys):
    model, _, vocabulary, _ = load_trained(run)
    np.savez(tmp_path / "x.npz", **to_torch_state_dict(model))
    arguments = [str(tmp_path / "x.npz"), "--data", str(data), "--run-dir", str(tmp_path / "run")]
    import_weights.main(arguments)
    other, config, its_vocabulary, _ = load_trained(tmp_path / "run")
    assert other.flat_parameters.tobytes() == model.flat_parameters.tobytes()
    assert its_vocabulary.words == vocabulary.words
    assert config.train.data == str(data)
    assert loss_of(tmp_path / "run", capsys) == loss_of(run, capsys)


def test_other_precisions_become_float32(run):
    model, *_ = load_trained(run)
    tensors = to_torch_state_dict(model)
    for dtype in (np.float16, np.float64, ">f4"):
        found = plain_names({name: array.astype(dtype) for name, array in tensors.items()}, "file")
        assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["decoder.bias"], tensors["decoder.bias"])


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_reads_half_precision_and_its_older_files(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    values = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": values.bfloat16(), "b": torch.nn.Parameter(values.half()), "c": values.T}
    torch.save({"model": tensors}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    found = read_tensors(tmp_path / "x")
    for name, expected in (("a", values), ("b", values), ("c", values.T)):
        np.testing.assert_array_equal(found[name], expected.numpy())


# Bad files and bad arguments.


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """form -> (the bytes of the weights, the text of their companion)."""
    folder, found = tmp_path_factory.mktemp("exported"), {}
    for form, suffix in SUFFIXES.items():
        if form == "npz" or importlib.util.find_spec(form):
            path = folder / f"model{suffix}"
            export.main([str(run), "--to", form, "--output", str(path)])
            found[form] = path.read_bytes(), Path(f"{path}.json").read_text(encoding="utf-8")
    return found


def refused(tmp_path, *arguments):
    """The message with which the command refuses; asserts that nothing was made."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as raised:
        import_weights.main([*map(str, arguments), "--run-dir", str(tmp_path / "deep" / "run")])
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("form", SUFFIXES)
def test_files_cut_off_anywhere_are_refused(exported, data, tmp_path, form):
    needs(form)
    whole, path = exported[form][0], tmp_path / "cut"
    for size in sorted({0, 1, 8, 9, 64, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        path.write_bytes(whole[:size])
        assert str(path) in refused(tmp_path, path, "--data", data)


@pytest.mark.parametrize("form", SUFFIXES)
def test_damaged_bytes_are_refused(exported, tmp_path, form):
    """The companion's checksum sees what the form itself does not."""
    needs(form)
    whole, companion = exported[form]
    path = tmp_path / "weights"
    (tmp_path / "weights.json").write_text(companion, encoding="utf-8")
    for place in (3, len(whole) // 2, len(whole) - 40):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert refused(tmp_path, path)


def test_objects_in_a_torch_file_are_refused_and_not_run(data, tmp_path):
    torch = pytest.importorskip("torch")

    class Mine:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"encoder.weight": Mine()}, tmp_path / "evil.pt")
    message = refused(tmp_path, tmp_path / "evil.pt", "--data", data)
    assert "save model.state_dict() instead" in message
    assert not (tmp_path / "ran").exists()
    torch.save([torch.nn.LSTM(2, 2)], tmp_path / "module.pt")
    assert "save model.state_dict() instead" in refused(tmp_path, tmp_path / "module.pt", "--data", data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda torch: [torch.zeros(2)], "must hold tensors by name; got list"),
        (lambda torch: {"encoder.weight": 3}, "must hold tensors by name; encoder.weight is none"),
        (lambda torch: {3: torch.zeros(2)}, "must hold tensors by name; got dict"),
        (lambda torch: {"a": torch.zeros(1).expand(10**6, 10**6)}, "a is not stored as plain numbers"),
        (lambda torch: {"a": torch.zeros(3).to_sparse()}, "a is not stored as plain numbers"),
    ],
)
def test_torch_files_of_other_things_are_refused(data, tmp_path, content, message):
    torch = pytest.importorskip("torch")
    torch.save(content(torch), tmp_path / "x.pt")
    assert message in refused(tmp_path, tmp_path / "x.pt", "--data", data)


def test_objects_in_an_npz_are_refused(data, tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], object))
    assert "Object arrays cannot be loaded" in refused(tmp_path, tmp_path / "x.npz", "--data", data)


def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "text").write_text("no weights at all")
    assert "expected a file of torch, safetensors or npz; it is none" in refused(
        tmp_path, tmp_path / "text", "--data", data
    )
    assert "expected a file of weights, found nothing" in refused(tmp_path, tmp_path / "gone", "--data", data)
    assert "expected a file of weights, found a folder" in refused(tmp_path, tmp_path, "--data", data)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_(name, value):
    return lambda tensors: {**tensors, name: value(tensors)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.weight"), "encoder.weight is missing; got decoder.bias, "),
        (without("decoder.bias"), "decoder.bias is missing"),
        (without("rnns.1.bias_hh_l0"), "rnns.1.bias_hh_l0 is missing"),
        (without("rnns.1.weight_hh_l0"), "rnns.1.weight_hh_l0 is missing"),
        (lambda _: {}, "encoder.weight is missing; got nothing"),
        (
            lambda tensors: {key.replace("rnns.2", "rnns.4"): value for key, value in tensors.items()},
            "layers must be rnns.0, rnns.1, … without a gap; got [0, 1, 4]",
        ),
        (
            with_("rnns.0.weight_ih_l1", lambda t: np.zeros(3)),
            "weight_ih_l1 is no weight of an AWD-LSTM",
        ),
        (with_("rnns.0.linear.weight", lambda t: np.zeros(3)), "is no weight of an AWD-LSTM"),
        (with_("decoder.bias", lambda t: t["decoder.bias"][1:]), "decoder.bias must have a row for each of"),
        (with_("encoder.weight", lambda t: t["encoder.weight"][0]), "encoder.weight must be a matrix; got"),
        (with_("rnns.1.weight_ih_l0", lambda t: np.zeros((36, 8))), "rnns.1.weight_ih_l0 must be (36, 9)"),
        (with_("rnns.1.weight_hh_l0", lambda t: np.zeros((35, 9))), "must be (4H, H); got (35, 9)"),
        (
            with_("rnns.1.weight_hh_l0", lambda t: np.zeros((40, 10))),
            "all layers but the last must be of one width; got [9, 10, 6]",
        ),
        (with_("decoder.bias", lambda t: t["decoder.bias"] * np.nan), "holds numbers that are not finite"),
        (with_("decoder.bias", lambda t: np.full(18, 1e300)), "holds numbers that are not finite"),
        (
            with_("decoder.bias", lambda t: t["decoder.bias"].astype(int)),
            "must be of floating point; got int",
        ),
        (
            with_("rnns.0.module.bias_ih_l0", lambda t: t["rnns.0.bias_ih_l0"] + 1),
            "rnns.0.module.bias_ih_l0 and rnns.0.bias_ih_l0 differ, and are one weight",
        ),
    ],
)
def test_weights_of_another_model_are_refused(run, data, tmp_path, change, message):
    model, *_ = load_trained(run)
    np.savez(tmp_path / "x.npz", **change(to_torch_state_dict(model)))
    assert message in refused(tmp_path, tmp_path / "x.npz", "--data", data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda words: words[1:], "must have a row for each of"),
        (lambda words: [*words[1:], words[1]], "different words"),
        (
            lambda words: [word.replace("<unk>", "unknown") for word in words],
            "the word <unk>, which is missing",
        ),
        (lambda words: [word.replace("cat", "lion") for word in words], "1 words (cat) there are not among"),
        (lambda words: [word.replace("cat", "a cat") for word in words], "without white space; got 'a cat'"),
        (lambda words: [word.replace("cat", "") for word in words], "without white space; got ''"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_words_that_do_not_fit_are_refused(run, data, tmp_path, words, message, suffix):
    model, _, vocabulary, _ = load_trained(run)
    np.savez(tmp_path / "x.npz", **to_torch_state_dict(model))
    file, changed = tmp_path / f"words{suffix}", words(vocabulary.words)
    file.write_text(json.dumps(changed) if suffix == ".json" else "\n".join(changed) + "\n")
    assert message in refused(tmp_path, tmp_path / "x.npz", "--data", data, "--words", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[3]", "its words must be a list of texts"),
        (b"{}", "its words must be a list of texts"),
        (b"[", "is not JSON"),
        (b"\xff", "is not UTF-8 text"),
        (b'["\\ud800"]', "must be one word"),
        (None, "cannot be read (no such file"),
    ],
)
def test_files_of_words_that_are_none_are_refused(run, tmp_path, content, message):
    model, *_ = load_trained(run)
    np.savez(tmp_path / "x.npz", **to_torch_state_dict(model))
    if content is not None:
        (tmp_path / "words.json").write_bytes(content)
    assert message in refused(tmp_path, tmp_path / "x.npz", "--words", tmp_path / "words.json")


def companions():
    def changed(**values):
        return lambda text: json.dumps({**json.loads(text), **values})

    def other_words(text):
        facts = json.loads(text)
        return json.dumps({**facts, "words": facts["words"][::-1]})

    def other_knob(text):
        facts = json.loads(text)
        facts["configuration"]["model"]["hiden_size"] = 3
        return json.dumps(facts)

    return [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "[]", "expected what train.export writes beside weights"),
        (changed(format="x"), "expected what train.export writes beside weights"),
        (changed(version=2), "is of version 2, this program reads 1"),
        (changed(weights={"sha256": "0" * 64}), "was not written beside these weights, or is damaged"),
        (changed(weights=None), "was not written beside these weights, or is damaged"),
        (changed(configuration=None), "was not written beside these weights, or is damaged"),
        (other_words, "its words were changed after they were written"),
        (other_knob, "unknown key 'hiden_size' in [model]"),
    ]


@pytest.mark.parametrize(("change", "message"), companions())
def test_companions_that_were_changed_are_refused(exported, tmp_path, change, message):
    whole, companion = exported["npz"]
    (tmp_path / "x.npz").write_bytes(whole)
    (tmp_path / "x.npz.json").write_text(change(companion), encoding="utf-8")
    assert message in refused(tmp_path, tmp_path / "x.npz")


def test_without_words_nothing_is_guessed(exported, tmp_path):
    (tmp_path / "x.npz").write_bytes(exported["npz"][0])
    message = refused(tmp_path, tmp_path / "x.npz")
    assert "x.npz.json is not beside it, which would tell the words; give --words FILE, or --data" in message


def test_a_folder_in_use_is_left_as_it_is(exported, run, data, tmp_path):
    (tmp_path / "x.npz").write_bytes(exported["npz"][0])
    (tmp_path / "notes.txt").write_text("mine")
    for folder, message in ((run, "holds a run already"), (tmp_path, "expected a new folder")):
        with pytest.raises(InputError, match=message):
            import_weights.main([str(tmp_path / "x.npz"), "--data", str(data), "--run-dir", str(folder)])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "x.npz"]


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_package_that_is_missing_is_named(exported, run, data, tmp_path, monkeypatch, package):
    if package in exported:
        (tmp_path / "x").write_bytes(exported[package][0])
    else:
        (tmp_path / "x").write_bytes({"torch": b"\x80\x02}.", "safetensors": bytes(8) + b"{}"}[package])
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    assert "not installed; install it: pip install torch safetensors" in refused(
        tmp_path, tmp_path / "x", "--data", data
    )
    with pytest.raises(InputError, match="not installed"):
        export.main([str(run), "--to", package, "--output", str(tmp_path / "new" / "y")])
    assert not (tmp_path / "new").exists()


def test_the_commands_exit_2_on_bad_input_without_a_traceback(exported, tmp_path):
    (tmp_path / "cut.npz").write_bytes(exported["npz"][0][:100])
    arguments = [str(tmp_path / "cut.npz"), "--data", "python-docs", "--run-dir", str(tmp_path / "run")]
    result = run_ranks(1, "train.import_weights", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == f"error: {tmp_path / 'cut.npz'}: is cut off: an archive whose end is missing; copy it anew\n"
    )
    result = run_ranks(1, "train.export", str(tmp_path), "--to", "npz")
    assert (result.returncode, result.stdout) == (2, "")
    assert "expected the folder of a run" in result.stderr


def test_data_is_prepared_with_the_runs_own_minimum_count(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    text = write_text(tmp_path / "text.txt")
    with open_corpus(ensure_prepared(text, min_count=110)) as corpus:
        vocabulary = corpus.vocabulary
    with open_corpus(ensure_prepared(text)) as corpus:
        assert len(corpus.vocabulary) > len(vocabulary)
    knobs = {**SIZES, "vocab_size": len(vocabulary)}
    config = RunConfig(knobs, TrainConfig(data=str(text), min_count=110))
    write_run(tmp_path / "run", LanguageModel(config.model_config(), seed=4), config, vocabulary, step=1)
    export.main([str(tmp_path / "run"), "--to", "npz"])
    weights, returned = tmp_path / "run" / "model.npz", tmp_path / "returned"
    arguments = [str(weights), "--run-dir", str(returned), "--data", str(text)]
    assert import_weights.main(arguments) == 0
    assert loss_of(returned, capsys) == loss_of(tmp_path / "run", capsys)


def test_a_folder_is_no_output(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", str(tmp_path)):
        with pytest.raises(
            InputError, match="--output: expected the name of a file to write, got the folder"
        ):
            export.main([str(run), "--to", "npz", "--output", name])


def test_imported_weights_are_neither_trained_on_nor_plotted(run, capsys):
    with pytest.raises(InputError, match="holds imported weights alone, which cannot be trained on; train"):
        train.wt103.main(["--run-dir", str(run), "--resume"])
    with pytest.raises(InputError, match="holds imported weights, whose training left no curves here; plot"):
        train.plot.load_run(run)
