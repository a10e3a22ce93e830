"""Perplexity: every token once, whatever the batch, the window and the number of ranks."""

import functools
import json
import os
import signal

import numpy as np
import pytest
from mpi import run_ranks
from one_rank import sums_over_ranks
from tiny import train_tiny, write_text

import minilstm.lstm_kernels
import train.rows
from autograd import evaluation_mode, no_backprop_mode
from autograd.errors import InputError
from autograd.parallel import split_range
from minilstm import LanguageModel, ModelConfig, detach
from train.communicator import SingleProcess
from train.corpus import open_corpus
from train.evaluate import evaluate, main
from train.run_folder import load_trained
from train.signals import StopRequest, StopRequestedError

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
    tokens = tokens[:1000]
    result = score(model, tokens, batch_size=1)
    assert result["scored_tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(one_stream(model, tokens), rel=1e-6)
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))
    assert result["protocol"] == "state carried through the split"


@pytest.fixture(scope="module")
def loss_of_one_row(model, tokens):
    """By the number of tokens."""
    return functools.cache(lambda count: score(model, tokens[:count], batch_size=1)["loss"])


@pytest.mark.parametrize(
    ("count", "batch_size", "window"),
    # Each row is warmed up by 1,024 words, where there are so many before it: many rows are a lot of work.
    [(3001, 2, 70), (3001, 7, 13), (3001, 40, 70), (1100, 1098, 5), (1100, 5000, 70)],
)
def test_batch_size_and_window_do_not_matter(model, tokens, loss_of_one_row, count, batch_size, window):
    result = score(model, tokens[:count], batch_size=batch_size, window=window)
    assert result["scored_tokens"] == count
    assert result["loss"] == pytest.approx(loss_of_one_row(count), rel=1e-6)


@pytest.mark.parametrize(
    ("count", "protocol", "rows"),
    [(1, "carried", 1), (4095, "carried", 1), (8192, "carried", 4), (10**6, "carried", 64), (99, "zero", 29)],
)
def test_rows_unless_told(count, protocol, rows):
    assert train.evaluate._rows_that_pay(count, 70, protocol) == rows


def test_the_rows_that_pay_score_the_same(model, tokens, loss_of_one_row, monkeypatch):
    """Many of them, with few steps at a time."""
    monkeypatch.setattr(train.evaluate, "_rows_that_pay", lambda *_: 40)
    monkeypatch.setattr(train.evaluate, "TOKENS_AT_A_TIME", 100)
    assert score(model, tokens[:3001])["loss"] == pytest.approx(loss_of_one_row(3001), rel=1e-6)


def test_groups_of_rows_on_threads_score_the_same(model, tokens, loss_of_one_row, monkeypatch):
    monkeypatch.setattr(train.evaluate, "_groups", lambda model, rows: split_range(rows, 3))
    result = score(model, tokens[:3001], batch_size=20)
    assert result["loss"] == pytest.approx(loss_of_one_row(3001), rel=1e-6)
    assert result["scored_tokens"] == 3001


def test_a_group_that_is_told_to_stop_ends_the_others(model, tokens, monkeypatch):
    monkeypatch.setattr(train.evaluate, "_groups", lambda model, rows: split_range(rows, 2))
    with StopRequest(SingleProcess()) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequestedError):
            score(model, tokens, batch_size=20, stop=stop)


@pytest.mark.parametrize(
    ("hidden", "threads", "rows", "groups"), [(8, 1, 9, 1), (8, 2, 9, 2), (600, 2, 64, 1)]
)
def test_layers_that_threads_share_take_all_rows(hidden, threads, rows, groups, monkeypatch):
    for module in (train.evaluate, minilstm.lstm_kernels):
        monkeypatch.setattr(module, "num_threads", lambda: threads)
    model = LanguageModel(ModelConfig(9, 6, hidden, 2))
    assert len(train.evaluate._groups(model, rows)) == groups


def test_without_the_warm_up_the_batch_size_would_matter(model, tokens, loss_of_one_row, monkeypatch):
    monkeypatch.setattr(train.rows, "WARM_UP", 0)
    cold = score(model, tokens, batch_size=40)["loss"]
    assert abs(cold / loss_of_one_row(len(tokens)) - 1) > 1e-5


def test_dropouts_are_off_and_nothing_is_recorded(tokens):
    config = ModelConfig(9, 6, 8, 2, encoder_emb_keep_prob=0.5, encoder_dp_input_keep_prob=0.5)
    dropped = LanguageModel(config, seed=3)
    plain = LanguageModel(ModelConfig(9, 6, 8, 2), seed=3)
    assert score(dropped, tokens)["loss"] == score(plain, tokens)["loss"]
    with no_backprop_mode(), evaluation_mode():
        loss, state = plain(tokens[:4, None], tokens[1:5, None])
    assert loss.creator is None
    assert detach(state)[0][0].shape == (1, 8)


def windows_from_zero(model, tokens, window):
    """The definition: the state is forgotten every `window` words, the word before is not."""
    state, total, before = None, 0.0, EOS
    for number, token in enumerate(tokens):
        log_probs, state = model.next_log_probs(np.array([before]), state if number % window else None)
        total -= float(log_probs[0, token])
        before = token
    return total / len(tokens)


