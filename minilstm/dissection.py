"""One sentence through a model in float64, every gate's value and gradient kept, each gradient checked.

The numbers behind `python -m minilstm.anatomy`. The layers are run by `WatchedLSTM`, the cells of
`lstm_cell.py` with a hold on all that happens inside them, and the engine derives the gradients; a test
holds them equal to those of the fused `lstm.py` and `layer_norm_lstm.py`. Sizes: T steps, H units of a
layer, U of them shown, one row.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from autograd import InputError, Variable, evaluation_mode, no_backprop_mode
from autograd.functions.loss import IGNORE
from minilstm.drawn_masks import drawn_masks
from minilstm.language_model import LanguageModel, LSTMLayer
from minilstm.lstm import GATES
from minilstm.watched_lstm import Arrays, Watched, WatchedLSTM

NUDGE = 8e-3
"""How far ε a number is moved to see what the loss does: small against 1, large against rounding."""
STENCIL = ((1, 45 / 60), (-1, -45 / 60), (2, -9 / 60), (-2, 9 / 60), (3, 1 / 60), (-3, -1 / 60))
"""(moved by how many ε, weight of the loss there): central differences of sixth order, times ε."""
NUDGED = tuple(f"z_{gate}" for gate in GATES) + ("c", "h")
"""What has a gradient of its own at every step: the gates' pre-activations, the cell, the output."""
NORMALIZED = tuple(f"a_{gate}" for gate in GATES) + ("s",)
"""What has one too in a layer-normalised cell: pre-activations and cell before their normalisation."""
FORGET_GATES = (0.99, 0.5)
"""What the forget gates are held at, beside those the model learned, to see how long a gradient lives."""
FLOOR = 1e-4
"""Of the largest gradient of a map: what smaller ones are compared to."""
DIGITS = {"numerical": 12, "error": 3, "norms": 6, "memory": 6}
"""Significant digits of what is not known or not needed to all of float64's."""


class Sentence(NamedTuple):
    """What is read and what is expected.

    Attributes:
        words: as the reader wrote them, T + 1 with the one that is read first.
        ids: of the words, T + 1: each of the first T is read, each but the first is predicted.
        names: what the model calls these words: `<unk>` for one that it does not know.
    """

    words: list[str]
    ids: list[int]
    names: list[str]


