"""Dynamic evaluation against its equations in whole arrays; and where it must help."""

import hashlib
import json

import numpy as np
import pytest
from mpi import run_ranks
from tiny import train_tiny, write_text

from autograd import evaluation_mode
from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig, detach
from train.communicator import SingleProcess
from train.dynamic_evaluation import (
    DEFAULTS,
    TUNED_DECAYS,
    TUNED_RATES,
    DynamicRule,
    dynamic_loss,
    root_mean_squares,
    tune,
)
from train.evaluate import evaluate

EOS, V = 2, 9
RMS = DynamicRule("rms", learning_rate=0.02, decay=0.05, epsilon=1e-3, segment=7)
SGD = DynamicRule("sgd", learning_rate=0.5, decay=0.05, segment=7)


def make_model(dtype=np.float64, **options):
    sizes = {"embedding_size": 6, "hidden_size": 8, "num_layers": 2, **options}
    model = LanguageModel(ModelConfig(V, **sizes), seed=3, dtype=dtype)
    model.flat_parameters *= 4
    return model


OPTIONS = {
    "untied": {"tied_weights": False, "last_hidden_size": 5},
    "adaptive": {"softmax": "adaptive", "adaptive_bands": [3, 6]},
    "sampled": {"softmax": "sampled", "num_samples": 4},
    "layer norm, residual": {"layer_norm": True, "residual": True, "hidden_size": 6},
    "regularised": {"activation_regularization": 2.0, "temporal_activation_regularization": 1.0},
}


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, V, 240).astype(np.int32)


@pytest.fixture(scope="module")
def rms(tokens):
    return root_mean_squares(make_model(), lambda a, b: tokens[a:b], len(tokens), segment=3, windows=0)


def score(model, tokens, rule, rms=None):
    return dynamic_loss(model, lambda start, stop: tokens[start:stop], len(tokens), EOS, rule, rms)


def step_by_step(model, tokens, rule, rms):
    """The equations of the paper, parameter by parameter: losses of the segments, and the weights after."""
    trained = {name: p.data.copy() for name, p in model.named_parameters()}
    parts, start = {}, 0
    for name, p in model.named_parameters():
        parts[name] = slice(start, start + p.size)
        start += p.size
    stream, state, losses = np.concatenate([[EOS], tokens]), None, []
    for first in range(0, len(tokens), rule.segment):
        last = min(first + rule.segment, len(tokens))
        with evaluation_mode():
            loss, state = model(stream[first:last, None], tokens[first:last, None], state)
        losses.append(loss.item() * (last - first))
        model.zero_grads()
        loss.backward()
        for name, p in model.named_parameters():
            step, back = rule.learning_rate * p.grad, rule.decay
            if rule.rule == "rms":
                own = rms[parts[name]].reshape(p.shape)
                step, back = step / (own + rule.epsilon), np.minimum(rule.decay * own / rms.mean(), 1)
            p.data += back * (trained[name] - p.data) - step
        state = detach(state)
    return losses


@pytest.mark.parametrize("rule", [RMS, SGD], ids=lambda rule: rule.rule)
def test_it_is_the_paper_s_equations_segment_by_segment(tokens, rms, rule):
    losses = step_by_step(make_model(), tokens, rule, rms)
    found = score(make_model(), tokens, rule, rms)
    assert found == pytest.approx(sum(losses) / len(tokens), rel=1e-9)
    unmoved = score(make_model(), tokens, DynamicRule("sgd", 0, 0, segment=7))
    assert abs(found / unmoved - 1) > 1e-3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_models_of_every_kind_follow_the_text(tokens, options):
    rms = root_mean_squares(make_model(**options), lambda a, b: tokens[a:b], len(tokens), 3)
    losses = step_by_step(make_model(**options), tokens, RMS, rms)
    found = score(make_model(**options), tokens, RMS, rms)
    assert found == pytest.approx(sum(losses) / len(tokens), rel=1e-9)


