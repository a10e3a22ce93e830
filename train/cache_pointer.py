"""The continuous cache: words that followed a similar state lately become likelier (Grave et al. 2017).

E. Grave, A. Joulin, N. Usunier, "Improving Neural Language Models with a Continuous Cache", arXiv 1612.04426;
AWD-LSTM (arXiv 1708.02182) calls it a pointer. With h_t the output from which the model predicts the word
x_{t+1}, and the last `window` pairs (h_i, x_{i+1}) before it in a cache,

    p_cache(w) = Σ_i exp(θ h_t·h_i) [w = x_{i+1}] / Σ_i exp(θ h_t·h_i)
    p(w) = (1 - λ) p_model(w) + λ p_cache(w)

and p = p_model while the cache is empty. A perplexity needs both at the true word alone, so nothing of the
size of the vocabulary is held; and all windows, θ and λ of a grid are scored while the model reads the text
once, from one product of the states with those before them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from autograd.parallel import num_threads, run_parts, split_range
from minilstm import LanguageModel
from minilstm.language_model import State
from train.batches import Read
from train.communicator import Communicator
from train.evaluate import PROTOCOL, loss_and_perplexity, stream_of
from train.log import format_perplexity
from train.rows import NO_WORD, WARM_UP, rows_of_rank, walk

if TYPE_CHECKING:
    from train.corpus import Corpus

QUERIES = 128
"""Steps read, and looked up in the cache, at a time."""
CACHE_BYTES = 1 << 30
"""What the caches of one rank's rows may take: more rows than fit in it are not read side by side."""
LOWEST = -1e30
"""Likeness of a state that is not there: finite, so that differences of two of them are."""


@dataclass(frozen=True)
class PointerGrid:
    """What is tried: every window with every θ and every λ. A single value each is one pointer.

    Attributes:
        windows: states that the cache holds.
        thetas: θ ≥ 0, how much likeness counts; 0: the cache counts words.
        lambdas: λ within [0, 1), the share of the cache.

    Raises:
        InputError: values out of range, or none.
    """

    windows: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    thetas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5)
    lambdas: tuple[float, ...] = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4, 0.5)

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, tuple, str, Callable[[Any], bool]], ...] = (
            ("pointer window", self.windows, "at least 1", lambda value: value >= 1),
            ("pointer theta", self.thetas, "a number ≥ 0", lambda value: 0 <= value < float("inf")),
            ("pointer lambda", self.lambdas, "within [0, 1)", lambda value: 0 <= value < 1),
        )
        for name, values, expected, holds in rules:
            if not values:
                raise InputError(f"{name}: expected values to try, got none")
            for value in values:
                if not holds(value):
                    raise InputError(f"{name}: must be {expected}; got {value}")
        object.__setattr__(self, "windows", tuple(sorted(set(self.windows))))

    @property
    def is_one(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.windows) == len(self.thetas) == len(self.lambdas) == 1


DEFAULT_GRID = PointerGrid()


class PointerLosses(NamedTuple):
    """What a text costs, in nats per token.

    Attributes:
        losses: (windows, θs, λs), with the cache.
        static_loss: without it.
        scored_tokens: how many words that is the mean of.
        seconds: that it took.
    """

    losses: np.ndarray
    static_loss: float
    scored_tokens: int
    seconds: float

    def best(self, grid: PointerGrid) -> PointerGrid:
        """The one pointer of the grid with the lowest loss."""
        window, theta, share = np.unravel_index(int(self.losses.argmin()), self.losses.shape)
        return PointerGrid((grid.windows[window],), (grid.thetas[theta],), (grid.lambdas[share],))


