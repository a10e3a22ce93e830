"""Dynamic evaluation: the weights follow the text that has been scored (Krause et al. 2018).

B. Krause, E. Kahembwe, I. Murray, S. Renals, "Dynamic Evaluation of Neural Sequence Models", arXiv
1709.07432. A segment of the text is scored first, then learned from, then the next one is scored. With g the
gradient of the segment's mean loss, θ the weights and θ_g the trained ones, which they decay to,

    sgd    θ ← θ - η g + λ (θ_g - θ)
    rms    θ ← θ - η g / (RMS_g + ε) + min(λ RMS_norm, 1) · (θ_g - θ)

    RMS_g = √(mean of g² over windows of the training split), RMS_norm = RMS_g / mean(RMS_g)

so that weights which training still moved follow faster, and are drawn back harder; no weight is drawn
further than back to where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd import evaluation_mode
from autograd.command import Parser
from autograd.errors import InputError
from minilstm import LanguageModel, detach
from train.batches import Read
from train.communicator import Communicator
from train.evaluate import PROTOCOL, evaluate, loss_and_perplexity, stream_of
from train.log import Progress, format_perplexity, progress
from train.optimizers import for_each_piece

if TYPE_CHECKING:
    from train.corpus import Corpus

RULES = ("rms", "sgd")
STATISTICS = 50
"""Windows of the training split that the mean squares are taken over."""
STATISTICS_ROWS = 100
"""Rows of such a window: what the published code averages a gradient over."""


@dataclass(frozen=True)
class DynamicRule:
    """How the weights follow the text.

    Attributes:
        rule: "rms" or "sgd", the equations above.
        learning_rate: η.
        decay: λ, in [0, 1].
        epsilon: ε of the rule rms.
        segment: tokens that are scored, then learned from, at a time.

    Raises:
        InputError: values out of range.
    """

    rule: str
    learning_rate: float
    decay: float
    epsilon: float = 1e-3
    segment: int = 20

    def __post_init__(self) -> None:
        infinity = float("inf")
        for name, expected, holds in (
            ("rule", f"one of {', '.join(RULES)}", self.rule in RULES),
            ("learning_rate", "a number ≥ 0", 0 <= self.learning_rate < infinity),
            ("decay", "within [0, 1]", 0 <= self.decay <= 1),
            ("epsilon", "a number > 0", 0 < self.epsilon < infinity),
            ("segment", "at least 1", self.segment >= 1),
        ):
            if not holds:
                raise InputError(f"dynamic {name}: must be {expected}; got {getattr(self, name)}")


DEFAULTS = {rule.rule: rule for rule in (DynamicRule("rms", 1e-3, 1e-3), DynamicRule("sgd", 0.5, 1e-3))}
TUNED_RATES = {"rms": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), "sgd": (0.1, 0.25, 0.5, 1.0, 2.0)}
TUNED_DECAYS = (0.0, 1e-4, 1e-3, 5e-3, 2e-2)
"""What is tried for each knob; every default is among them."""


def root_mean_squares(
    model: LanguageModel,
    read: Read,
    num_tokens: int,
    segment: int,
    windows: int = STATISTICS,
    description: str | None = None,
) -> np.ndarray:
    """RMS_g: how large the gradient of every weight is on text that the model was trained on.

    The split is read in rows of equal length, `segment` steps at a time with the state carried, from the
    start of each; dropouts are off.

    Args:
        read, num_tokens: the training split.
        windows: that the mean is taken over; 0: all there are.
        description: shown with a progress bar; None: silent.

    Returns:
        like model.flat_parameters, of its dtype; the weights are left as they are.

    Raises:
        InputError: too little text for one step.
    """
    rows = max(min(STATISTICS_ROWS, (num_tokens - 1) // segment), 1)
    length = (num_tokens - 1) // rows
    if length < 1:
        raise InputError(f"the training split has {num_tokens} tokens; gradient statistics need at least 2")
    steps = min(length, windows * segment) if windows else length
    streams = np.stack([read(row * length, row * length + steps + 1) for row in range(rows)], axis=1)
    squares, count, state = np.zeros_like(model.flat_parameters), 0, None
    bar = progress(steps, description or "", "steps", enabled=description is not None, leave=False)
    with evaluation_mode(), bar:
        for start in range(0, steps, segment):
            stop = min(start + segment, steps)
            loss, new_state = model(streams[start:stop], streams[start + 1 : stop + 1], state)
            model.zero_grads()
            loss.backward()
            _add_squares(squares, model.flat_gradients)
            state, count = detach(new_state), count + 1
            bar.update(stop - start)
    squares /= count
    return np.sqrt(squares, out=squares)


def dynamic_loss(
    model: LanguageModel,
    read: Read,
    num_tokens: int,
    eos_id: int,
    rule: DynamicRule,
    rms: np.ndarray | None,
    bar: Progress | None = None,
) -> float:
    """The mean loss of a split (nats per token), read as one stream by a model that learns from it.

    Every token is scored before it is learned from. The weights are the trained ones again afterwards,
    whatever happens in between.

    Args:
        model, read, num_tokens, eos_id: as in `train.evaluate.evaluate`.
        rule: how the weights move.
        rms: what `root_mean_squares` gives; only the rule rms needs it.
        bar: told of every segment.

    Returns:
        infinity if the updates have driven the weights beyond numbers.
    """
    total, state = 0.0, None
    before = np.array([eos_id])
    silent = np.errstate(all="ignore")  # the loss tells
    with _weights_restored(model) as trained, evaluation_mode(), silent:
        update = _Update(model, trained, rule, rms)
        for start in range(0, num_tokens, rule.segment):
            words = read(start, min(start + rule.segment, num_tokens))
            inputs = np.concatenate([before, words[:-1]])
            loss, new_state = model(inputs[:, None], words[:, None], state)
            total += loss.item() * len(words)
            if not math.isfinite(total):
                return math.inf
            if start + rule.segment < num_tokens:
                model.zero_grads()
                loss.backward()
                update(model.flat_gradients)
            state, before = detach(new_state), words[-1:]
            if bar:
                so_far = loss_and_perplexity(total / (start + len(words)))
                bar.update(len(words), f"perplexity {format_perplexity(so_far['perplexity'])}")
    return total / num_tokens


@contextmanager
def _weights_restored(model: LanguageModel) -> Iterator[np.ndarray]:
    """Context that gives a copy of the weights, and puts it back at its end."""
    trained = model.flat_parameters.copy()
    try:
        yield trained
    finally:
        model.flat_parameters[...] = trained


class _Update:
    """One step of the weights; as in train.optimizers, piece by piece, each staying in the cache.

    The rates of the rule rms are made anew from RMS_g each time: memory is what the step waits for.
    """

    def __init__(
        self, model: LanguageModel, trained: np.ndarray, rule: DynamicRule, rms: np.ndarray | None
    ) -> None:
        if rule.rule == "rms" and rms is None:
            raise InputError("dynamic evaluation: the rule rms needs the gradients' root mean squares")
        self.weights, self.trained, self.rule = model.flat_parameters, trained, rule
        self.rms = rms if rule.rule == "rms" else None
        mean = float(rms.mean(dtype=np.float64)) if rms is not None else 0.0
        self.decay_per_rms = rule.decay / mean if mean else 0.0  # λ RMS_norm = this · RMS_g

    def __call__(self, gradients: np.ndarray) -> None:
        memory = (self.weights.dtype, self.weights.dtype)
        for_each_piece(self.weights.size, None, partial(self._update_piece, gradients), memory)

    def _update_piece(
        self, all_gradients: np.ndarray, piece: slice, change: np.ndarray, factor: np.ndarray
    ) -> None:
        """`change` and `factor`: scratch memory of the piece's length."""
        gradients, rule = all_gradients[piece], self.rule
        weights, trained = self.weights[piece], self.trained[piece]
        np.subtract(trained, weights, out=change)
        if self.rms is None:
            change *= rule.decay
            np.multiply(gradients, rule.learning_rate, out=factor)
        else:
            np.multiply(self.rms[piece], self.decay_per_rms, out=factor)
            change *= np.minimum(factor, 1, out=factor)
            np.add(self.rms[piece], rule.epsilon, out=factor)
            np.divide(gradients, factor, out=factor)
            factor *= rule.learning_rate
        change -= factor
        weights += change


