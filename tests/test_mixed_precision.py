"""Mixed precision, rule by rule as train/mixed_precision.py numbers them, and whole runs of it."""

import json
import math

import h5py
import numpy as np
import pytest
from hidden_markov import topics
from mpi import run_ranks
from tiny import flags, rows_of, write_text

import train.evaluate
import train.plan
from autograd.errors import InputError
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.config import TrainConfig
from train.mixed_precision import (
    HOPELESS_OVERFLOWS,
    LOWEST_SCALE,
    Backoff,
    LogMax,
    MasterWeights,
    largest_of,
    make_loss_scaler,
)
from train.optimizers import NTASGD, SGD, Adam
from train.run_folder import load_trained
from train.schedules import make_schedule
from train.step import TrainingStep, finite_state
from train.wt103 import main

V = 14
CONFIG = ModelConfig(vocab_size=V, embedding_size=8, hidden_size=10, num_layers=2)
IDS = np.random.default_rng(0).integers(0, V, (6, 4))
BEYOND_FLOAT16 = 2.0**40


def make_step(scaler=None, optimizer=SGD, clip_norm=0.0, config=CONFIG, seed=1, **options):
    model = LanguageModel(config, seed=seed)
    return TrainingStep(
        model, optimizer(model.flat_parameters), SingleProcess(), clip_norm, scaler=scaler, **options
    )


def run(step, state=None, window=0, rate=0.5):
    return step(IDS[:-1], IDS[1:], state, MaskStream(0, window), rate)


def float16_of(array):
    return array.astype(np.float16)


# The scaler that backs off.


def test_backoff_halves_on_overflow_and_doubles_after_2000_clean_steps():
    scaler = Backoff()
    assert scaler.scale == 2**14
    scaler.update(False, math.inf)
    assert scaler.scale == 2**13
    for _ in range(1999):
        scaler.update(True, 1.0)
    assert scaler.scale == 2**13
    scaler.update(True, 1.0)
    assert scaler.scale == 2**14
    for _ in range(1999):  # and 2,000 more, not one
        scaler.update(True, 1.0)
    assert scaler.scale == 2**14


def test_an_overflow_starts_the_clean_steps_anew():
    scaler = Backoff(initial=64.0, growth_steps=3)
    for finite in (True, True, False, True, True):
        scaler.update(finite, 1.0)
    assert scaler.scale == 32
    scaler.update(True, 1.0)
    assert scaler.scale == 64


def test_backoff_never_goes_below_1_nor_to_infinity():
    scaler = Backoff(initial=4.0, growth_steps=1)
    for _ in range(5):
        scaler.update(False, math.inf)
    assert scaler.scale == LOWEST_SCALE == 1
    for _ in range(200):
        scaler.update(True, 0.0)
    assert scaler.scale == Backoff.HIGHEST_SCALE


@pytest.mark.parametrize("make", [Backoff, LogMax])
def test_overflows_at_the_lowest_scale_exhaust_a_scaler_and_clean_steps_do_not(make):
    scaler = make(initial=1.0)
    for _ in range(HOPELESS_OVERFLOWS - 1):
        scaler.update(False, math.inf)
        scaler.update(True, 2.0**16)  # as large as float16 allows: no reason for a larger scale
    assert scaler.scale == 1
    assert not scaler.is_exhausted
    scaler.update(False, math.inf)
    assert scaler.is_exhausted


def test_a_scale_that_rises_again_forgets_its_overflows():
    scaler = Backoff(initial=1.0, growth_steps=2)
    for _ in range(3 * HOPELESS_OVERFLOWS):
        for finite in (False, True, True, False):  # 1, 1, 2, 1
            scaler.update(finite, 1.0)
            assert not scaler.is_exhausted


# The scaler that follows the logarithm of the largest gradient.


def test_log_max_is_the_formula():
    xs = np.random.default_rng(0).normal(3.0, 0.7, 50)
    scaler = LogMax()
    for x in xs:
        scaler.update(True, 2.0**x)
    age = np.arange(len(xs))[::-1]
    slow, fast = 0.999**age, 0.99**age
    mean, slow_mean = np.average(xs, weights=fast), np.average(xs, weights=slow)
    deviation = np.sqrt(np.average((xs - slow_mean) ** 2, weights=slow))
    assert math.log2(scaler.scale) == pytest.approx(16 - (mean + 3.09 * deviation), rel=1e-9)


