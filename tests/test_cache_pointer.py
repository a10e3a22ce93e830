"""The cache pointer against its definition, word by word; and where it must help."""

import json

import numpy as np
import pytest
from mpi import run_ranks
from one_rank import sums_over_ranks
from tiny import train_tiny, write_text

from autograd import evaluation_mode, no_backprop_mode
from autograd.errors import InputError
from autograd.functions.loss import softmax_cross_entropy
from minilstm import LanguageModel, ModelConfig
from minilstm.tied_softmax import tied_token_losses
from train.cache_pointer import NO_WORD, PointerGrid, cache_masses, mixture_losses, pointer_losses
from train.communicator import SingleProcess
from train.rows import rows_of_rank

EOS, V = 2, 9
GRID = PointerGrid(windows=(3, 40, 200), thetas=(0.0, 0.7, 30.0), lambdas=(0.0, 0.1, 0.6))


@pytest.fixture(scope="module")
def model():
    sizes = ModelConfig(vocab_size=V, embedding_size=6, hidden_size=8, num_layers=2)
    built = LanguageModel(sizes, seed=3, dtype=np.float64)
    built.flat_parameters *= 4
    return built


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, V, 300).astype(np.int32)


def score(model, tokens, grid=GRID, **options):
    return pointer_losses(
        model, lambda start, stop: tokens[start:stop], len(tokens), EOS, SingleProcess(), grid, **options
    )


@pytest.fixture(scope="module")
def outputs_and_probabilities(model, tokens):
    return read_word_by_word(model, tokens)


def read_word_by_word(model, tokens):
    """The output that each token is predicted from, (N, E), and its distribution, (N, V)."""
    state, outputs, probabilities = None, [], []
    for word in [EOS, *tokens[:-1]]:
        with no_backprop_mode(), evaluation_mode():
            h, _ = model.encode(np.array([[word]]), state)
        log_probs, state = model.next_log_probs(np.array([word]), state)
        outputs.append(h.data[0, 0])
        probabilities.append(np.exp(log_probs[0]))
    return np.stack(outputs), np.stack(probabilities)


def word_by_word(outputs, probabilities, tokens, window, theta, share):
    """The definition, the whole distribution of every word: the mean loss."""
    total = 0.0
    for t, token in enumerate(tokens):
        p, first = probabilities[t], max(0, t - window)
        if t > first:
            likeness = theta * outputs[first:t] @ outputs[t]
            weights = np.exp(likeness - likeness.max())
            cache = np.zeros(V)
            for weight, word in zip(weights / weights.sum(), tokens[first:t], strict=True):
                cache[word] += weight
            p = (1 - share) * p + share * cache
        assert p.sum() == pytest.approx(1)
        total -= np.log(p[token])
    return total / len(tokens)


def test_every_pointer_of_the_grid_is_the_definition(model, tokens, outputs_and_probabilities):
    found = score(model, tokens)
    assert found.scored_tokens == len(tokens)
    for w, window in enumerate(GRID.windows):
        for k, theta in enumerate(GRID.thetas):
            expected = word_by_word(*outputs_and_probabilities, tokens, window, theta, GRID.lambdas[1])
            assert found.losses[w, k, 1] == pytest.approx(expected, rel=1e-10)
    expected = word_by_word(*outputs_and_probabilities, tokens, 40, 0.7, GRID.lambdas[2])
    assert found.losses[1, 1, 2] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"tied_weights": False, "last_hidden_size": 5},
        {"softmax": "adaptive", "adaptive_bands": [3, 6]},
        {"softmax": "sampled", "num_samples": 4},
        {"layer_norm": True, "residual": True, "hidden_size": 6},
    ],
    ids=["untied", "adaptive", "sampled", "layer norm, residual"],
)
def test_models_of_every_kind_have_a_pointer(tokens, options):
    sizes = {"embedding_size": 6, "hidden_size": 8, "num_layers": 2, **options}
    model = LanguageModel(ModelConfig(V, **sizes), seed=3, dtype=np.float64)
    model.flat_parameters *= 4
    tokens = tokens[:60]
    expected = word_by_word(*read_word_by_word(model, tokens), tokens, 40, 0.7, 0.3)
    found = score(model, tokens, PointerGrid((40,), (0.7,), (0.3,)))
    assert found.losses.item() == pytest.approx(expected, rel=1e-10)


def test_without_a_share_the_cache_changes_nothing(model, tokens, outputs_and_probabilities):
    found = score(model, tokens)
    np.testing.assert_allclose(found.losses[:, :, 0], found.static_loss, rtol=1e-12)
    probabilities = outputs_and_probabilities[1][np.arange(len(tokens)), tokens]
    assert found.static_loss == pytest.approx(-np.log(probabilities).mean(), rel=1e-10)