def _add_squares(squares: np.ndarray, gradients: np.ndarray) -> None:
    """squares += gradients², in place of both."""

    def work(piece: slice) -> None:
        gradients[piece] *= gradients[piece]
        squares[piece] += gradients[piece]

    for_each_piece(squares.size, None, work)


def tune(
    rule: DynamicRule,
    rates: Sequence[float],
    decays: Sequence[float],
    loss_of: Callable[[DynamicRule], float],
) -> tuple[DynamicRule, dict[DynamicRule, float]]:
    """The learning rate with the lowest loss, then the decay with the lowest at that rate.

    Args:
        rule: what is not tuned, and the decay that the learning rates are tried with.
        rates, decays: what is tried; none: that knob stays as it is.
        loss_of: gives the loss that a rule leads to.

    Returns:
        the best rule, and the losses of all that were tried, in their order.
    """
    tried: dict[DynamicRule, float] = {}
    for name, values in (("learning_rate", rates), ("decay", decays)):
        knobs: list[dict[str, Any]] = [{name: value} for value in values]
        candidates = [replace(rule, **knob) for knob in knobs] or [rule]
        tried.update({candidate: loss_of(candidate) for candidate in candidates if candidate not in tried})
        rule = min(candidates, key=tried.__getitem__)
    return rule, tried