@pytest.mark.parametrize(("exponent", "scale"), [(-30, 2**14), (30, 1)])
def test_log_max_stays_within_its_bounds(exponent, scale):
    scaler = LogMax()
    for _ in range(3):
        scaler.update(True, 2.0**exponent)
    assert scaler.scale == scale
    scaler.update(True, 0.0)
    assert scaler.scale == scale


def overflows(scaler, xs):
    """At which steps the scaled largest gradients, 2^x · scale, leave float16."""
    lost = []
    for step, x in enumerate(xs):
        finite = 2.0**x * scaler.scale < 65504
        scaler.update(finite, 2.0**x if finite else math.inf)
        if not finite:
            lost.append(step)
    return np.array(lost)


def test_log_max_lets_about_one_step_in_a_thousand_overflow():
    lost = overflows(LogMax(), np.random.default_rng(0).normal(6.0, 0.5, 20_000))
    assert len(lost) < 3 * 20
    assert len(lost) > 20 / 5


def test_log_max_finds_its_way_down_when_gradients_jump():
    xs = np.random.default_rng(0).normal(6.0, 0.5, 4000)
    xs[2000:] += 5
    lost = overflows(LogMax(), xs)
    assert 2000 in lost  # it had to learn of it
    assert len(lost) < 120
    assert lost[-1] < 2200


# Scalers and checkpoints.


@pytest.mark.parametrize("name", ["backoff", "log_max"])
def test_a_scaler_goes_on_from_its_state(name):
    pattern = [(True, 3.0), (False, math.inf), (True, 0.01), (True, 500.0), (True, 2.0)]
    whole, first, second = (make_loss_scaler(name, 2.0**10, 3) for _ in range(3))
    for finite, largest in pattern * 2:
        whole.update(finite, largest)
    for finite, largest in pattern:
        first.update(finite, largest)
    second.load_state(json.loads(json.dumps(first.state())))
    for finite, largest in pattern:
        second.update(finite, largest)
    assert second.state() == whole.state()


def test_a_scaler_begins_anew_where_there_is_no_state_of_its_kind():
    for state in (None, {}, LogMax(8.0).state(), {"name": "backoff"}):
        scaler = Backoff(2.0**9)
        scaler.load_state(state)
        assert scaler.scale == 2**9


def test_how_fast_the_scale_grows_is_the_configurations_and_not_the_checkpoints():
    scaler = Backoff(growth_steps=1)
    scaler.load_state(Backoff(initial=8.0, growth_steps=500).state())
    scaler.update(True, 1.0)
    assert scaler.scale == 16


# (1), (3), (7): masters and copies.