def test_no_weight_is_drawn_further_than_back_to_where_it_was(tokens, rms):
    """λ RMS_norm is far beyond 1 for some weights here: unclipped they would run away."""
    rule = DynamicRule("rms", learning_rate=1e-3, decay=1.0, segment=7)
    assert (rms / rms.mean()).max() > 2.5
    losses = step_by_step(make_model(), tokens, rule, rms)
    assert score(make_model(), tokens, rule, rms) == pytest.approx(sum(losses) / len(tokens), rel=1e-9)


def test_without_updates_it_is_the_static_perplexity(tokens):
    expected = evaluate(make_model(), lambda a, b: tokens[a:b], 240, EOS, SingleProcess(), batch_size=1)
    still = DynamicRule("sgd", learning_rate=0, decay=0.3, segment=11)
    assert score(make_model(), tokens, still) == pytest.approx(expected["loss"], rel=1e-9)


@pytest.mark.parametrize("rule", [RMS, SGD], ids=lambda rule: rule.rule)
def test_a_segment_is_scored_before_it_is_learned_from(tokens, rms, rule):
    """The first segment costs what it costs unlearned; learned from, it would cost less the second time."""
    still = DynamicRule("sgd", learning_rate=0, decay=0, segment=7)
    first = score(make_model(), tokens[:7], still)
    assert score(make_model(), tokens[:7], rule, rms) == pytest.approx(first, rel=1e-12)
    twice = np.concatenate([tokens[:7], tokens[:7]])
    assert score(make_model(), twice, rule, rms) < score(make_model(), twice, still)


def test_the_weights_are_the_trained_ones_afterwards(tokens, rms):
    model = make_model()
    trained = model.flat_parameters.copy()
    score(model, tokens, RMS, rms)
    assert np.array_equal(model.flat_parameters, trained)

    def broken(start, stop):
        if start > 100:
            raise OSError("planted")
        return tokens[start:stop]

    with pytest.raises(OSError, match="planted"):
        dynamic_loss(model, broken, len(tokens), EOS, RMS, rms)
    assert np.array_equal(model.flat_parameters, trained)


def test_dropouts_are_off(tokens, rms):
    options = {
        "encoder_emb_keep_prob": 0.5,
        "encoder_dp_input_keep_prob": 0.5,
        "recurrent_weight_keep_prob": 0.5,
    }
    assert score(make_model(**options), tokens, RMS, rms) == score(make_model(), tokens, RMS, rms)
    again = root_mean_squares(make_model(**options), lambda a, b: tokens[a:b], len(tokens), 3, windows=0)
    assert np.array_equal(again, rms)


@pytest.mark.parametrize(("windows", "segments"), [(2, 2), (0, 12), (99, 12)])
def test_root_mean_squares_are_over_windows_of_rows_with_the_state_carried(
    tokens, monkeypatch, windows, segments
):
    monkeypatch.setattr("train.dynamic_evaluation.STATISTICS_ROWS", 4)
    model, state, squares = make_model(), None, 0.0
    rows = np.stack([tokens[row * 59 : (row + 1) * 59 + 1] for row in range(4)], axis=1)
    for start in range(0, 59, 5)[:segments]:
        stop = min(start + 5, 59)
        with evaluation_mode():
            loss, state = model(rows[start:stop], rows[start + 1 : stop + 1], state)
        model.zero_grads()
        loss.backward()
        squares, state = squares + model.flat_gradients**2, detach(state)
    found = root_mean_squares(make_model(), lambda a, b: tokens[a:b], len(tokens), 5, windows)
    np.testing.assert_allclose(found, np.sqrt(squares / segments), rtol=1e-10)
    assert np.array_equal(model.flat_parameters, make_model().flat_parameters)


def test_it_wins_where_a_text_has_habits_of_its_own():
    """The model has learned nothing of this text; the next sentence is like the last one."""
    text = np.tile(np.random.default_rng(5).integers(0, V, 12), 60).astype(np.int32)
    model = LanguageModel(ModelConfig(V, 16, 16, 1), seed=3)
    static = score(model, text, DynamicRule("sgd", learning_rate=0, decay=0))
    rms = root_mean_squares(model, lambda a, b: text[a:b], len(text), 5)
    rules = [DynamicRule("sgd", 1.0, 1e-3, segment=5), DynamicRule("rms", 0.05, 1e-3, 1e-2, segment=5)]
    for rule in rules:
        assert score(model, text, rule, rms) < static - np.log(2)


