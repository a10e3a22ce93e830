"""Perplexity: every token once, whatever the batch, the window and the number of ranks."""

import json

import numpy as np
import pytest
from mpi import run_ranks
from tiny import train_tiny, write_text

import train.evaluate
from autograd import evaluation_mode, no_backprop_mode
from minilstm import LanguageModel, ModelConfig, detach
from train.communicator import SingleProcess
from train.evaluate import evaluate

EOS = 2


@pytest.fixture(scope="module")
def model():
    built = LanguageModel(ModelConfig(vocab_size=9, embedding_size=6, hidden_size=8, num_layers=2), seed=3)
    built.flat_parameters *= 4  # far from uniform predictions, and a memory that lasts
    return built


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, 9, 3001).astype(np.int32)


def score(model, tokens, **options):
    return evaluate(
        model, lambda start, stop: tokens[start:stop], len(tokens), EOS, SingleProcess(), **options
    )


def one_stream(model, tokens):
    """The definition: one word after the other, the first one after <eos>."""
    state, total, before = None, 0.0, EOS
    for token in tokens:
        log_probs, state = model.next_log_probs(np.array([before]), state)
        total -= float(log_probs[0, token])
        before = token
    return total / len(tokens)


def test_it_is_the_mean_over_one_stream_word_by_word(model, tokens):
    result = score(model, tokens, batch_size=1)
    assert result["scored_tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(one_stream(model, tokens), rel=1e-6)
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))
    assert result["protocol"] == "state carried through the split"


@pytest.mark.parametrize(("batch_size", "window"), [(2, 70), (7, 13), (40, 70), (2999, 5), (5000, 70)])
def test_batch_size_and_window_do_not_matter(model, tokens, batch_size, window):
    result = score(model, tokens, batch_size=batch_size, window=window)
    assert result["scored_tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(score(model, tokens, batch_size=1)["loss"], rel=1e-6)


def test_without_the_warm_up_the_batch_size_would_matter(model, tokens, monkeypatch):
    monkeypatch.setattr(train.evaluate, "WARM_UP", 0)
    cold = score(model, tokens, batch_size=40)["loss"]
    assert abs(cold / score(model, tokens, batch_size=1)["loss"] - 1) > 1e-5


def test_dropouts_are_off_and_nothing_is_recorded(tokens):
    config = ModelConfig(9, 6, 8, 2, encoder_emb_keep_prob=0.5, encoder_dp_input_keep_prob=0.5)
    dropped = LanguageModel(config, seed=3)
    plain = LanguageModel(ModelConfig(9, 6, 8, 2), seed=3)
    assert score(dropped, tokens)["loss"] == score(plain, tokens)["loss"]
    with no_backprop_mode(), evaluation_mode():
        loss, state = plain(tokens[:4, None], tokens[1:5, None])
    assert loss.creator is None
    assert detach(state)[0][0].shape == (1, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    text = write_text(folder / "text.txt")
    train_tiny(1, text, folder / "run", "--max-steps", "20")
    return folder / "run"


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_command_agrees_on_any_number_of_ranks(run, ranks):
    env = {"MINILSTM_DATA": str(run.parent / "prepared")}
    arguments = [str(run), "--json", "--batch-size", str(5 - ranks)]
    result = run_ranks(ranks, "train.evaluate", *arguments, env=env)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    written = json.loads((run / "result.json").read_text())["test"]
    assert printed["loss"] == pytest.approx(written["loss"], rel=1e-6)
    assert printed["scored_tokens"] == written["scored_tokens"]
    assert printed["split"] == "test"