@pytest.mark.parametrize("optimizer", [SGD, Adam, NTASGD])
def test_copies_are_the_masters_rounded_after_every_step(optimizer):
    step = make_step(Backoff(growth_steps=2), optimizer, clip_norm=0.25)
    state = None
    for window in range(25):
        if window == 10:
            step.optimizer.validated(1.0)
            step.optimizer.validated(2.0)
        state = run(step, state, window, 0.05).state
        masters, halves = step.model.flat_parameters, step.masters.half.flat_parameters
        assert (masters.dtype, halves.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(halves, float16_of(masters))
    assert (masters != halves).mean() > 0.9  # they hold more than their copies


def test_updates_that_float16_would_round_away_add_up_in_the_masters():
    step = make_step(Backoff())
    step.model.flat_parameters[...] = 1.0
    step.take_weights()
    gradients = step.model.flat_gradients
    gradients[...] = 1.0
    copy_alone = np.float16(1)
    for _ in range(100):
        step.optimizer.update(gradients, 1e-4)
        step.take_weights()
        copy_alone -= np.float16(1e-4)
    assert copy_alone == 1
    assert step.masters.half.flat_parameters[0] == np.float16(0.99)


def test_gradients_come_to_the_masters_without_the_scale():
    masters = MasterWeights(LanguageModel(CONFIG))
    halves = masters.half.flat_gradients
    halves[...] = np.linspace(-60_000, 60_000, halves.size)
    halves[0] = 2.0**-24
    masters.take_gradients(1 / 2**14)
    np.testing.assert_array_equal(masters.model.flat_gradients, halves.astype(np.float32) / 2**14)
    assert masters.model.flat_gradients[0] == 2.0**-38  # which float16 does not hold
    masters.take_gradients(1 / 2**13, add=True)
    np.testing.assert_array_equal(masters.model.flat_gradients, halves.astype(np.float32) * 3 / 2**14)


def test_the_largest_gradient_is_found_on_both_sides_of_zero():
    assert largest_of(np.array([1.0, -3.0, 2.0])) == 3
    assert largest_of(np.array([-1.0, 4.0])) == 4


# (2): the step is float32's, whatever the scale.


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"l2_tied": 0.3}], ids=str)
def test_a_step_is_that_of_float32_to_the_rounding_of_float16(options):
    single, mixed = make_step(**options), make_step(Backoff(), **options)
    before = single.model.flat_parameters.copy()
    ours, theirs = run(mixed), run(single)
    assert ours.loss == pytest.approx(theirs.loss, rel=2e-4)
    assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=2e-3)
    update, expected = mixed.model.flat_parameters - before, single.model.flat_parameters - before
    assert np.linalg.norm(update - expected) < 3e-3 * np.linalg.norm(expected)
    assert {part.dtype for pair in ours.state for part in pair} == {np.dtype(np.float16)}


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_clipping_sees_the_gradients_without_the_scale(clip_norm):
    results, updates = [], []
    for scale in (2.0**4, 2.0**14):
        step = make_step(Backoff(scale), clip_norm=clip_norm)
        before = step.model.flat_parameters.copy()
        results.append(run(step, rate=1.0))
        updates.append(np.linalg.norm(step.model.flat_parameters - before))
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-3)
    assert results[0].grad_norm > 0.1
    expected = clip_norm or results[0].grad_norm
    assert updates == pytest.approx([expected, expected], rel=1e-3)


def test_the_loss_that_is_returned_is_without_the_scale():
    assert run(make_step(Backoff(2.0**3))).loss == run(make_step(Backoff(2.0**12))).loss


def test_groups_of_rows_give_the_gradient_of_the_undivided_batch():
    steps = [make_step(Backoff(), accumulate=accumulate) for accumulate in (1, 4)]
    for step in steps:
        run(step)
    np.testing.assert_allclose(*(step.model.flat_parameters for step in steps), rtol=0.01, atol=2e-4)


# (5) and (6): overflow.


@pytest.mark.parametrize("optimizer", [SGD, Adam, NTASGD])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_overflow_changes_nothing_but_the_scale(optimizer, accumulate):
    step = make_step(Backoff(), optimizer, accumulate=accumulate)
    run(step, rate=0.01)
    arrays = [step.model.flat_parameters, step.masters.half.flat_parameters]
    arrays += [slot for slot in step.optimizer.state().values() if isinstance(slot, np.ndarray)]
    before = [array.copy() for array in arrays]
    step.scaler.scale = BEYOND_FLOAT16
    result = run(step, rate=0.01)
    assert not result.is_finite
    assert math.isfinite(result.loss)  # it is the gradients that overflowed
    assert step.optimizer.t == 1
    for array, kept in zip(arrays, before, strict=True):
        assert array.tobytes() == kept.tobytes()
    assert step.scaler.scale == BEYOND_FLOAT16 / 2


def test_after_overflows_the_run_goes_on_as_if_they_had_not_been():
    smooth, rough = make_step(Backoff(), Adam), make_step(Backoff(), Adam)
    run(smooth, rate=0.01)
    rough.scaler.scale = 2.0**30
    skipped = 0
    while not run(rough, rate=0.01).is_finite:
        skipped += 1
    assert skipped > 3
    np.testing.assert_allclose(*(step.model.flat_parameters for step in (smooth, rough)), rtol=0, atol=2e-5)
    assert smooth.optimizer.t == rough.optimizer.t == 1


def test_an_overflow_in_one_group_of_rows_is_an_overflow():
    step = make_step(Backoff(), accumulate=2)
    take = step.masters.take_gradients

    def take_with_overflow(factor, add=False):
        if not add:
            step.masters.half.flat_gradients[5] = np.inf
        take(factor, add)

    step.masters.take_gradients = take_with_overflow
    before = step.model.flat_parameters.copy()
    assert not run(step).is_finite
    np.testing.assert_array_equal(step.model.flat_parameters, before)