@pytest.mark.parametrize("batch_size", [2, 7, 400])
def test_the_number_of_rows_does_not_matter(model, tokens, batch_size):
    found = score(model, tokens, batch_size=batch_size)
    assert found.scored_tokens == len(tokens)
    np.testing.assert_allclose(found.losses, score(model, tokens).losses, rtol=1e-9)


def test_rows_fill_their_caches_before_their_own_part(model, tokens, monkeypatch):
    """With a shorter warm-up than the longest window and the model's memory, they would differ."""
    alone = score(model, tokens).losses
    monkeypatch.setattr("train.cache_pointer.WARM_UP", 40)
    np.testing.assert_allclose(score(model, tokens, batch_size=7).losses, alone, rtol=1e-5)
    monkeypatch.setattr("train.cache_pointer.WARM_UP", -190)
    assert np.abs(score(model, tokens, batch_size=7).losses / alone - 1)[1:, :, 1:].min() > 1e-4


def test_the_ranks_share_the_rows(model, tokens):
    def part(communicator):
        pointer_losses(model, lambda a, b: tokens[a:b], len(tokens), EOS, communicator, GRID)

    count, static, *sums = sums_over_ranks(3, part)
    alone = score(model, tokens)
    assert count == len(tokens)
    assert static / count == pytest.approx(alone.static_loss, rel=1e-9)
    np.testing.assert_allclose(np.divide(sums, count), alone.losses.ravel(), rtol=1e-9)


