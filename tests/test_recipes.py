"""Whole recipes for real: resumed to equal bits, the same on any number of ranks, with every option."""

import json

import h5py
import numpy as np
import pytest
from tiny import flags, rows_of, train_tiny, write_text

import train.evaluate
from autograd.errors import InputError
from train.checkpoint import save_checkpoint
from train.config import TrainConfig
from train.plan import total_steps, windows_of
from train.prepare import prepare
from train.run_folder import load_trained
from train.wt103 import main

DRAWN = {"variable_window": "true", "random_start": "true"}
STATELESS = {"carry_state": "false", "shuffle_windows": "true", "random_start": "true"}
BANDS = {"softmax": "adaptive", "adaptive_bands": "[5, 8]"}
RECIPES = {
    "awd": {
        **DRAWN,
        "optimizer": "nt_asgd",
        "nonmono": 1,
        "learning_rate": 3.0,
        "weight_decay": 1e-3,
        "activation_regularization": 2.0,
        "temporal_activation_regularization": 1.0,
        "accumulate": 2,
    },
    "lstmlm": {
        **STATELESS,
        "encoder_emb_dropout": "elements",
        "activation_dropout": "per_step",
        "recurrent_keep_prob": 0.9,
        "softmax": "sampled",
        "num_samples": 6,
        "lstm_init": "glorot",
        "layer_norm": "true",
        "layer_norm_epsilon": 1e-5,  # else a first word left out makes the smallest rounding grow
        "l2_tied": 1e-3,
    },
    "bands": {
        **STATELESS,
        **BANDS,
        "optimizer": "sgd",
        "momentum": 0.9,
    },
    "clipped": {**DRAWN, "schedule": "step", "decay_epochs": "[1, 3]", "evaluation_protocol": "carried"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("recipes") / "text.txt", lines=140)


@pytest.fixture
def here(text, monkeypatch):
    """Runs in this process: where the prepared text lies."""
    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    return text.parent


def arrays_of(path):
    found = {}
    with h5py.File(path) as file:
        file["arrays"].visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def train_here(text, run, recipe, *more):
    knobs = {"epochs": 50, "evaluate_every": 3, **RECIPES[recipe]}
    assert main([*flags(text, run, **knobs), *more]) == 0
    return rows_of(run)


def kept(rows):
    """What must come out again to the bit: all but the times, and but the test split, scored at each end."""
    names = ("kind", "split", "step", "tokens", "epoch", "loss", "learning_rate", "grad_norm", "perplexity")
    return [{name: row.get(name) for name in names} for row in rows if row.get("split") != "test"]


@pytest.mark.parametrize("stop", [3, 24])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_has_equal_bits(recipe, stop, text, here, request):
    whole, parted = here / f"{recipe}-whole", here / f"{recipe}-{stop}"
    if not whole.exists():
        train_here(text, whole, recipe, "--max-steps", "42")
    train_here(text, parted, recipe, "--max-steps", str(stop))
    assert main(["--run-dir", str(parted), "--resume", "--max-steps", "42"]) == 0
    for name in ("latest.h5", "best.h5"):
        expected, got = (arrays_of(run / "checkpoints" / name) for run in (whole, parted))
        assert expected.keys() == got.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(got[key], array, err_msg=key)
    assert kept(rows_of(parted)) == kept(rows_of(whole))


@pytest.mark.parametrize("recipe", ["awd", "lstmlm"])
def test_more_ranks_give_the_loss_curve_of_one(recipe, text, here):
    knobs = {"epochs": 50, "evaluate_every": 3, **RECIPES[recipe]}
    expected = train_tiny(1, text, here / f"{recipe}-1", "--max-steps", "40", **knobs)
    losses = [row["loss"] for row in expected]
    for ranks in (2, 4):
        rows = train_tiny(ranks, text, here / f"{recipe}-{ranks}", "--max-steps", "40", **knobs)
        np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=2e-5, err_msg=f"{ranks} ranks")
        for name in ("kind", "step", "tokens", "epoch"):
            assert [row[name] for row in rows] == [row[name] for row in expected]