def test_rows_of_the_state_that_are_not_finite_are_as_before():
    old = [(np.full((3, 2), 1.0, np.float16), np.full((3, 2), 2.0, np.float16))]
    new = [(np.full((3, 2), 3.0, np.float16), np.full((3, 2), 4.0, np.float16))]
    new[0][1][1, 0] = np.inf
    for before, expected in ((old, [3, 1, 3]), (None, [3, 0, 3])):
        carried = finite_state([tuple(part.copy() for part in pair) for pair in new], before)
        assert carried[0][0][:, 0].tolist() == expected
    assert finite_state(old, None) is old


OVERFLOW_ON_RANK_1 = """
import hashlib
import json
import sys
import numpy as np
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import get_communicator
from train.mixed_precision import Backoff
from train.optimizers import Adam
from train.step import TrainingStep

communicator = get_communicator()
model = LanguageModel(ModelConfig(vocab_size=14, embedding_size=8, hidden_size=10, num_layers=2), seed=1)
step = TrainingStep(model, Adam(model.flat_parameters), communicator, 0.25, scaler=Backoff())
take = step.masters.take_gradients
text = np.random.default_rng(communicator.rank).integers(0, 14, (6, 4))  # ranks see different rows
done = []
for window in range(4):
    def take_with_overflow(factor, add=False):
        if window == 2 and communicator.rank == 1:
            step.masters.half.flat_gradients[7] = np.inf
        take(factor, add)
    step.masters.take_gradients = take_with_overflow
    result = step(text[:-1], text[1:], None, MaskStream(0, window, 4 * communicator.rank), 0.01)
    done.append(result.is_finite)
digest = hashlib.sha256(model.flat_parameters.tobytes() + step.masters.half.flat_parameters.tobytes())
facts = [done, step.optimizer.t, step.scaler.scale, digest.hexdigest()]
sys.stdout.write(json.dumps(facts) + "\\n")  # at once, or the ranks' lines mix
sys.stdout.flush()
communicator.barrier()
"""


def test_an_overflow_on_one_rank_is_skipped_by_all():
    result = run_ranks(2, OVERFLOW_ON_RANK_1)
    assert result.returncode == 0, result.stderr
    facts = {line for line in result.stdout.splitlines() if line.startswith("[")}
    assert len(facts) == 1, "the ranks decided differently"
    done, updates, scale, _ = json.loads(facts.pop())
    assert done == [True, True, False, True]
    assert updates == 3
    assert scale == 2**13


# It learns as float32 does.


def loss_curve(scaler, seed, steps=2000, T=4, B=8):
    """Losses of a one-layer model on a language of hidden topics, the state carried from window to window."""
    text = np.asarray(topics().sample((steps * T + 1) * B, 0))[: (steps * T + 1) * B].reshape(B, -1).T
    config = ModelConfig(vocab_size=V, embedding_size=8, hidden_size=10, num_layers=1)
    step = make_step(scaler, Adam, 1.0, config, seed)
    state, losses = None, []
    for window in range(steps):
        part = text[window * T : window * T + T + 1]
        result = step(part[:-1], part[1:], state, MaskStream(0, window), 0.01)
        state = result.state if result.is_finite else finite_state(result.state, state)
        losses.append(result.loss)
    return np.reshape(losses, (-1, 100)).mean(axis=1), step


@pytest.mark.long
def test_a_loss_curve_of_2000_steps_is_float32s_within_the_noise_of_seeds():
    """The scale is made to grow, so that there are overflows on the way."""
    (single, _), (other_seed, _) = loss_curve(None, seed=0), loss_curve(None, seed=1, steps=500)
    mixed, step = loss_curve(Backoff(growth_steps=100), seed=0)
    assert step.optimizer.t < 2000 - 3
    assert single[-1] < single[0] - 0.2  # there was something to learn
    noise = np.abs(other_seed - single[:5]).mean()
    assert np.abs(mixed - single)[:5].mean() < noise / 2
    assert np.abs(mixed - single)[5:].max() < 0.01
    assert abs(mixed[-5:].mean() - single[-5:].mean()) < 0.003


# Whole runs.

MIXED = {"precision": "mixed", "loss_scale_growth_steps": 3}  # grows until it overflows


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("mixed") / "text.txt", lines=140)


@pytest.fixture
def here(text, monkeypatch):
    """Runs in this process: where the prepared text lies."""
    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    return text.parent