def test_the_grid_holds_what_each_of_its_pointers_gives_alone(model, tokens):
    losses = score(model, tokens).losses
    chosen = PointerGrid((40,), (0.7,), (0.1,))
    assert score(model, tokens, chosen).losses.item() == pytest.approx(losses[1, 1, 1], rel=1e-12)
    best = score(model, tokens).best(GRID)
    assert best.is_one
    assert score(model, tokens, best).losses.item() == pytest.approx(losses.min(), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_likeness_of_any_size_overflows_nowhere(dtype):
    rng = np.random.default_rng(0)
    states = (rng.standard_normal((25, 4)) * 1e3).astype(dtype)
    words = rng.integers(0, 3, 25)
    words[:2] = NO_WORD
    masses = cache_masses(states, words, (2, 5, 20), (0.0, 1.0, 1e3))
    assert masses.shape == (3, 3, 5)
    assert np.isfinite(masses).all()
    for t in range(5):
        for w, window in enumerate((2, 5, 20)):
            there = slice(max(2, 20 + t - window), 20 + t)
            likeness = states[there].astype(np.float64) @ states[20 + t].astype(np.float64)
            cached = words[there] == words[20 + t]
            assert masses[w, 0, t] == pytest.approx(cached.mean(), rel=1e-6)
            assert masses[w, 2, t] == pytest.approx(float(cached[likeness.argmax()]), abs=1e-6)


def test_a_cache_that_holds_nothing_gives_nothing():
    words = np.array([NO_WORD, NO_WORD, 1])
    assert cache_masses(np.ones((3, 4)), words, (2,), (0.0, 1.0)).tolist() == [[[0.0], [0.0]]]


def test_a_mixture_of_impossible_and_possible_costs_what_it_must():
    losses = np.array([2000.0, 2000.0, 0.0])
    masses = np.array([0.0, 0.5, 0.0])
    expected = [2000 - np.log(0.75) - np.log(0.125) - np.log(0.75)]
    np.testing.assert_allclose(mixture_losses(losses, masses, (0.25,)), expected, rtol=1e-12)


def test_the_pointer_wins_where_a_text_repeats_itself():
    """Two 'articles', each a random sentence over and over: no weights can know it, the cache can."""
    words, model = 40, LanguageModel(ModelConfig(40, 48, 48, 1), seed=3)
    model.flat_parameters *= 3
    model.embedding.data *= 5 / 3  # its states tell contexts apart; it has learned nothing
    rng = np.random.default_rng(5)
    text = np.concatenate([np.tile(rng.integers(0, words, 25), 8) for _ in range(2)])
    grid = PointerGrid((100,), (0.0, 3.0, 10.0), (0.3, 0.6, 0.9))
    found = score(model, text, grid)
    assert found.static_loss > 0.95 * np.log(words)
    assert found.losses.min() < np.log(words / 8)
    assert found.losses.min() < found.losses[:, 0].min() - 1  # by the likeness of states, not by counts
    shuffled = score(model, rng.permutation(text), found.best(grid))
    assert shuffled.losses.item() > np.log(words / 2)


@pytest.mark.parametrize("scale", [1, 60])
@pytest.mark.parametrize("block_size", [4, 512])
def test_token_losses_are_the_parts_of_the_mean_loss(scale, block_size):
    rng = np.random.default_rng(0)
    h, W = rng.standard_normal((11, 5)) * scale, rng.standard_normal((V, 5)) * scale
    b, targets = rng.standard_normal(V), rng.integers(0, V, 11)
    found = tied_token_losses(h, W, b, targets, block_size)
    assert found.shape == (11,)
    for n in range(11):
        alone = softmax_cross_entropy(h[n : n + 1] @ W.T + b, targets[n : n + 1]).item()
        assert found[n] == pytest.approx(alone, rel=1e-9, abs=1e-9)


def test_a_grid_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="pointer window: must be at least 1; got 0"):
        PointerGrid(windows=(0,))
    with pytest.raises(InputError, match="pointer lambda: must be within"):
        PointerGrid(lambdas=(0.5, 1.0))
    with pytest.raises(InputError, match="pointer theta: expected values to try, got none"):
        PointerGrid(thetas=())
    assert PointerGrid(windows=(9, 3, 9)).windows == (3, 9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pointer")
    train_tiny(1, write_text(folder / "text.txt"), folder / "run", "--max-steps", "20")
    return folder / "run"


def evaluate_run(run, *flags, ranks=1):
    env = {"MINILSTM_DATA": str(run.parent / "prepared")}
    result = run_ranks(ranks, "train.evaluate", str(run), "--json", "--pointer", *flags, env=env)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_command_tunes_on_valid_what_is_not_given(run):
    printed = evaluate_run(run, "--pointer-window", "50")
    pointer = printed["pointer"]
    assert pointer["tuned"] is True
    assert pointer["tuned_on"] == "valid"
    assert pointer["window"] == 50
    losses = np.array(pointer["grid"]["valid_losses"])
    assert losses.shape == (1, len(pointer["grid"]["thetas"]), len(pointer["grid"]["lambdas"]))
    best = losses[0, pointer["grid"]["thetas"].index(pointer["theta"])]
    assert best[pointer["grid"]["lambdas"].index(pointer["lambda"])] == losses.min()
    assert pointer["valid_perplexity"] == pytest.approx(np.exp(losses.min()))
    written = json.loads((run / "result.json").read_text())["test"]
    assert printed["static_loss"] == pytest.approx(written["loss"], rel=1e-6)
    assert printed["tokens"] == written["scored_tokens"]
    assert printed["protocol"] == "state carried through the split, with a cache pointer"


def test_the_command_takes_a_pointer_as_it_is_given_on_any_number_of_ranks(run):
    flags = ["--pointer-window", "50", "--pointer-theta", "0.5", "--pointer-lambda", "0.2"]
    one, two = (evaluate_run(run, *flags, ranks=ranks) for ranks in (1, 2))
    assert one["pointer"] == {"window": 50, "theta": 0.5, "lambda": 0.2, "tuned": False}
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert one["loss"] != one["static_loss"]


def test_what_was_tuned_is_said(run):
    env = {"MINILSTM_DATA": str(run.parent / "prepared")}
    flags = ["--pointer", "--pointer-window", "20", "--pointer-theta", "1"]
    result = run_ranks(1, "train.evaluate", str(run), *flags, env=env)
    assert result.returncode == 0, result.stderr
    tuned, scored, change = result.stdout.splitlines()
    assert tuned.startswith("tuned on valid: --pointer-window 20 --pointer-theta 1 --pointer-lambda 0.")
    assert scored.startswith("test: perplexity ")
    assert change.startswith("without it: perplexity ")


def test_a_window_beyond_the_text_is_one_of_its_length(model, tokens):
    endless = PointerGrid((3, 10**15, 10**16), (0.7,), (0.1,))
    found = score(model, tokens, endless)
    expected = score(model, tokens, PointerGrid((3, len(tokens)), (0.7,), (0.1,))).losses
    np.testing.assert_array_equal(found.losses, expected[[0, 1, 1]])
    assert found.best(endless).windows[0] in (3, 10**15)


def test_no_more_rows_than_their_caches_have_room_for(model, tokens, monkeypatch):
    expected, seen = score(model, tokens, batch_size=3), []
    row = (200 + 128) * 6 * 8  # bytes: the states of a window and of the steps read at a time
    monkeypatch.setattr("train.cache_pointer.CACHE_BYTES", 3 * row)
    monkeypatch.setattr(
        "train.cache_pointer.rows_of_rank", lambda *args: seen.append(args[3]) or rows_of_rank(*args)
    )
    found = score(model, tokens, batch_size=10**12)
    assert seen == [3]
    np.testing.assert_array_equal(found.losses, expected.losses)