def pointer_losses(
    model: LanguageModel,
    read: Read,
    num_tokens: int,
    eos_id: int,
    communicator: Communicator,
    grid: PointerGrid,
    batch_size: int | None = None,
    description: str | None = None,
) -> PointerLosses:
    """The losses of a split with every pointer of a grid, in one pass.

    Args:
        model, read, num_tokens, eos_id, description: as in `train.evaluate.evaluate`; every token is scored
            once, the state carried.
        communicator: its ranks share the rows.
        grid: what is tried.
        batch_size: rows, over all ranks; None: one a rank. One row in all is the definition itself; several
            fill their caches on the text before their own part, and give the same to rounding. Where so
            many caches would take more than CACHE_BYTES, there are fewer rows.
    """
    began = time.perf_counter()
    # A window beyond the text holds what one of the text's length holds.
    bounded = PointerGrid(tuple(min(w, num_tokens) for w in grid.windows), grid.thetas, grid.lambdas)
    capacity = bounded.windows[-1]
    row_bytes = (capacity + QUERIES) * model.config.output_size * model.flat_parameters.itemsize
    most = max(CACHE_BYTES // row_bytes, 1) * communicator.size
    batch_size = min(batch_size or communicator.size, most)
    rows = rows_of_rank(read, num_tokens, eos_id, batch_size, communicator, WARM_UP + capacity)
    scorer = _PointerScorer(model, bounded, len(rows))
    walk(model, rows, QUERIES, scorer.step, description if communicator.is_root else None)
    sums = np.concatenate([[scorer.count, scorer.static], scorer.sums.ravel()])
    count, static, *losses = np.asarray(communicator.allreduce_sum(sums.tolist()))
    own = [bounded.windows.index(min(window, num_tokens)) for window in grid.windows]
    return PointerLosses(
        np.reshape(losses, scorer.sums.shape)[own] / count,
        static / count,
        int(count),
        time.perf_counter() - began,
    )


class _PointerScorer:
    """Sums the losses of rows that are read side by side; each has a cache of its own."""

    def __init__(self, model: LanguageModel, grid: PointerGrid, rows: int) -> None:
        self.model, self.grid = model, grid
        self.count, self.static = 0, 0.0
        self.sums = np.zeros((len(grid.windows), len(grid.thetas), len(grid.lambdas)))
        self._words = np.full((grid.windows[-1], rows), NO_WORD, np.int32)  # followed the states in the cache
        self._states: np.ndarray | None = None  # (window, rows, units)

    def step(self, inputs: np.ndarray, words: np.ndarray, scored: np.ndarray, state: State) -> State:
        h, state = self.model.encode(inputs, state)
        capacity = self.grid.windows[-1]
        if self._states is None:
            self._states = np.zeros((capacity, *h.shape[1:]), h.dtype)
        states = np.concatenate([self._states, h.data])
        followers = np.concatenate([self._words, words])
        for row in np.flatnonzero(scored.any(axis=0)):
            self._score(states[:, row], followers[:, row], scored[:, row])
        self._states, self._words = states[-capacity:].copy(), followers[-capacity:].copy()
        return state

    def _score(self, states: np.ndarray, followers: np.ndarray, scored: np.ndarray) -> None:
        """states (window + T, units) and the words that followed them: the cache, then the steps to score."""
        grid, capacity = self.grid, self.grid.windows[-1]
        words = followers[capacity:]
        queries = np.ascontiguousarray(states[capacity:])
        own = np.flatnonzero(scored)
        losses = self.model.token_losses(queries[own], words[own]).astype(np.float64)
        masses = cache_masses(states, followers, grid.windows, grid.thetas)[:, :, own]
        cached = followers[own + capacity - 1] != NO_WORD
        self.count += len(own)
        self.static += losses.sum()
        self.sums += losses[~cached].sum()
        self.sums += mixture_losses(losses[cached], masses[:, :, cached], grid.lambdas)


def cache_masses(
    states: np.ndarray, followers: np.ndarray, windows: tuple[int, ...], thetas: tuple[float, ...]
) -> np.ndarray:
    """p_cache of the true word at each of T steps, for every window and θ.

    Args:
        states: (W + T, units), W being the largest window: the states before, then those of the steps.
        followers: (W + T), the word that followed each; NO_WORD: no such state, nothing is cached there.
        windows: rising. thetas: each ≥ 0.

    Returns:
        (windows, thetas, T) in double precision; 0 where the cache is empty.
    """
    capacity = windows[-1]
    parts = split_range(len(states) - capacity, num_threads(), multiple=16)

    def masses(part: slice) -> np.ndarray:
        seen = slice(part.start, capacity + part.stop)
        return _cache_masses(states[seen], followers[seen], windows, thetas)

    return np.concatenate(run_parts(masses, parts), axis=2)


def _cache_masses(
    states: np.ndarray, followers: np.ndarray, windows: tuple[int, ...], thetas: tuple[float, ...]
) -> np.ndarray:
    """A window is the ones before it and the older states between: each state is looked at once a θ."""
    capacity = windows[-1]
    T = len(states) - capacity
    likeness = _band(states[capacity:] @ states[:-1].T, capacity)
    before = np.lib.stride_tricks.sliding_window_view(followers[:-1], capacity)  # (T, W), as the band
    targets = followers[capacity:, None]
    highest = np.full(T, LOWEST, states.dtype)
    totals, found = (np.zeros((len(thetas), T)) for _ in range(2))
    masses = np.empty((len(windows), len(thetas), T))
    newer = 0
    for index, window in enumerate(windows):
        lags = slice(capacity - window, capacity - newer)
        there = before[:, lags] != NO_WORD
        some_lack = not there.all()
        # the largest exponent is 0: no sum overflows, and none of a cache that holds something is 0
        part = np.where(there, likeness[:, lags], LOWEST) if some_lack else likeness[:, lags]
        risen = np.maximum(highest, part.max(axis=1))
        part = part - risen[:, None]
        step, lag = np.nonzero(before[:, lags] == targets)
        weights = np.empty_like(part)
        for k, theta in enumerate(thetas):
            np.exp(np.multiply(part, theta, out=weights), out=weights)
            if some_lack:
                weights *= there
            faded = np.exp(theta * (highest - risen).astype(np.float64))
            totals[k] = totals[k] * faded + weights.sum(axis=1)
            found[k] = found[k] * faded + np.bincount(step, weights[step, lag], minlength=T)
            np.divide(found[k], totals[k], out=masses[index, k], where=totals[k] > 0)
            masses[index, k, totals[k] == 0] = 0
        highest, newer = risen, window
    return masses


def _band(products: np.ndarray, width: int) -> np.ndarray:
    """(T, width) of products (T, width + T - 1): row t from column t on, without a copy."""
    rows, item = products.strides
    return np.lib.stride_tricks.as_strided(products, (len(products), width), (rows + item, item))


def mixture_losses(losses: np.ndarray, masses: np.ndarray, lambdas: tuple[float, ...]) -> np.ndarray:
    """Σ -log((1 - λ) p_model + λ p_cache) over tokens, for every λ.

    Args:
        losses: (N), -log p_model. masses: (…, N), p_cache.

    Returns:
        (…, λs). In logarithms throughout: a word that neither side thinks possible costs what it must.
    """
    with np.errstate(divide="ignore"):  # log 0 is -inf, which adds nothing
        log_masses = np.log(masses)
        return np.stack(
            [
                -np.logaddexp(np.log1p(-share) - losses, np.log(share) + log_masses).sum(axis=-1)
                for share in lambdas
            ],
            axis=-1,
        )


# The command's side


def add_flags(parser: Parser) -> None:
    """--pointer and what belongs to it."""
    group = parser.add_argument_group(
        "cache pointer",
        "Words that followed a similar state lately become likelier (Grave et al. 2017, arXiv 1612.04426). "
        "What is not given is tuned on the valid split.",
    )
    group.add_argument("--pointer", action="store_true", help="mix the cache in")
    for name, kind, metavar, text, tried in (
        ("window", int, "N", "states in the cache", DEFAULT_GRID.windows),
        ("theta", float, "X", "how much their likeness counts", DEFAULT_GRID.thetas),
        ("lambda", float, "P", "share of the cache in the mixture", DEFAULT_GRID.lambdas),
    ):
        text += f"; tuned among {', '.join(f'{value:g}' for value in tried)}"
        group.add_argument(f"--pointer-{name}", type=kind, metavar=metavar, help=text)


def scorer(args: argparse.Namespace) -> Callable[[LanguageModel, Corpus, Communicator], dict[str, Any]]:
    """What `python -m train.evaluate RUN --pointer` does, from its flags; InputError if they are wrong."""
    given = {
        "windows": args.pointer_window,
        "thetas": args.pointer_theta,
        "lambdas": args.pointer_lambda,
    }
    grid = PointerGrid(**{name: (value,) for name, value in given.items() if value is not None})

    def score(model: LanguageModel, corpus: Corpus, communicator: Communicator) -> dict[str, Any]:
        def losses_of(split: str, tried: PointerGrid, doing: str) -> PointerLosses:
            stream = stream_of(corpus, split)
            return pointer_losses(model, *stream, communicator, tried, args.batch_size, f"{doing} {split}")

        tuning: dict[str, Any] = {"tuned": False}
        chosen = grid
        if not grid.is_one:
            found = losses_of("valid", grid, "tuning the pointer on")
            chosen = found.best(grid)
            tuning = _tuning(grid, found, chosen)
            if communicator.is_root and not args.json:
                _tell(tuning, chosen)
        result = losses_of(args.split, chosen, "scoring")
        return {
            **loss_and_perplexity(float(result.losses.item())),
            "static_loss": result.static_loss,
            "static_perplexity": loss_and_perplexity(result.static_loss)["perplexity"],
            "scored_tokens": result.scored_tokens,
            "protocol": f"{PROTOCOL}, with a cache pointer",
            "seconds": result.seconds,
            "pointer": {
                "window": chosen.windows[0],
                "theta": chosen.thetas[0],
                "lambda": chosen.lambdas[0],
                **tuning,
            },
        }

    return score


def _tuning(grid: PointerGrid, found: PointerLosses, chosen: PointerGrid) -> dict[str, Any]:
    """How the pointer was chosen, for the record: all that was tried, and what it gave."""
    return {
        "tuned": True,
        "tuned_on": "valid",
        "tuning_seconds": found.seconds,
        "valid_perplexity": loss_and_perplexity(float(found.losses.min()))["perplexity"],
        "valid_static_perplexity": loss_and_perplexity(found.static_loss)["perplexity"],
        "at_the_edge": _at_the_edge(grid, chosen),
        "grid": {
            "windows": grid.windows,
            "thetas": grid.thetas,
            "lambdas": grid.lambdas,
            "valid_losses": found.losses.tolist(),
        },
    }


def _at_the_edge(grid: PointerGrid, chosen: PointerGrid) -> list[str]:
    """Knobs whose chosen value is the first or last that was tried: a wider grid might give more."""
    pairs = {
        "window": (chosen.windows[0], grid.windows),
        "theta": (chosen.thetas[0], grid.thetas),
        "lambda": (chosen.lambdas[0], grid.lambdas),
    }
    return [
        name for name, (value, tried) in pairs.items() if len(tried) > 1 and value in (tried[0], tried[-1])
    ]


def _tell(tuning: dict[str, Any], chosen: PointerGrid) -> None:
    edge = tuning["at_the_edge"]
    print(
        f"tuned on valid: --pointer-window {chosen.windows[0]} --pointer-theta {chosen.thetas[0]:g} "
        f"--pointer-lambda {chosen.lambdas[0]:g}, perplexity there "
        f"{format_perplexity(tuning['valid_static_perplexity'])} → "
        f"{format_perplexity(tuning['valid_perplexity'])}"
        + (f" ({', '.join(edge)} at the grid's edge)" if edge else ""),
        flush=True,
    )