def train_here(text, run, steps, *more, **knobs):
    knobs = {"epochs": 50, "evaluate_every": 20, "save_every": 10, **knobs}
    assert main([*flags(text, run, **knobs), "--max-steps", str(steps), *more]) == 0
    return [row for row in rows_of(run) if row["kind"] == "train"]


def contents(run, which="latest"):
    """Arrays and description of a checkpoint."""
    arrays = {}
    with h5py.File(run / "checkpoints" / f"{which}.h5") as file:
        file["arrays"].visititems(
            lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
        return arrays, json.loads(file["meta"][()].tobytes())


@pytest.fixture
def finished(here, text):
    run = here / "finished"
    if not run.exists():
        train_here(text, run, 40, **MIXED)
    return run


def test_a_run_skips_overflows_and_says_so(finished):
    rows = [row for row in rows_of(finished) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 41))  # the steps that were made
    skipped = rows[-1]["skipped_steps"]
    assert skipped >= 3
    assert all(a["skipped_steps"] <= b["skipped_steps"] for a, b in zip(rows[:-1], rows[1:], strict=True))
    assert max(row["loss_scale"] for row in rows) > 2**14
    arrays, facts = contents(finished)
    assert facts["optimizer_t"] == facts["position"]["step"] == 40
    assert facts["position"]["skipped_steps"] == skipped
    windows = facts["position"]["window"] + facts["position"]["epoch"] * 15
    assert windows >= 40 + skipped or facts["position"]["epoch"] > 0
    assert facts["loss_scaler"]["name"] == "backoff"
    assert facts["loss_scaler"]["scale"] == rows[-1]["loss_scale"]
    assert arrays["parameters"].dtype == np.float32
    assert arrays["state/0/h"].dtype == np.float16


def test_a_skipped_step_is_told_and_does_not_advance_the_schedule(here, text, capsys):
    rows = train_here(text, here / "cosine", 30, **MIXED, schedule="cosine", warmup_steps=5)
    assert rows[-1]["skipped_steps"] >= 3
    told = capsys.readouterr().err.count("float16 overflowed, the loss scale is now ")
    assert told == rows[-1]["skipped_steps"]
    schedule = make_schedule("cosine", 0.01, warmup_steps=5, total_steps=30)
    assert [row["learning_rate"] for row in rows] == [schedule(step) for step in range(30)]


AVERAGED = {"optimizer": "nt_asgd", "nonmono": 1, "learning_rate": 5.0, "evaluate_every": 3}


@pytest.mark.parametrize(
    "knobs",
    [{"loss_scaler": "log_max", "initial_loss_scale": 64.0}, {**AVERAGED, "accumulate": 2}],
    ids=["log_max", "nt_asgd"],
)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(here, text, knobs, request):
    whole, parts = (here / f"{request.node.callspec.id}-{name}" for name in ("whole", "parts"))
    knobs = {**MIXED, "evaluate_every": 4, **knobs}
    train_here(text, whole, 24, **knobs)
    train_here(text, parts, 12, **knobs)
    train_here(text, parts, 24, "--resume", **knobs)
    for which in ("latest", "best"):
        (arrays, facts), (others, other_facts) = contents(whole, which), contents(parts, which)
        assert arrays.keys() == others.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, others[name], err_msg=f"{which}: {name}")
        assert facts["loss_scaler"] == other_facts["loss_scaler"]
    assert facts["position"]["step"] > 0
    if "nonmono" in knobs:
        assert "optimizer/average" in contents(whole)[0]


@pytest.mark.parametrize(("first", "layer_norm"), [("float32", "false"), ("mixed", "true")])
def test_a_run_goes_on_in_the_other_precision(here, text, first, layer_norm):
    """With the weights, moments and the state that it has, and the same curve within float16's rounding."""
    second = "mixed" if first == "float32" else "float32"
    knobs = {"layer_norm": layer_norm, "learning_rate": 0.003}
    if layer_norm == "true":
        knobs |= {"layer_norm_epsilon": 1e-5, "encoder_emb_keep_prob": 1.0}  # no rows of zeros: no overflow
    folder = here / f"{first}-{layer_norm}"
    train_here(text, folder, 10, **knobs, precision=first)
    rows = train_here(text, folder, 20, "--resume", **knobs, precision=second)
    single = train_here(text, here / f"{first}-{layer_norm}-alone", 20, **knobs)
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in single], rtol=2e-3)
    assert ["loss_scale" in row for row in rows] == [first == "mixed"] * 10 + [second == "mixed"] * 10
    assert f'precision = "{second}"' in (folder / "config.toml").read_text()


