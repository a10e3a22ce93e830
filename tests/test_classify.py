"""The command: from a run and labelled texts to a classifier that can be used, and what it refuses."""

import json
import os
import signal

import numpy as np
import pytest
from mpi import run_ranks
from tiny import train_tiny, write_text

from autograd.errors import InputError
from train import classify
from train.checkpoint import load_checkpoint
from train.classification_data import Rows
from train.classifier import Classifier
from train.classifier_training import ClassifyConfig, batches
from train.metrics import read_metrics
from train.run_folder import load_trained

FISH = "label\tsentence\n" + "".join(
    f"{label}\tthe {animal} {verb} {thing}\n"
    for label, thing in (("fish", "fish"), ("fish", "songs and fish"), ("none", "rain"), ("none", "trees"))
    for animal in ("cat", "dog", "bird")
    for verb in ("sees", "hears", "likes")
)
QUICK = ("--epochs", "3", "--learning-rate", "0.02", "--batch-size", "6")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    train_tiny(1, write_text(folder / "text.txt"), folder / "run", "--max-steps", "40")
    return folder / "run"


@pytest.fixture
def data(tmp_path):
    return write_tsv(tmp_path / "data", train=FISH, test=FISH)


def write_tsv(folder, **parts):
    folder.mkdir()
    for part, text in parts.items():
        (folder / f"{part}.tsv").write_text(text, encoding="utf-8")
    return folder


def make(run, data, out, *flags):
    assert classify.main([str(run), str(data), "--run-dir", str(out), *QUICK, *flags]) == 0
    return json.loads((out / "result.json").read_text())


def weights(out, which="best"):
    arrays, _ = load_checkpoint(out / "checkpoints" / f"{which}.h5")
    return {name: array for name, array in arrays.items() if name.startswith("weights/")}


def test_a_classifier_is_made_scored_and_written_down(run, data, tmp_path, capsys):
    out = tmp_path / "out"
    result = make(run, data, out)
    assert result["classes"] == ["fish", "none"]
    assert result["test"]["accuracy"] > 0.9 > result["test"]["majority_accuracy"]
    assert result["data"]["train"]["texts"] == 32
    assert result["data"]["valid"]["classes"] == {"fish": 2, "none": 2}
    assert result["data"]["test"]["unknown_words"] == 0
    rows = read_metrics(out / "metrics.jsonl")
    assert [(row["kind"], row.get("split")) for row in rows] == [
        ("train", None), ("evaluation", "valid"),
    ] * 3 + [("evaluation", "test")]  # fmt: skip
    assert [row["step"] for row in rows if row["kind"] == "train"] == [6, 12, 18]
    printed = capsys.readouterr().out
    assert "train: 32 texts (fish 16, none 16)" in printed
    assert "precision  recall      F1" in printed
    assert f"classifier: {out}" in printed


def test_json_is_one_object(run, data, tmp_path, capsys):
    result = make(run, data, tmp_path / "out", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"run_dir": str(tmp_path / "out"), **result}