def dissect(
    model: LanguageModel,
    sentence: Sentence,
    vocabulary: list[str],
    max_units: int = 24,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """All numbers of the page, as JSON takes them: every array a list, steps first.

    Args:
        model: trained, of any precision; it is looked at in float64.
        sentence: of at least one word to read and one to predict.
        vocabulary: the model's words.
        max_units: of each layer, those that are shown; of a larger one those with the largest gradients.
        progress: is told the share of the work that is done.

    Raises:
        InputError: weights that are not finite.
    """
    model = in_float64(model)
    if not np.isfinite(model.flat_parameters).all():
        raise InputError(
            "anatomy: the model holds numbers that are not finite; take one that did not diverge"
        )
    text = np.asarray(sentence.ids)[:, None]
    inputs, targets = text[:-1], text[1:]
    watched = {loss: watch(model, inputs, targets, loss == "last") for loss in ("all", "last")}
    layers = []
    for index, weights in enumerate(model.layers):
        steps = {loss: run.layers[index] for loss, run in watched.items()}
        gradients = {loss: gradients_of(of_loss, weights.W_hh.data) for loss, of_loss in steps.items()}
        units = strongest_units(gradients["all"]["c"], max_units)
        layers.append(_layer(values_of(steps["all"]), gradients, weights, units))
        if model.config.layer_norm:
            epsilon = model.config.layer_norm_epsilon
            layers[-1]["norm"] = normalizations(steps["all"], gradients, weights, units, epsilon)
    shown = [layer["units"] for layer in layers]
    for share, index, t, slopes in numerical_slopes(model, inputs, targets, watched["all"], shown):
        for loss, by_name in slopes.items():
            for name, slope in by_name.items():
                layers[index]["numerical"][loss][name][t] = slope
        progress(share)
    for layer in layers:
        layer["error"] = {
            loss: {name: relative_error(layer["gradients"][loss][name], slope) for name, slope in by.items()}
            for loss, by in layer["numerical"].items()
        }
    return {
        "sizes": _sizes(model),
        "cell": "layer_norm" if model.config.layer_norm else "plain",
        "sentence": {"words": sentence.words, "names": sentence.names},
        "nudge": NUDGE,
        "floor": FLOOR,
        "losses": losses(model, inputs, targets),
        "next": next_words(model, inputs, targets, vocabulary),
        "layers": as_lists(layers),
        "memory": as_lists(memory(model, inputs, targets), DIGITS["memory"]),
        "masks": drawn_masks(model, inputs, targets),
    }


def in_float64(model: LanguageModel) -> LanguageModel:
    """The same weights in float64."""
    twin = LanguageModel(model.config, dtype=np.float64)
    twin.flat_parameters[...] = model.flat_parameters
    return twin


def _sizes(model: LanguageModel) -> dict[str, Any]:
    config = model.config
    return {
        "vocabulary": config.vocab_size,
        "embedding": config.embedding_size,
        "units": [units for _, units in config.layer_sizes],
        "parameters": config.num_parameters(),
    }


@contextlib.contextmanager
def run_by(model: LanguageModel, watched: WatchedLSTM) -> Iterator[None]:
    """Within: the model reads as in evaluation, and `watched` runs its layers."""
    model.run_lstm = watched
    try:
        with evaluation_mode():
            yield
    finally:
        model.run_lstm = None


def watch(
    model: LanguageModel, inputs: Any, targets: Any, only_last: bool, forget: float | None = None
) -> WatchedLSTM:
    """Read the inputs (T, 1), and send one loss's gradient back through every step.

    Args:
        only_last: the loss of the last target alone; else the mean over all targets.
        forget: as for `WatchedLSTM`.
    """
    watched = WatchedLSTM(forget=forget)
    if only_last:
        targets = np.concatenate([np.full_like(targets[:-1], IGNORE), targets[-1:]])
    model.zero_grads()
    with run_by(model, watched):
        loss, _ = model(inputs, targets)
    loss.backward()
    return watched


def values_of(steps: list[Watched]) -> Arrays:
    """What was computed on the way forward, each (T, H): x_i, h_i (the products), z_i, i, …, c, h.

    Of a layer-normalised cell a_i, … and s too.
    """
    found = {}
    for k, gate in enumerate(GATES):
        found[f"x_{gate}"] = _stacked(step.x_part[k].data for step in steps)
        found[f"h_{gate}"] = _stacked(step.h_part[k].data for step in steps)
        found[f"z_{gate}"] = _stacked(step.z[k].data for step in steps)
        found[gate] = _stacked(step.gates[k].data for step in steps)
        if _normalizes(steps):
            found[f"a_{gate}"] = _stacked(step.a[k].data for step in steps)
    names = ("s", "c", "h") if _normalizes(steps) else ("c", "h")
    return found | {name: _stacked(getattr(step, name).data for step in steps) for name in names}


def _normalizes(steps: list[Watched]) -> bool:
    """Whether these are steps of a layer-normalised cell."""
    return steps[0].s is not steps[0].c


def nudged(steps: list[Watched]) -> tuple[str, ...]:
    """The names of what is moved, and has a gradient of its own, in cells of this kind."""
    return NORMALIZED + NUDGED if _normalizes(steps) else NUDGED


def gradients_of(steps: list[Watched], W_hh: Any) -> Arrays:
    """What arrived on the way back, each (T, H).

    z_i, …, c, h, of a layer-normalised cell a_i, … and s too: the gradients by these names. y, h_on: the
    parts of dh from above and from the next step. c_on: the part of dc from the next step. through_i, …:
    the parts of h_on by the next step's gates.
    """
    T, H = len(steps), W_hh.shape[1]
    names = ["c", "h", "c_on", "h_on", "y"] + ["s"] * _normalizes(steps)
    found = {name: _stacked(_grad(getattr(step, name)) for step in steps) for name in names}
    for k, gate in enumerate(GATES):
        da = _stacked(_grad(step.a[k]) for step in steps)  # of the plain cell dz
        found[f"through_{gate}"] = np.zeros((T, H))
        found[f"through_{gate}"][:-1] = da[1:] @ W_hh[k * H : (k + 1) * H]  # a part of (11), of (60)
        found[f"z_{gate}"] = _stacked(_grad(step.z[k]) for step in steps)
        if _normalizes(steps):
            found[f"a_{gate}"] = da
    return found


def normalizations(
    steps: list[Watched],
    gradients: dict[str, Arrays],
    weights: LSTMLayer,
    units: list[int],
    epsilon: float,
) -> dict[str, dict[str, Any]]:
    """What each normalisation of a layer takes from all units of a row; of the gates and of the cell, s.

    Returns:
        by i, f, g, o and s: gain and shift (U), the normalised n (T, U), mean and std (T) of what is
        normalised, and by loss the means (T) of u = gain · gradient and of u · n, as in (55) and (59).
    """
    gate_gain, gate_shift, cell_gain, cell_shift = (vector.data for vector in weights.vectors)
    gains, shifts = np.split(gate_gain, 4) + [cell_gain], np.split(gate_shift, 4) + [cell_shift]
    found = {}
    for k, (name, gain, shift) in enumerate(zip((*GATES, "s"), gains, shifts, strict=True)):
        x = _stacked((step.s if name == "s" else step.a[k]).data for step in steps)
        mean, std = x.mean(axis=1), np.sqrt(x.var(axis=1) + epsilon)
        n, back = (x - mean[:, None]) / std[:, None], {}
        for loss, by in gradients.items():
            u = gain * by["c" if name == "s" else f"z_{name}"]
            back[loss] = {"u": u.mean(axis=1), "un": (u * n).mean(axis=1)}  # in (55), (59)
        found[name] = {"mean": mean, "std": std, "n": n[:, units], "back": back}
        found[name] |= {"gain": gain[units], "shift": shift[units]}
    return found


def _grad(variable: Variable) -> Any:
    """What arrived, zero if nothing did: nobody uses the state after the last step."""
    return np.zeros_like(variable.data) if variable.grad is None else variable.grad


def _stacked(rows: Iterable[Any]) -> Any:
    """(T, H) from a row (1, H) of each step."""
    return np.concatenate(list(rows))


def strongest_units(dc: Any, most: int) -> list[int]:
    """All units, or those where most gradient arrives, in their order; dc: (T, H)."""
    strongest = np.argsort(-np.abs(dc).sum(axis=0), kind="stable")[:most]
    return sorted(strongest.tolist())


def _layer(
    values: Arrays, gradients: dict[str, Arrays], weights: LSTMLayer, units: list[int]
) -> dict[str, Any]:
    """The shown units of a layer, room for their differences, and the norms over all of its units."""
    T, by_loss = len(values["c"]), gradients.items()
    names = [name for name in (*NORMALIZED, *NUDGED) if name in gradients["all"]]
    found = {
        "units": units,
        "values": {name: array[:, units] for name, array in values.items()},
        "gradients": {loss: {name: g[:, units] for name, g in by.items()} for loss, by in by_loss},
        "numerical": {loss: {name: np.zeros((T, len(units))) for name in names} for loss in gradients},
        "norms": {
            loss: {name: np.linalg.norm(by[name], axis=1) for name in (*names, "y", "h_on", "c_on")}
            for loss, by in by_loss
        },
    }
    if len(weights.vectors) == 1:
        bias = weights.b.data.reshape(4, -1)
        found["bias"] = {gate: bias[k, units] for k, gate in enumerate(GATES)}
    return found


def numerical_slopes(
    model: LanguageModel, inputs: Any, targets: Any, watched: WatchedLSTM, shown: list[list[int]]
) -> Iterator[tuple[float, int, int, dict[str, Arrays]]]:
    """Both losses' derivatives by differences, for each layer and step: every shown unit's numbers.

    What comes before the step stays as it was. Each row of a batch is a run in which one number of one unit
    was moved by one of the multiples of ε; what is normalised afterwards by ε times its row's deviation, as
    that is what it is large or small beside.

    Returns:
        an iterator over (share of the work done, layer, step, loss → name → (U)).
    """
    T, done = len(inputs), 0
    for index, t in itertools.product(range(len(shown)), reversed(range(T))):
        sizes = _nudge_sizes(watched.layers[index], t, model.config.layer_norm_epsilon)
        shape = (len(sizes), len(shown[index]), len(STENCIL))
        nudge = index, _nudges(sizes, shown[index], model.layers[index].units)
        rows = int(np.prod(shape))
        state = [_tiled(steps, t, rows) for steps in watched.layers]
        with run_by(model, WatchedLSTM(nudge)), no_backprop_mode():
            h, _ = model.encode(np.repeat(inputs[t:], rows, axis=1), state)
        expected = np.repeat(targets[t:], rows, axis=1)
        costs = model.token_losses(h.data.reshape(-1, h.shape[2]), expected.reshape(-1)).reshape(
            T - t, *shape
        )
        weights = np.array([weight for _, weight in STENCIL])
        by_loss = {"all": costs.sum(axis=0) @ weights / T, "last": costs[-1] @ weights}
        done += T - t
        share = done / (len(shown) * T * (T + 1) / 2)
        by_name = {
            loss: {name: slope / size for (name, size), slope in zip(sizes.items(), slopes, strict=True)}
            for loss, slopes in by_loss.items()
        }
        yield share, index, t, by_name


def _nudge_sizes(steps: list[Watched], t: int, epsilon: float) -> dict[str, float]:
    """By how much each number is moved at step t: ε, or ε times the deviation of its row."""
    rows = dict(zip(NORMALIZED, [*steps[t].a, steps[t].s], strict=True))
    deviations = {name: float(np.sqrt(row.data.var() + epsilon)) for name, row in rows.items()}
    return {name: NUDGE * deviations.get(name, 1) for name in nudged(steps)}


def _nudges(sizes: dict[str, float], units: list[int], H: int) -> Arrays:
    """For every name an array (rows, H), zero but where a row moves one unit."""
    nudges = np.zeros((len(sizes), len(units), len(STENCIL), len(sizes), H))
    for (n, size), (u, unit), (m, (multiple, _)) in itertools.product(
        enumerate(sizes.values()), enumerate(units), enumerate(STENCIL)
    ):
        nudges[n, u, m, n, unit] = multiple * size
    return {name: nudges[:, :, :, n].reshape(-1, H) for n, name in enumerate(sizes)}


def _tiled(steps: list[Watched], t: int, rows: int) -> tuple[Any, Any]:
    """(h, c) before step t, the same in every row."""
    if t == 0:
        zeros = np.zeros((rows, steps[0].h.shape[1]))
        return zeros, zeros
    before = steps[t - 1]
    return np.repeat(before.h.data, rows, axis=0), np.repeat(before.c.data, rows, axis=0)


def relative_error(analytic: Any, numerical: Any) -> Any:
    """|a - n| / the larger of the two, elementwise.

    A loss of some nats is known to about 1e-15, so a difference to about 1e-12: gradients under `FLOOR` of
    the map's largest are compared to that.
    """
    floor = FLOOR * np.abs(analytic).max()
    larger = np.maximum(np.maximum(np.abs(analytic), np.abs(numerical)), floor)
    return np.abs(analytic - numerical) / np.where(larger > 0, larger, 1)


def losses(model: LanguageModel, inputs: Any, targets: Any) -> dict[str, float]:
    """Both losses in nats, of inputs and targets (T, 1): the mean over all, that of the last one alone."""
    with evaluation_mode(), no_backprop_mode():
        h, _ = model.encode(inputs, None)
    costs = model.token_losses(h.data[:, 0], targets[:, 0])
    return {"all": float(costs.mean()), "last": float(costs[-1])}


def next_words(
    model: LanguageModel, inputs: Any, targets: Any, vocabulary: list[str], most: int = 5
) -> list[dict[str, Any]]:
    """After each step of inputs (T, 1): likeliest words with probabilities; the target's, and its rank."""
    found, state = [], None
    for word, target in zip(inputs[:, 0], targets[:, 0], strict=True):
        log_probs, state = model.next_log_probs(np.array([word]), state)
        p = np.exp(log_probs[0])
        best = np.argsort(-p, kind="stable")[:most]
        found.append(
            {
                "top": [[vocabulary[word], float(p[word])] for word in best],
                "target": float(p[target]),
                "rank": int((p > p[target]).sum()) + 1,
            }
        )
    return found


def memory(model: LanguageModel, inputs: Any, targets: Any) -> list[dict[str, Any]]:
    """How long the last target's gradient lives, with the learned forget gates and with others.

    Those are held at one value through the whole run, forward and backward; all else is the model's.

    Returns:
        for each kind of gates its value, None for the learned ones, and by layer the norms of dh and dc (T)
        and each unit's mean gate f (H).
    """
    curves = []
    for forget in (None, *FORGET_GATES):
        watched = watch(model, inputs, targets, only_last=True, forget=forget)
        layers = [
            {
                "h": np.linalg.norm(_stacked(step.h.grad for step in steps), axis=1),
                "c": np.linalg.norm(_stacked(step.c.grad for step in steps), axis=1),
                "f": np.mean([step.gates[1].data[0] for step in steps], axis=0),
            }
            for steps in watched.layers
        ]
        curves.append({"forget": forget, "layers": layers})
    return curves


def as_lists(value: Any, digits: int = 15) -> Any:
    """Arrays as lists, all the way down; numbers with 15 digits, or those of `DIGITS` for some names."""
    if isinstance(value, np.ndarray):
        if value.ndim == 1:
            return [float(f"{number:.{digits}g}") for number in value]
        return [as_lists(part, digits) for part in value]
    if isinstance(value, dict):
        return {name: as_lists(part, DIGITS.get(name, digits)) for name, part in value.items()}
    if isinstance(value, list):
        return [as_lists(part, digits) for part in value]
    return value