def test_layer_norm_has_float16s_epsilon_written_down_and_keeps_it(here, text):
    folder = here / "epsilon"
    train_here(text, folder, 3, layer_norm="true", precision="mixed")
    assert "layer_norm_epsilon = 0.001\n" in (folder / "config.toml").read_text()
    assert main(["--run-dir", str(folder), "--resume", "--max-steps", "5", "--precision", "float32"]) == 0
    assert load_trained(folder)[0].config.layer_norm_epsilon == 1e-3


def test_a_float32_run_keeps_its_epsilon_in_mixed_precision(here, text):
    folder = here / "kept"
    train_here(text, folder, 3, layer_norm="true")
    assert main(["--run-dir", str(folder), "--resume", "--max-steps", "5", "--precision", "mixed"]) == 0
    assert "layer_norm_epsilon = 0.0\n" in (folder / "config.toml").read_text()


def test_its_weights_are_evaluated_and_used_in_float32(finished, capsys):
    model, *_ = load_trained(finished)
    assert model.dtype == np.float32
    np.testing.assert_array_equal(model.flat_parameters, contents(finished, "best")[0]["parameters"])
    assert (model.flat_parameters != float16_of(model.flat_parameters)).mean() > 0.9
    result = json.loads((finished / "result.json").read_text())
    assert train.evaluate.main([str(finished), "--split", "test", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)


def test_a_scale_at_its_lowest_ends_the_run_in_one_line(here, text):
    """Weights beyond float16: no scale of the loss can help."""
    folder = here / "hopeless"
    knobs = {"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 1e9, "save_every": 1, **MIXED}
    with pytest.raises(InputError) as error:
        train_here(text, folder, 10, **knobs)
    message = str(error.value)
    assert message.startswith("float16 overflowed 100 times")
    assert f"the checkpoint {folder / 'checkpoints' / 'latest.h5'} is as it was" in message
    assert message.endswith("lower learning_rate, or go on with --resume --precision float32")
    assert "\n" not in message


def test_a_scale_that_stays_at_its_lowest_is_told_of_once(here, text, monkeypatch, capsys):
    monkeypatch.setattr(train.training_run, "LONG_AT_LOWEST", 3)
    train_here(text, here / "low", 6, precision="mixed", initial_loss_scale=1)
    shown = capsys.readouterr()
    told = [line for line in (shown.out + shown.err).splitlines() if "at its lowest, 1, for 3 steps" in line]
    assert len(told) == 1
    assert told[0].endswith("lower learning_rate, or go on with --resume --precision float32")


# Knobs.


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"loss_scaler": "backof"}, "loss_scaler must be one of backoff, log_max; got 'backof'"),
        ({"initial_loss_scale": 0.5}, "initial_loss_scale must be a number from 1 to 65536; got 0.5"),
        ({"initial_loss_scale": 2.0**17}, "initial_loss_scale must be a number from 1 to 65536; got 131072"),
        (
            {"loss_scale_growth_steps": 0},
            "loss_scale_growth_steps must be a whole number of at least 1; got 0",
        ),
        (
            {"loss_scaler": "log_max", "initial_loss_scale": 2.0**15},
            "initial_loss_scale must be at most 16384 with loss_scaler 'log_max', .* got 32768; lower it",
        ),
    ],
    ids=str,
)
def test_knobs_of_the_scale_are_checked(knobs, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(precision="mixed", **knobs)


def test_bfloat16_is_refused_and_told_why():
    with pytest.raises(InputError, match="foreign type alone, .* take precision 'mixed', whose loss scale"):
        TrainConfig(precision="bfloat16")


def test_knobs_of_the_scale_reach_the_scaler():
    make = train.plan.make_scaler
    assert make(TrainConfig()) is None
    scaler = make(TrainConfig(precision="mixed", initial_loss_scale=2.0**16, loss_scale_growth_steps=7))
    assert (type(scaler), scaler.scale, scaler.growth_steps) == (Backoff, 2**16, 7)
    scaler = make(TrainConfig(precision="mixed", loss_scaler="log_max", initial_loss_scale=4.0))
    assert (type(scaler), scaler.scale) == (LogMax, 4)
