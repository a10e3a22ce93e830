"""The training command for real: ranks, kills, resumption, what it writes, and what it refuses."""

import json
import math
import shutil
import signal
import time

import h5py
import numpy as np
import pytest
from mpi import kill, run_ranks, start_ranks
from tiny import TINY, flags, rows_of, train_tiny, write_text

from autograd.errors import InputError
from train.config import TrainConfig
from train.plan import total_steps
from train.wt103 import main


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("wt103") / "text.txt")


@pytest.fixture(scope="module")
def finished(text):
    """A whole run on one rank, and its rows."""
    run = text.parent / "one"
    return run, train_tiny(1, text, run, "--max-steps", "40", evaluate_every=15)


def losses(rows):
    return np.array([row["loss"] for row in rows])


def arrays_of(checkpoint):
    """Every array of a checkpoint by name."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and name != "meta":
            found[name] = item[()]

    with h5py.File(checkpoint) as file:
        file.visititems(keep)
    return found


def assert_equal_bits(run, other):
    arrays, others = (arrays_of(folder / "checkpoints" / "latest.h5") for folder in (run, other))
    assert arrays.keys() == others.keys()
    assert any("optimizer/m" in name for name in arrays)
    assert any("state/1/c" in name for name in arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_it_learns(finished):
    _, rows = finished
    curve = [row["perplexity"] for row in rows if row["kind"] == "train"]
    assert curve[0] > 10
    assert curve[-1] < 0.75 * curve[0]


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_gives_the_same_loss_curve(finished, text, ranks):
    run = text.parent / f"ranks{ranks}"
    rows = train_tiny(ranks, text, run, "--max-steps", "40", evaluate_every=15)
    np.testing.assert_allclose(losses(rows), losses(finished[1]), rtol=2e-5)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in finished[1]]


def test_a_run_killed_in_the_middle_resumes_to_equal_bits(text):
    knobs = {"save_every": 10, "evaluate_every": 20, "epochs": 3}
    undisturbed, killed = text.parent / "undisturbed", text.parent / "killed"
    train_tiny(2, text, undisturbed, "--max-steps", "60", **knobs)
    env = {"MINILSTM_DATA": str(text.parent / "prepared")}
    process = start_ranks(2, "train.wt103", *flags(text, killed, **knobs), "--max-steps", "60", env=env)
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 25):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    kill(process)
    process.communicate()
    assert not (killed / "result.json").exists()

    result = run_ranks(2, "train.wt103", "--run-dir", str(killed), "--resume", env=env)
    assert result.returncode == 0, result.stderr
    assert_equal_bits(undisturbed, killed)
    steps = [(row["kind"], row["step"], row["loss"]) for row in rows_of(killed)]
    assert steps == [(row["kind"], row["step"], row["loss"]) for row in rows_of(undisturbed)]


def test_a_run_ends_with_a_plot_and_a_kill_while_it_is_drawn_loses_nothing(finished, text):
    run, env = text.parent / "drawn", {"MINILSTM_DATA": str(text.parent / "prepared")}
    arguments = [*flags(text, run, evaluate_every=15), "--max-steps", "40"]
    process = start_ranks(1, "train.wt103", *arguments, env=env, plots=True)
    while not (run / "result.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    kill(process)
    process.communicate()
    assert not (run / "plot.png").exists()
    result = run_ranks(1, "train.wt103", "--run-dir", str(run), "--resume", env=env, plots=True)
    assert result.returncode == 0, result.stderr
    assert (run / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert_equal_bits(run, finished[0])
    assert losses(rows_of(run)).tolist() == losses(finished[1]).tolist()


def test_a_run_ended_before_its_first_checkpoint_starts_over(text):
    run, env = text.parent / "early", {"MINILSTM_DATA": str(text.parent / "prepared")}
    process = start_ranks(1, "train.wt103", *flags(text, run), "--max-steps", "5", env=env)
    while not (run / "config.toml").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = run_ranks(1, "train.wt103", "--run-dir", str(run), "--resume", env=env)
    assert result.returncode == 0, result.stderr
    assert rows_of(run)[-1]["step"] == 5


def test_what_a_run_writes(finished):
    run, rows = finished
    train_rows = [row for row in rows if row["kind"] == "train"]
    assert set(train_rows[0]) == {
        "kind", "step", "tokens", "epoch", "loss", "perplexity", "learning_rate", "grad_norm",
        "skipped_steps", "tokens_per_second", "seconds",
    }  # fmt: skip
    assert [row["step"] for row in train_rows] == list(range(1, 41))
    assert train_rows[0]["tokens"] == TINY["batch_size"] * TINY["window"]
    evaluations = [(row["split"], row["step"]) for row in rows if row["kind"] == "evaluation"]
    assert evaluations == [("valid", 15), ("valid", 30), ("valid", 40), ("test", 40)]

    result = json.loads((run / "result.json").read_text())
    valid = [row for row in rows if row["kind"] == "evaluation" and row["split"] == "valid"]
    assert result["valid"]["loss"] == min(row["loss"] for row in valid)
    assert result["test"]["perplexity"] == pytest.approx(math.exp(result["test"]["loss"]))
    assert result["test"]["protocol"] == "state carried through the split"
    assert (result["steps"], result["ranks"], result["seed"]) == (40, 1, 0)
    assert result["tokens"] == train_rows[-1]["tokens"]
    assert result["configuration"]["train"]["batch_size"] == TINY["batch_size"]
    assert result["environment"]["versions"]["numpy"] == np.__version__


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(text):
    runs = [text.parent / name for name in ("seed-a", "seed-b", "seed-c")]
    for run, seed in zip(runs, (7, 7, 8), strict=True):
        train_tiny(1, text, run, "--max-steps", "5", "--seed", str(seed))
    assert_equal_bits(runs[0], runs[1])
    assert losses(rows_of(runs[0]))[0] != losses(rows_of(runs[2]))[0]


def test_max_tokens_ends_the_run_at_the_window_that_reaches_it():
    config = TrainConfig(batch_size=4, window=10, epochs=5, max_tokens=90)
    assert total_steps(config, length=25) == 3  # windows of 40, 40 and 20 tokens in an epoch
    assert total_steps(TrainConfig(batch_size=4, window=10, epochs=5, max_tokens=130), 25) == 4
    assert total_steps(TrainConfig(batch_size=4, window=10, epochs=5), 25) == 15
    assert total_steps(TrainConfig(batch_size=4, window=10, epochs=5, max_steps=7), 25) == 7


def test_epochs_beyond_the_steps_are_not_counted():
    """Each epoch of drawn windows has a number of its own: to count a billion of them takes hours."""
    endless = {"batch_size": 4, "window": 10, "epochs": 10**9, "max_steps": 7, "variable_window": True}
    assert total_steps(TrainConfig(**endless), 25) == 7
    assert total_steps(TrainConfig(**endless, max_tokens=10**12), 25) == 7
    assert total_steps(TrainConfig(**{**endless, "max_steps": 1000}, max_tokens=90), 25) < 7


def test_a_dry_run_prints_the_cards_size_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--preset", "wt103", "--set", "vocab_size=267735", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "123,871,239" in out
    assert "memory of each rank" in out
    assert list(tmp_path.iterdir()) == []


def refused(tmp_path, *arguments):
    """The message with which train.wt103 refuses; nothing must have been written."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        main(["--run-dir", str(tmp_path / "run"), *arguments])
    assert sorted(tmp_path.rglob("*")) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "wt2-smal"], "unknown preset 'wt2-smal'; the nearest known preset is 'wt2-small'"),
        (["--set", "hiden_size=3"], "unknown key 'hiden_size'; the nearest known key is 'hidden_size'"),
        (["--set", "window=0"], "window must be a whole number of at least 1; got 0"),
        (["--set", "encoder_emb_keep_prob=0"], "encoder_emb_keep_prob must be .* got 0"),
        (["--set", "encoder_emb_keep_prob=1.5"], "a dropout in \\[0, 1\\); got 1.5"),
        (["--device", "cuda"], "device cuda needs"),
        (["--data", "no-such-text"], "no-such-text"),
        (
            ["--data", "no-such-text", "--set=schedule=cosine", "--set=warmup_steps=9", "--max-steps", "9"],
            "schedule 'cosine' decays until step 9, which must be beyond its warm-up of 9 steps; lower",
        ),
        (
            ["--data", "no-such-text", "--set=schedule=exponential", "--set=warmup_steps=9", "--max-steps=5"],
            "'exponential' decays until step 5, which .*; lower warmup_steps, or raise max_steps",
        ),
        (["--resume"], "config.toml is not there; name the run by --run-dir, or start without --resume"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    import re

    assert re.search(message, refused(tmp_path, *arguments))


def test_a_batch_larger_than_the_data_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    text = write_text(tmp_path / "text.txt", lines=40)
    with pytest.raises(InputError, match="batch_size 5000 is larger than the data"):
        main(flags(text, tmp_path / "run", batch_size=5000))
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(finished, text, monkeypatch):
    run, rows = finished
    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        main(flags(text, run))
    assert rows_of(run) == rows


def test_a_checkpoint_of_another_model_is_refused_by_what_differs(text, monkeypatch):
    run = text.parent / "other-model"
    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    train_tiny(1, text, run, "--max-steps", "2")
    before = (run / "checkpoints" / "latest.h5").read_bytes()
    with pytest.raises(InputError, match="is of another model: hidden_size 16 there, 20 here"):
        main(["--run-dir", str(run), "--resume", "--set", "hidden_size=20"])
    other = write_text(text.parent / "other.txt", seed=5)
    other.write_text(other.read_text().replace("cat", "cow").replace("dog", "pig"))
    with pytest.raises(InputError, match="another vocabulary|another model"):
        main(["--run-dir", str(run), "--resume", "--data", str(other)])
    assert (run / "checkpoints" / "latest.h5").read_bytes() == before


def test_a_rank_count_that_does_not_divide_the_batch_is_one_line_and_status_2(text):
    run, env = text.parent / "three", {"MINILSTM_DATA": str(text.parent / "prepared")}
    result = run_ranks(3, "train.wt103", *flags(text, run), env=env)
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1
    assert "batch_size 8 must be a multiple of the 3 ranks" in result.stderr
    assert not run.exists()


def diverged(text, run, **knobs):
    """What a run that diverges leaves on stderr."""
    env = {"MINILSTM_DATA": str(text.parent / "prepared")}
    knobs = {"optimizer": "sgd", "learning_rate": 1e30, **knobs}
    result = run_ranks(1, "train.wt103", *flags(text, run, **knobs), env=env)
    assert result.returncode == 2
    assert "error: training diverged at step" in result.stderr
    assert "Warning" not in result.stderr
    return result.stderr


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(text):
    run = text.parent / "diverged"
    message = diverged(text, run, save_every=1, clip_norm=1e9)
    assert f"the checkpoint {run / 'checkpoints' / 'latest.h5'} is as it was; lower learning_rate" in message


def test_a_run_that_diverges_names_no_checkpoint_that_is_not_there(text):
    message = diverged(text, text.parent / "diverged-at-once", clip_norm=0)
    assert "checkpoint" not in message
    assert "; --set clip_norm=0.25, or lower learning_rate" in message


@pytest.fixture(scope="module")
def half_done(text):
    run = text.parent / "half"
    train_tiny(1, text, run, "--max-steps", "6", save_every=3)
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "window=9"], "window 7 there, 9 here"),
        (["--set", "batch_size=4"], "batch_size 8 there, 4 here"),
        (["--seed", "5"], "seed 0 there, 5 here"),
        (["--max-steps", "5"], "has made 6 steps, more than the 5"),
    ],
)
def test_a_resumed_run_must_be_the_same_run(half_done, text, monkeypatch, change, message):
    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    before = {path: path.read_bytes() for path in half_done.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        main(["--run-dir", str(half_done), "--resume", *change])
    assert {path: path.read_bytes() for path in half_done.rglob("*") if path.is_file()} == before


def test_a_kill_between_best_and_latest_loses_nothing(text):
    """best.h5 is then of a later step than latest.h5: the resumed run comes to that step again."""
    run, whole = text.parent / "between", text.parent / "between-whole"
    train_tiny(1, text, run, "--max-steps", "12", evaluate_every=4, save_every=2)
    shutil.copytree(run, whole)
    latest, best = (run / "checkpoints" / f"{name}.h5" for name in ("latest", "best"))
    kept = best.read_bytes()
    train_tiny(1, text, text.parent / "shorter", "--max-steps", "10", evaluate_every=4, save_every=2)
    latest.write_bytes((text.parent / "shorter" / "checkpoints" / "latest.h5").read_bytes())
    best.write_bytes(kept)
    train_tiny(1, text, run, "--max-steps", "12", "--resume", evaluate_every=4, save_every=2)
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, whole)]
    for split in ("valid", "test"):
        assert results[0][split]["loss"] == results[1][split]["loss"]
    assert_equal_bits(run, whole)


def test_a_second_process_may_not_go_on_with_the_same_run(half_done, text, monkeypatch):
    from train.files import exclusive_lock

    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    with exclusive_lock(half_done), pytest.raises(InputError, match="another process"):
        main(["--run-dir", str(half_done), "--resume", "--max-steps", "9"])