def test_weights_beyond_numbers_are_an_infinite_loss(tokens):
    model = make_model(np.float32)
    assert score(model, tokens, DynamicRule("sgd", learning_rate=1e30, decay=0, segment=5)) == np.inf
    assert np.isfinite(model.flat_parameters).all()


def test_tuning_takes_the_best_rate_then_the_best_decay_at_it():
    losses = {(1, 0.1): 5.0, (2, 0.1): 4.5, (4, 0.1): np.inf, (2, 0.0): 4.6, (2, 0.3): 4.4}
    calls = []

    def loss_of(rule):
        calls.append((rule.learning_rate, rule.decay))
        return losses[calls[-1]]

    start = DynamicRule("sgd", 1, 0.1, segment=3)
    best, tried = tune(start, (1, 2, 4), (0.0, 0.1, 0.3), loss_of)
    assert best == DynamicRule("sgd", 2, 0.3, segment=3)
    assert sorted(calls) == sorted(losses)  # each once
    assert list(tried.values()) == [losses[call] for call in calls]
    assert tune(start, (), (), loss_of)[0] == start


def test_every_default_is_among_what_is_tuned():
    for name, rule in DEFAULTS.items():
        assert rule.learning_rate in TUNED_RATES[name]
        assert rule.decay in TUNED_DECAYS


def test_the_rule_rms_needs_its_statistics(tokens):
    with pytest.raises(InputError, match="the rule rms needs the gradients' root mean squares"):
        score(make_model(), tokens, RMS)
    with pytest.raises(InputError, match="gradient statistics need at least 2"):
        root_mean_squares(make_model(), lambda a, b: tokens[a:b], 1, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dynamic")
    train_tiny(1, write_text(folder / "text.txt"), folder / "run", "--max-steps", "20")
    return folder / "run"


def evaluate_run(run, *flags):
    env = {"MINILSTM_DATA": str(run.parent / "prepared")}
    return run_ranks(1, "train.evaluate", str(run), "--dynamic", *flags, env=env)


def digests(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def test_the_command_lowers_the_perplexity_and_leaves_the_run_alone(run):
    before = digests(run)
    result = evaluate_run(run, "--json", "--dynamic-statistics", "5")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    written = json.loads((run / "result.json").read_text())["test"]
    assert printed["static_loss"] == pytest.approx(written["loss"], rel=1e-6)
    assert printed["loss"] < printed["static_loss"]
    assert printed["tokens"] == written["scored_tokens"]
    assert printed["protocol"] == "state carried through the split, with dynamic evaluation"
    assert printed["dynamic"]["rule"] == "rms"
    assert printed["dynamic"]["statistics_windows"] == 5
    assert printed["dynamic"]["tuned"] is False
    assert digests(run) == before


def test_the_command_tunes_on_valid(run):
    flags = ["--dynamic-rule", "sgd", "--dynamic-tune", "60", "--dynamic-decay", "0.01"]
    result = evaluate_run(run, "--json", *flags)
    assert result.returncode == 0, result.stderr
    dynamic = json.loads(result.stdout)["dynamic"]
    assert (dynamic["tuned_on"], dynamic["tuning_tokens"]) == ("valid", 60)
    assert {row["decay"] for row in dynamic["grid"]} == {0.01}
    best = min(dynamic["grid"], key=lambda row: row["loss"])
    assert (dynamic["learning_rate"], dynamic["decay"]) == (best["learning_rate"], best["decay"])
    assert len(dynamic["grid"]) == len(TUNED_RATES["sgd"])
    told = evaluate_run(run, *flags)
    assert told.stdout.startswith("tuned on the first 60 tokens of valid: --dynamic-learning-rate ")


def test_a_learning_rate_that_breaks_the_model_is_told(run):
    result = evaluate_run(run, "--dynamic-rule", "sgd", "--dynamic-learning-rate", "1e30")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("error: --dynamic: the updates have driven the weights")
    assert "Warning" not in result.stderr