def test_the_same_seed_gives_equal_bits_and_another_one_others(run, data, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        make(run, data, tmp_path / name, "--seed", seed)
    first, again, other = (weights(tmp_path / name, "latest") for name in "abc")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("flags", [(), ("--unfreeze", "gradual", "--layer-decay", "2.6")])
def test_a_killed_training_goes_on_with_equal_bits(run, data, tmp_path, monkeypatch, flags):
    make(run, data, tmp_path / "whole", *flags)
    epoch, done = classify.ClassifierTraining._updates, []

    def killed_in_the_second(self, *arguments):
        done.append(len(done))
        if len(done) == 2:
            raise KeyboardInterrupt
        return epoch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(classify.ClassifierTraining, "_updates", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            make(run, data, tmp_path / "killed", *flags)
    make(run, data, tmp_path / "killed", "--resume", *flags)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def contents(out):
    """Weights and rows, but for times."""
    found = {which: {k: v.tobytes() for k, v in weights(out, which).items()} for which in ("best", "latest")}
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(out / "metrics.jsonl")]
    return found, rows


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("flags", [(), ("--unfreeze", "gradual", "--layer-decay", "2.6")])
def test_a_training_that_is_told_to_stop_saves_and_goes_on_with_equal_bits(
    run, data, tmp_path, monkeypatch, flags
):
    """Asked in the middle of an epoch, and then twice in the validation after it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    make(run, data, whole, *flags)

    def stop(method, number, count, *more):
        """Signal this process when the method is called for the count-th time: it must exit, saved."""
        calls, original = [], getattr(Classifier, method)

        def signalled(self, *arguments):
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Classifier, method, signalled)
            with pytest.raises(SystemExit) as ended:
                make(run, data, stopped, *more, *flags)
        assert ended.value.code == 128 + number
        return load_checkpoint(stopped / "checkpoints" / "latest.h5")[1]["position"]

    position = stop("loss", signal.SIGTERM, 9)  # the third update of the second epoch of six
    assert (position["step"], position["epoch"], len(position["losses"])) == (9, 1, 3)
    for number in (signal.SIGINT, signal.SIGTERM):
        position = stop("log_probs", number, 1, "--resume")
        assert (position["step"], position["epoch"], position["pending"]) == (12, 2, True)
    make(run, data, stopped, "--resume", *flags)
    assert contents(stopped) == contents(whole)


@pytest.mark.parametrize(("select", "best_epoch"), [("accuracy", 2), ("macro_f1", 1), ("loss", 3)])
def test_the_best_weights_are_those_of_the_best_epoch(run, data, tmp_path, monkeypatch, select, best_epoch):
    accuracies, f1s, losses = [0.7, 0.9, 0.9], [0.8, 0.6, 0.7], [0.4, 0.5, 0.3]
    score, seen, weights_at = classify.ClassifierTraining._score, [], {}

    def planned(self, part, *more):
        found = score(self, part, *more)
        seen.append(part)
        if part == "test":
            weights_at["test"] = self.classifier.head.parameters[0].data.copy()
            return found
        weights_at[len(seen)] = self.classifier.head.parameters[0].data.copy()
        k = len(seen) - 1
        loss = losses[k] if select == "loss" else 0.5  # of equal losses the first is the best
        return {**found, "accuracy": accuracies[k], "macro_f1": f1s[k], "loss": loss}

    monkeypatch.setattr(classify.ClassifierTraining, "_score", planned)
    result = make(run, data, tmp_path / "out", "--select", select)
    assert result["valid"]["epoch"] == best_epoch
    best = weights(tmp_path / "out")["weights/head.0.weight"]
    assert [epoch for epoch in (1, 2, 3) if np.array_equal(best, weights_at[epoch])] == [best_epoch]
    np.testing.assert_array_equal(weights_at["test"], best)


def test_every_update_draws_masks_of_its_own(run, data, tmp_path, monkeypatch):
    loss, windows = Classifier.loss, []

    def watched(self, texts, labels, masks, class_weights=None):
        windows.append((masks.seed, masks.window))
        return loss(self, texts, labels, masks, class_weights)

    monkeypatch.setattr(Classifier, "loss", watched)
    make(run, data, tmp_path / "out", "--seed", "7")
    assert windows == [(7, step) for step in range(18)]


def test_what_is_frozen_stays_the_run_s(run, data, tmp_path):
    make(run, data, tmp_path / "head", "--unfreeze", "head")
    make(run, data, tmp_path / "gradual", "--unfreeze", "gradual", "--epochs", "2")
    encoder = dict(load_trained(run)[0].named_parameters())
    for name, changed in (("head", set()), ("gradual", {"lstm.1"})):
        for weight, array in weights(tmp_path / name, "latest").items():
            parameter = weight.removeprefix("weights/")
            if parameter in encoder:
                same = np.array_equal(array, encoder[parameter].data)
                assert same == (parameter.rpartition(".")[0] not in changed), parameter
    trained = [
        row["trained_groups"]
        for row in read_metrics(tmp_path / "gradual" / "metrics.jsonl")
        if row["kind"] == "train"
    ]
    assert trained == [1, 2]


def test_an_encoder_from_scratch_is_not_the_run_s(run, data, tmp_path):
    make(run, data, tmp_path / "out", "--from-scratch", "--unfreeze", "head", "--epochs", "1")
    embedding = weights(tmp_path / "out")["weights/embedding.weight"]
    assert not np.isclose(embedding, load_trained(run)[0].embedding.data).any()


@pytest.mark.parametrize(("weighting", "low", "high"), [("equal", 0.02, 0.2), ("balanced", 0.35, 0.65)])
def test_balanced_weights_make_a_rare_class_as_likely(run, tmp_path, capsys, weighting, low, high):
    """One text of both classes: what is learned is how often each comes, or, balanced, a half."""
    train = "none\tthe cat\n" * 90 + "rare\tthe cat\n" * 10
    data = write_tsv(tmp_path / "data", train=train, valid=train)
    make(run, data, tmp_path / "out", "--class-weights", weighting, "--select", "loss", "--unfreeze", "head")
    (tmp_path / "new.txt").write_text("the cat\n")
    capsys.readouterr()
    classify.main([str(tmp_path / "out"), "--predict", str(tmp_path / "new.txt"), "--json"])
    assert low < json.loads(capsys.readouterr().out)["probabilities"]["rare"] < high


def test_empty_texts_and_missing_classes_are_scored_and_told(run, tmp_path, capsys):
    train = FISH + "none\t\n"
    data = write_tsv(tmp_path / "data", train=train, valid=FISH, test="none\t\nother\tthe cat sees fish\n")
    result = make(run, data, tmp_path / "out", "--features", "h,c,mean,max", "--head-hidden", "4")
    assert result["data"]["train"]["empty_texts"] == result["data"]["test"]["empty_texts"] == 1
    assert result["test"]["texts"] == 2
    assert result["test"]["classes"]["other"]["recall"] == 0.0
    assert result["test"]["classes"]["fish"]["recall"] is None
    captured = capsys.readouterr()
    assert "37 texts (fish 18, none 19, other 0)" in captured.out
    assert "1 empty" in captured.out
    assert "class 'other' has no text in train: it cannot be learned" in captured.err


def test_new_texts_are_judged(run, data, tmp_path, capsys):
    out = tmp_path / "out"
    make(run, data, out)
    lines = ["the bird hears fish", "", "The dog LIKES rain", "the cat sees fish", "zebra"]
    (tmp_path / "new.txt").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert classify.main([str(out), "--predict", str(tmp_path / "new.txt")]) == 0
    captured = capsys.readouterr()
    judged = [line.split("\t") for line in captured.out.splitlines()]
    assert [line[2] for line in judged] == lines
    assert [judged[k][0] for k in (0, 2, 3)] == ["fish", "none", "fish"]
    assert "7.7% of 13 words are not in the vocabulary" in captured.err
    assert classify.main([str(out), "--predict", str(tmp_path / "new.txt"), "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for found, line in zip(objects, judged, strict=True):
        assert found["label"] == line[0] == max(found["probabilities"], key=found["probabilities"].get)
        assert max(found["probabilities"].values()) == pytest.approx(float(line[1]), abs=1e-4)
        assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_new_texts_come_through_a_pipe(run, data, tmp_path):
    make(run, data, tmp_path / "out")
    code = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'train.classify', sys.argv[1], '--predict', '-']\n"
        "print(subprocess.run(command, input=b'the cat sees fish\\n', capture_output=True).stdout.decode())"
    )
    result = run_ranks(1, code, str(tmp_path / "out"), env={"MINILSTM_DATA": "nowhere"})
    assert result.stdout.startswith("fish\t")
    assert result.stdout.strip().endswith("\tthe cat sees fish")


def test_every_text_comes_once_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 60, 103)
    rows = Rows([np.zeros(length, int) for length in lengths], np.zeros(103, int), {})
    order = list(batches(rows, 10, [0, 0]))
    assert sorted(np.concatenate(order)) == list(range(103))
    assert sorted(len(batch) for batch in order) == [3] + [10] * 10
    assert np.mean([np.ptp(lengths[batch]) for batch in order]) < 10
    again, other = (list(batches(rows, 10, [0, epoch])) for epoch in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(order, again, strict=True))
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(order, other, strict=False))


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"features": "h,last"}, "expected some of h, c, mean, max, each once; got h, last"),
        ({"head_keep_prob": 0.0}, "--head-keep-prob must be a keep probability in \\(0, 1\\]; got 0.0"),
        ({"layer_decay": 0.5}, "--layer-decay must be a number of at least 1; got 0.5"),
        ({"epochs": 0}, "--epochs must be a whole number of at least 1; got 0"),
        ({"unfreeze": "some"}, "--unfreeze must be one of all, gradual, head; got 'some'"),
    ],
)
def test_a_wrong_knob_is_refused(knob, message):
    with pytest.raises(InputError, match=message):
        ClassifyConfig(**knob)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "data"], "nowhere: expected the folder of a run"),
        (["run"], "DATA: expected a folder of labelled texts"),
        (["run", "nowhere"], "nowhere: expected labelled texts"),
        (["run", "one"], "expected at least two classes in its train part, found '1' alone"),
        (["run", "data", "--features", "x"], "expected some of h, c, mean, max"),
        (["run", "data", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["run", "data", "--resume"], "holds no classifier to go on with; leave --resume out"),
        (["run", "--predict", "new.txt"], "expected the folder of a classifier, with classifier.json in it"),
        (["run", "data", "--predict", "new.txt"], "takes texts from a file alone"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(run, data, tmp_path, monkeypatch, arguments, message):
    write_tsv(tmp_path / "one", train="1\tthe cat\n1\tthe dog\n")
    (tmp_path / "run").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        classify.main([*arguments, "--run-dir", "out"])
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_is_one_line_and_status_2(run, tmp_path):
    result = run_ranks(1, "train.classify", str(run), str(tmp_path), "--run-dir", str(tmp_path / "out"))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {tmp_path}: expected labelled texts as train/CLASS/*.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("texts", "message"),
    [(None, "new.txt: cannot be read"), ("", "new.txt is empty"), (b"\xff", "expected UTF-8 text")],
)
def test_new_texts_that_cannot_be_read_are_refused(run, data, tmp_path, texts, message):
    make(run, data, tmp_path / "out", "--epochs", "1")
    if texts is not None:
        (tmp_path / "new.txt").write_bytes(texts.encode() if isinstance(texts, str) else texts)
    with pytest.raises(InputError, match=message):
        classify.main([str(tmp_path / "out"), "--predict", str(tmp_path / "new.txt")])


def test_a_folder_in_use_and_another_run_s_settings_are_refused(run, data, tmp_path):
    make(run, data, tmp_path / "out", "--epochs", "1")
    with pytest.raises(InputError, match="holds a run already"):
        make(run, data, tmp_path / "out")
    with pytest.raises(InputError, match="holds a run already"):
        make(run, data, run)
    with pytest.raises(InputError, match="is of another classifier: settings .*'epochs': 1.* there"):
        make(run, data, tmp_path / "out", "--resume", "--epochs", "2")
    (data / "train.tsv").write_text(FISH + "none\tthe cat\n")
    with pytest.raises(InputError, match="is of another classifier: texts"):
        make(run, data, tmp_path / "out", "--resume", "--epochs", "1")


def test_many_ranks_are_refused(run, data, tmp_path):
    result = run_ranks(2, "train.classify", str(run), str(data), "--run-dir", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "train.classify runs on one process; start it without mpirun" in result.stderr