# The command's side


def add_flags(parser: Parser) -> None:
    """--dynamic and what belongs to it."""
    group = parser.add_argument_group(
        "dynamic evaluation",
        "Each segment is scored, then learned from (Krause et al. 2018, arXiv 1709.07432); "
        "the run itself stays as it is.",
    )
    group.add_argument("--dynamic", action="store_true", help="let the weights follow the text")
    group.add_argument("--dynamic-rule", choices=RULES, help=f"default: {RULES[0]}")
    for name, metavar, text in (
        ("learning_rate", "X", "of each update"),
        ("decay", "X", "towards the trained weights at each update"),
        ("epsilon", "X", "added to the gradients' root mean squares"),
        ("segment", "N", "tokens scored, then learned from, at a time"),
    ):
        values = [getattr(default, name) for default in DEFAULTS.values()]
        told = [f"{value:g} ({rule})" for rule, value in zip(DEFAULTS, values, strict=True)]
        text += f"; default {f'{values[0]:g}' if len(set(values)) == 1 else ', '.join(told)}"
        flag = f"--dynamic-{name.replace('_', '-')}"
        group.add_argument(flag, type=type(values[0]), metavar=metavar, help=text)
    group.add_argument(
        "--dynamic-statistics",
        type=int,
        metavar="N",
        help=f"training windows that the mean squares are taken over; default {STATISTICS}, 0: all",
    )
    group.add_argument(
        "--dynamic-tune",
        type=int,
        metavar="N",
        help="choose learning rate and decay, where not given, on the first N tokens of valid",
    )