def test_tokens_epochs_and_the_learning_rate_follow_the_windows(text, here):
    rows = train_here(text, here / "counted", "clipped", "--max-tokens", "4000")
    train_rows = [row for row in rows if row["kind"] == "train"]
    result = json.loads((here / "counted" / "result.json").read_text())
    config = TrainConfig(**{**result["configuration"]["train"], "decay_epochs": (1, 3)})
    windows, length = windows_of(config), 125  # 126 lines of 8 words, but one, in 8 rows
    tokens, step = 0, 0
    for epoch in range(50):
        cuts = windows.cut(epoch, length)
        for number, (start, stop) in enumerate(cuts, start=1):
            if step == len(train_rows):
                break
            row, step, tokens = train_rows[step], step + 1, tokens + 8 * int(stop - start)
            decays = (epoch >= 1) + (epoch >= 3)
            assert row["tokens"] == tokens
            assert row["epoch"] == pytest.approx(epoch + number / len(cuts))
            assert row["learning_rate"] == pytest.approx(0.01 * 0.5**decays * (stop - start) / 7)
    assert step == len(train_rows)
    assert train_rows[-2]["tokens"] < 4000 <= train_rows[-1]["tokens"]
    assert 3 < train_rows[-1]["epoch"] < 50


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"shuffle_windows": True, "carry_state": False},
        {"random_start": True},
        {"variable_window": True},
        {"random_start": True, "shuffle_windows": True, "carry_state": False},
        {"random_start": True, "variable_window": True},
    ],
)
@pytest.mark.parametrize("limit", [0, 1, 100, 999, 1000, 1001, 3456, 10**6])
def test_total_steps_are_those_of_walking_through_the_windows(knobs, limit):
    config = TrainConfig(batch_size=4, window=6, epochs=5, max_tokens=limit, seed=2, **knobs)
    steps = tokens = 0
    for epoch in range(5):
        for start, stop in windows_of(config).cut(epoch, 250):
            if not limit or tokens < limit:
                steps, tokens = steps + 1, tokens + 4 * (stop - start)
    assert total_steps(config, 250) == steps
    longer = TrainConfig(**{**vars(config), "max_steps": 7})
    assert total_steps(longer, 250) == min(7, steps)


def test_epochs_without_end_are_counted_at_once():
    assert total_steps(TrainConfig(batch_size=4, window=6, epochs=10**12), 250) == 42 * 10**12


def test_the_average_is_what_is_validated_kept_and_loaded(text, here, capsys):
    run = here / "averaged"
    rows = train_here(text, run, "awd", "--max-steps", "60")
    latest, best = (arrays_of(run / "checkpoints" / f"{name}.h5") for name in ("latest", "best"))
    trigger = int(latest["optimizer/trigger"])
    losses = {row["step"]: row["loss"] for row in rows if row.get("split") == "valid"}
    assert 0 < trigger < 60
    assert latest["optimizer/losses"].tolist() == [losses[step] for step in losses if step <= trigger]
    assert losses[trigger] > min(latest["optimizer/losses"][:-2])
    assert np.abs(latest["optimizer/average"] - latest["parameters"]).max() > 1e-4
    averaged = [step for step in losses if step > trigger]
    best_step = min(losses, key=losses.__getitem__)
    assert best_step in averaged  # or the next line says nothing
    if best_step == 60:
        np.testing.assert_array_equal(best["parameters"], latest["optimizer/average"])
    assert not any(name.startswith("optimizer") for name in best)
    model, *_ = load_trained(run, "latest")
    np.testing.assert_array_equal(model.flat_parameters, latest["optimizer/average"])
    model, *_ = load_trained(run, "latest", averaged=False)
    np.testing.assert_array_equal(model.flat_parameters, latest["parameters"])
    scored = []
    for more in ([], ["--unaveraged"]):
        capsys.readouterr()
        train.evaluate.main([str(run), "--checkpoint", "latest", "--split", "valid", "--json", *more])
        scored.append(json.loads(capsys.readouterr().out)["loss"])
    assert scored[0] == pytest.approx(losses[60], rel=1e-6)
    assert abs(scored[1] - scored[0]) > 1e-4


def test_the_turn_to_averaging_is_told_once(text, here, capsys):
    train_here(text, here / "told", "awd", "--max-steps", "60")
    trigger = int(arrays_of(here / "told" / "checkpoints" / "latest.h5")["optimizer/trigger"])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("averaging")]
    assert len(told) == 1
    assert told[0].startswith(f"averaging from step {trigger + 1} on")


def test_a_finished_run_that_is_resumed_writes_no_row_again(text, here):
    run = here / "finished"
    train_here(text, run, "clipped", "--max-steps", "6")
    before, result = rows_of(run), json.loads((run / "result.json").read_text())
    assert main(["--run-dir", str(run), "--resume"]) == 0
    assert rows_of(run) == before
    assert [row["step"] for row in before if row.get("split") == "test"] == [6]
    again = json.loads((run / "result.json").read_text())
    assert again["test"]["loss"] == result["test"]["loss"]
    assert main(["--run-dir", str(run), "--resume", "--max-steps", "9"]) == 0
    assert [row["step"] for row in rows_of(run) if row.get("split") == "test"] == [6, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("random_start=false", "random_start True there, False here"),
        ("variable_window=false", "variable_window True there, False here"),
        ("optimizer=sgd", "expected t; got losses, t, trigger; resume with the optimizer"),
        ("tied_weights=false", "tied_weights True there, False here"),
        ("layer_norm=true", "layer_norm False there, True here"),
    ],
)
def test_a_resumed_run_must_be_the_same_run(change, message, text, here):
    run = here / "same"
    if not run.exists():
        train_here(text, run, "awd", "--max-steps", "2")
    with pytest.raises(InputError, match=message):
        main(["--run-dir", str(run), "--resume", "--max-steps", "4", "--set", change])