@pytest.mark.parametrize("window", [1, 7, 70, 500, 900])
def test_the_zero_protocol_forgets_the_state_at_every_window(model, tokens, window):
    tokens = tokens[:500]
    result = score(model, tokens, protocol="zero", window=window)
    assert result["scored_tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(windows_from_zero(model, tokens, window), rel=1e-6)
    assert result["protocol"] == f"zero state every {window} tokens"


@pytest.mark.parametrize("batch_size", [1, 3, 8, 900])
def test_the_batch_size_does_not_matter_to_the_zero_protocol(model, tokens, batch_size):
    tokens = tokens[:500]
    result = score(model, tokens, protocol="zero", batch_size=batch_size)
    assert result["scored_tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(score(model, tokens, protocol="zero")["loss"], rel=1e-6)


def test_a_window_as_long_as_the_split_makes_both_protocols_one(model, tokens):
    tokens = tokens[:500]
    zero = score(model, tokens, protocol="zero", window=len(tokens))["loss"]
    assert zero == pytest.approx(score(model, tokens, batch_size=1)["loss"], rel=1e-6)
    assert abs(score(model, tokens, protocol="zero", window=5)["loss"] / zero - 1) > 1e-3


@pytest.mark.parametrize("protocol", ["carried", "zero"])
@pytest.mark.parametrize("ranks", [2, 3, 20])
def test_the_ranks_share_the_tokens_each_of_them_scored_once(model, tokens, protocol, ranks):
    tokens = tokens[:500]

    def part(communicator):
        evaluate(model, lambda a, b: tokens[a:b], 500, EOS, communicator, 10, 30, protocol=protocol)

    total, count = sums_over_ranks(ranks, part)
    assert count == len(tokens)
    alone = score(model, tokens, window=30, protocol=protocol)
    assert total / count == pytest.approx(alone["loss"], rel=1e-6)


def test_an_unknown_protocol_is_refused(model, tokens):
    with pytest.raises(InputError, match="protocol: expected carried or zero; got 'warm'"):
        score(model, tokens, protocol="warm")


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
    assert printed["tokens"] == printed["scored_tokens"]
    assert printed["perplexity"] == pytest.approx(np.exp(printed["loss"]))
    assert printed["protocol"] == "state carried through the split"
    assert printed["seconds"] > 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_command_scores_by_the_zero_protocol(run, ranks):
    env = {"MINILSTM_DATA": str(run.parent / "prepared")}
    arguments = [str(run), "--json", "--split", "valid", "--protocol", "zero", "--window", "9"]
    result = run_ranks(ranks, "train.evaluate", *arguments, "--batch-size", str(1 + ranks), env=env)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    loaded, _, vocabulary, _ = load_trained(run)
    with open_corpus(next((run.parent / "prepared").glob("*.h5"))) as corpus:
        tokens = corpus.read("valid", 0, corpus.num_tokens("valid"))
    expected = evaluate(
        loaded,
        lambda a, b: tokens[a:b],
        len(tokens),
        vocabulary.eos_id,
        SingleProcess(),
        window=9,
        protocol="zero",
    )
    assert printed["protocol"] == "zero state every 9 tokens"
    assert printed["tokens"] == len(tokens)
    assert printed["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size: must be at least 1; got 0"),
        (["--window", "-3"], "--window: must be at least 1; got -3"),
        (["--unaveraged"], "--unaveraged: needs --checkpoint latest, the only one that keeps both; got best"),
        (["--protocol", "warm"], "argument --protocol: invalid choice: 'warm'"),
        (["--pointer", "--dynamic"], "--pointer and --dynamic: cannot be combined"),
        (["--pointer", "--protocol", "zero"], "--protocol zero: does not act with --pointer"),
        (["--dynamic", "--protocol", "zero"], "--protocol zero: does not act with --dynamic"),
        (["--pointer", "--window", "70"], "--window: does not act with --pointer"),
        (["--dynamic", "--batch-size", "2"], "--batch-size: does not act with --dynamic"),
        (["--pointer-theta", "1"], "--pointer-theta: acts with --pointer alone"),
        (["--pointer", "--dynamic-decay", "0"], "--dynamic-decay: acts with --dynamic alone"),
        (["--pointer", "--pointer-window", "0"], "pointer window: must be at least 1; got 0"),
        (["--pointer", "--pointer-theta", "nan"], "pointer theta: must be a number ≥ 0; got nan"),
        (["--pointer", "--pointer-lambda", "1"], "pointer lambda: must be within [0, 1); got 1.0"),
        (["--dynamic", "--dynamic-rule", "adam"], "argument --dynamic-rule: invalid choice: 'adam'"),
        (["--dynamic", "--dynamic-learning-rate", "-1"], "dynamic learning_rate: must be a number ≥ 0"),
        (["--dynamic", "--dynamic-decay", "2"], "dynamic decay: must be within [0, 1]; got 2.0"),
        (["--dynamic", "--dynamic-epsilon", "0"], "dynamic epsilon: must be a number > 0; got 0.0"),
        (["--dynamic", "--dynamic-segment", "0"], "dynamic segment: must be at least 1; got 0"),
        (["--dynamic", "--dynamic-statistics", "-1"], "--dynamic-statistics: must be at least 0; got -1"),
        (["--dynamic", "--dynamic-tune", "0"], "--dynamic-tune: must be at least 1; got 0"),
        (
            ["--dynamic", "--dynamic-rule", "sgd", "--dynamic-epsilon", "1"],
            "--dynamic-statistics, --dynamic-epsilon: belong to the rule rms",
        ),
    ],
    ids=" ".join,
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_read(flags, message, capsys):
    with pytest.raises(InputError) as error:
        main(["no such run", *flags])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_wrong_flag_is_one_line_and_status_2():
    result = run_ranks(1, "train.evaluate", "no such run", "--pointer", "--pointer-lambda", "3")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: pointer lambda: must be within [0, 1); got 3.0\n"


def test_dynamic_evaluation_on_many_ranks_is_refused(run):
    result = run_ranks(2, "train.evaluate", str(run), "--dynamic")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: --dynamic: reads one stream, each segment after the one before" in result.stderr