def scorer(
    args: argparse.Namespace, communicator: Communicator
) -> Callable[[LanguageModel, Corpus, Communicator], dict[str, Any]]:
    """What `python -m train.evaluate RUN --dynamic` does, from its flags; InputError if they are wrong."""
    if communicator.size > 1:
        raise InputError(
            f"--dynamic: reads one stream, each segment after the one before; run it on one process, "
            f"not on {communicator.size} ranks"
        )
    names = ("learning_rate", "decay", "epsilon", "segment")
    given = {name: vars(args)[f"dynamic_{name}"] for name in names}
    rule = DEFAULTS[args.dynamic_rule or RULES[0]]
    rule = replace(rule, **{name: value for name, value in given.items() if value is not None})
    windows = STATISTICS if args.dynamic_statistics is None else args.dynamic_statistics
    if rule.rule == "sgd" and not (args.dynamic_statistics is args.dynamic_epsilon is None):
        raise InputError("--dynamic-statistics, --dynamic-epsilon: belong to the rule rms; leave them out")
    if windows < 0:
        raise InputError(f"--dynamic-statistics: must be at least 0; got {windows}")
    if args.dynamic_tune is not None and args.dynamic_tune < 1:
        raise InputError(f"--dynamic-tune: must be at least 1; got {args.dynamic_tune}")
    return lambda model, corpus, communicator: _score(args, rule, windows, model, corpus, communicator)


def _score(
    args: argparse.Namespace,
    rule: DynamicRule,
    windows: int,
    model: LanguageModel,
    corpus: Corpus,
    communicator: Communicator,
) -> dict[str, Any]:
    read, num_tokens, eos_id = stream_of(corpus, args.split)
    static = evaluate(model, read, num_tokens, eos_id, communicator, description=f"scoring {args.split}")
    began = time.perf_counter()
    rms = None
    if rule.rule == "rms":
        train, train_tokens, _ = stream_of(corpus, "train")
        rms = root_mean_squares(model, train, train_tokens, rule.segment, windows, "gradients on train")
    facts: dict[str, Any] = {"tuned": args.dynamic_tune is not None}
    if args.dynamic_tune is not None:
        rule, tuning = _tune_on_valid(args, rule, rms, model, corpus)
        facts |= tuning
    tuned = time.perf_counter()
    with progress(num_tokens, f"dynamic evaluation on {args.split}", "tokens") as bar:
        loss = dynamic_loss(model, read, num_tokens, eos_id, rule, rms, bar)
    if not math.isfinite(loss):
        raise InputError(
            f"--dynamic: the updates have driven the weights beyond numbers; give less than "
            f"--dynamic-learning-rate {rule.learning_rate:g}"
        )
    return {
        **loss_and_perplexity(loss),
        "static_loss": static["loss"],
        "static_perplexity": static["perplexity"],
        "scored_tokens": num_tokens,
        "protocol": f"{PROTOCOL}, with dynamic evaluation",
        "seconds": time.perf_counter() - tuned,
        "dynamic": {
            **asdict(rule),
            "statistics_windows": windows if rms is not None else None,
            "preparation_seconds": tuned - began,
            **facts,
        },
    }


def _tune_on_valid(
    args: argparse.Namespace,
    rule: DynamicRule,
    rms: np.ndarray | None,
    model: LanguageModel,
    corpus: Corpus,
) -> tuple[DynamicRule, dict[str, Any]]:
    read, num_tokens, eos_id = stream_of(corpus, "valid")
    tokens = min(args.dynamic_tune, num_tokens)
    rates = TUNED_RATES[rule.rule] if args.dynamic_learning_rate is None else ()
    decays = TUNED_DECAYS if args.dynamic_decay is None else ()
    with progress(None, "tuning dynamic evaluation on valid", "tokens") as bar:
        rule, tried = tune(
            rule, rates, decays, lambda rule: dynamic_loss(model, read, tokens, eos_id, rule, rms, bar)
        )
    if not args.json:
        best = loss_and_perplexity(min(tried.values()))
        print(
            f"tuned on the first {tokens:,} tokens of valid: --dynamic-learning-rate {rule.learning_rate:g} "
            f"--dynamic-decay {rule.decay:g}, perplexity there {format_perplexity(best['perplexity'])}",
            flush=True,
        )
    grid = [
        {
            "learning_rate": rule.learning_rate,
            "decay": rule.decay,
            "loss": loss if math.isfinite(loss) else None,
        }
        for rule, loss in tried.items()
    ]
    return rule, {"tuned_on": "valid", "tuning_tokens": tokens, "grid": grid}