def change_facts(path, change):
    with h5py.File(path) as file:
        facts = json.loads(file["meta"][()].tobytes())
    change(facts)
    save_checkpoint(path, arrays_of(path), facts)


def test_a_position_of_another_version_is_one_line(text, here):
    run = here / "position"
    train_here(text, run, "clipped", "--max-steps", "2")
    latest = run / "checkpoints" / "latest.h5"
    change_facts(latest, lambda facts: facts["position"].update(shard=3))
    with pytest.raises(InputError, match=r"of another version of this program \(has shard\)") as caught:
        main(["--run-dir", str(run), "--resume", "--max-steps", "4"])
    assert "\n" not in str(caught.value)
    change_facts(latest, lambda facts: (facts["position"].pop("shard"), facts["position"].pop("window")))
    with pytest.raises(InputError, match=r"\(lacks window\)"):
        main(["--run-dir", str(run), "--resume", "--max-steps", "4"])


def test_a_checkpoint_from_before_there_were_other_windows_goes_on(text, here):
    run = here / "old"
    knobs = {"max_steps": 2}
    assert main(flags(text, run, **knobs)) == 0
    new = ("carry_state", "random_start", "shuffle_windows", "variable_window")

    def age(facts):
        facts["streams"] = {name: value for name, value in facts["streams"].items() if name not in new}
        for name in ("tied_weights", "layer_norm", "residual", "last_hidden_size"):
            del facts["model"][name]

    change_facts(run / "checkpoints" / "latest.h5", age)
    assert main(["--run-dir", str(run), "--resume", "--max-steps", "4"]) == 0
    assert rows_of(run)[-1]["step"] == 4


@pytest.mark.parametrize("knobs", [{"softmax": "sampled", "num_samples": 4}, BANDS], ids=str)
def test_a_softmax_by_frequency_over_ids_that_are_not_sorted_is_refused(knobs, text, here):
    path = prepare(text, here / f"unsorted-{knobs['softmax']}.h5")
    with h5py.File(path, "r+") as file:
        file["counts"][...] = file["counts"][:][::-1]
    run = here / f"unsorted-{knobs['softmax']}"
    with pytest.raises(InputError, match="word ids must go by falling frequency"):
        main([*flags(path, run, **knobs), "--max-steps", "2"])
    assert not run.exists()
    assert main([*flags(path, run), "--max-steps", "2"]) == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"softmax": "sampled", "num_samples": 500}, "num_samples must be at most vocab_size = 15; got 500"),
        ({"softmax": "adaptive", "adaptive_bands": "[4, 20]"}, "adaptive_bands must be .* below the 15"),
        ({"accumulate": 3}, "accumulate 3 must divide the 8 rows of each rank; .*one of 1, 2, 4, 8"),
    ],
)
def test_what_the_data_or_the_ranks_contradict_is_told_before_anything_is_written(knobs, message, text, here):
    with pytest.raises(InputError, match=message) as caught:
        main(flags(text, here / "refused", **knobs))
    assert "\n" not in str(caught.value)
    assert not (here / "refused").exists()


def test_a_run_says_which_vocabulary_of_its_text_it_wants(text, here):
    run = here / "vocabulary"
    assert main([*flags(text, run, min_count=40), "--max-steps", "2"]) == 0
    assert (here / "prepared" / "text-min40.h5").exists()
    words = (run / "vocabulary.txt").read_text().split()
    assert {"the", "<unk>", "<eos>"} <= set(words)
    assert len(words) < 15
    with pytest.raises(InputError, match="another vocabulary|vocab_size"):
        main(["--run-dir", str(run), "--resume", "--max-steps", "4", "--set", "min_count=0"])


def test_the_validation_at_a_stop_is_not_one_of_nt_asgds(text, here):
    """A run of 4 steps validates at its end, where a longer one does not: it must go on as that one."""
    whole, parted = here / "stop-whole", here / "stop-parted"
    train_here(text, whole, "awd", "--max-steps", "12")
    train_here(text, parted, "awd", "--max-steps", "4")
    assert len(arrays_of(parted / "checkpoints" / "latest.h5")["optimizer/losses"]) == 1
    assert main(["--run-dir", str(parted), "--resume", "--max-steps", "12"]) == 0
    expected, got = (arrays_of(run / "checkpoints" / "latest.h5") for run in (whole, parted))
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_evaluate_by_protocol_zero_takes_the_runs_own_window(text, here, capsys):
    run = here / "zero"
    knobs = {"evaluation_protocol": "zero", "evaluation_window": 5, "evaluate_every": 3}
    train_here(text, run, "lstmlm", "--max-steps", "6", *(f"--set={k}={v}" for k, v in knobs.items()))
    written = json.loads((run / "result.json").read_text())["test"]
    capsys.readouterr()
    assert train.evaluate.main([str(run), "--protocol", "zero", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["protocol"] == written["protocol"] == "zero state every 5 tokens"
    assert printed["loss"] == pytest.approx(written["loss"], rel=1e-6)
