"""One sentence through a model in float64, every gate's value and gradient kept, each gradient checked.

The numbers behind `python -m minilstm.anatomy`. The layers are run by `WatchedLSTM`, the cell of
`lstm_cell.py` with a hold on all that happens inside it, and the engine derives the gradients; a test holds
them equal to those of the fused `lstm.py`. Sizes: T steps, H units of a layer, U of them shown, one row.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

import autograd.functions as F
from autograd import InputError, Variable, evaluation_mode, no_backprop_mode
from autograd.functions.loss import IGNORE
from minilstm.dropout import MaskStream
from minilstm.language_model import LanguageModel
from minilstm.lstm import GATES

NUDGE = 5e-3
"""How far ε a number is moved to see what the loss does: small against 1, large against rounding."""
STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))
"""(moved by how many ε, weight of the loss there): central differences of fourth order, times ε."""
NUDGED = tuple(f"z_{gate}" for gate in GATES) + ("c", "h")
"""What has a gradient of its own at every step: the gates' pre-activations, the cell, the output."""
FORGET_GATES = (0.99, 0.5)
"""What the forget gates are held at, beside those the model learned, to see how long a gradient lives."""
FLOOR = 1e-4
"""Of the largest gradient of a map: what smaller ones are compared to."""
DIGITS = {"numerical": 12, "error": 3, "norms": 6, "memory": 6}
"""Significant digits of what is not known or not needed to all of float64's."""
MOST_MASKED = 96
"""Rows and columns of a mask that are shown."""
Arrays = dict[str, Any]


class Watched(NamedTuple):
    """All variables of one layer at one step, each (B, H); z and its parts, gate by gate, i, f, g, o.

    Attributes:
        x_part, h_part: x W_ihᵀ and h W_hhᵀ, the two products in z.
        z: the pre-activations.
        gates: after their sigmoid or tanh.
        c, h: cell and output, all of their uses together.
        c_on, h_on: as the next step sees them. y: as the layers above see h.
    """

    x_part: tuple[Variable, ...]
    h_part: tuple[Variable, ...]
    z: tuple[Variable, ...]
    gates: tuple[Variable, ...]
    c: Variable
    h: Variable
    c_on: Variable
    h_on: Variable
    y: Variable


class WatchedLSTM:
    """Runs layer after layer in place of `lstm`, and keeps what happened in `layers`, step by step.

    Args:
        nudge: (layer, what is added to z_i, …, c or h at this layer's first step: arrays (B, H)). Nothing is
            kept then: there are many rows, and their loss is all that counts.
        forget: what every forget gate is held at; None: as the model has learned it.
    """

    def __init__(self, nudge: tuple[int, Arrays] | None = None, forget: float | None = None) -> None:
        self.nudge, self.forget = nudge, forget
        self.layers: list[list[Watched]] = []

    def __call__(
        self, x: Any, h: Any, c: Any, W_ih: Any, W_hh: Any, b: Any, candidate_mask: Any = None
    ) -> tuple[Variable, Variable, Variable]:
        """As `minilstm.lstm.lstm`, equal to it."""
        layer, nudges = self.nudge or (None, {})
        steps: list[Watched] = []
        outputs = []
        for t in range(len(x)):
            mask = None if candidate_mask is None else candidate_mask[t]
            nudges_now = nudges if t == 0 and layer == len(self.layers) else {}
            step = self._step(x[t], h, c, W_ih, W_hh, b, mask, nudges_now)
            h, c = step.h_on, step.c_on
            outputs.append(step.y)
            if self.nudge is None:
                steps.append(step)
        self.layers.append(steps)
        return F.stack(outputs), h, c

    def _step(
        self, x: Any, h: Any, c: Any, W_ih: Any, W_hh: Any, b: Any, mask: Any, nudges: Arrays
    ) -> Watched:
        """The five equations of `lstm_cell`, with every value kept."""

        def kept(name: str, variable: Variable) -> Variable:
            variable = variable + nudges[name] if name in nudges else variable
            variable.retain_grad()
            return variable

        x_part, h_part = F.linear(x, W_ih), F.linear(h, W_hh)
        parts = F.split(x_part + h_part + b, 4, axis=1)  # (1)
        z = tuple(kept(f"z_{gate}", part) for gate, part in zip(GATES, parts, strict=True))
        i, f, g, o = F.sigmoid(z[0]), F.sigmoid(z[1]), F.tanh(z[2]), F.sigmoid(z[3])  # (2), (3)
        if self.forget is not None:
            f = Variable(np.full_like(f.data, self.forget), requires_grad=False)
        c = kept("c", f * c + i * (g if mask is None else g * mask))  # (4)
        h = kept("h", o * F.tanh(c))  # (5)
        c_on, h_on, y = (kept("", F.reshape(v, v.shape)) for v in (c, h, h))
        quarters = [F.split(part, 4, axis=1) for part in (x_part, h_part)]
        return Watched(quarters[0], quarters[1], z, (i, f, g, o), c, h, c_on, h_on, y)


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
        InputError: layer-normalised cells, whose equations are others; weights that are not finite.
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
        gradients = {
            loss: gradients_of(run.layers[index], weights.W_hh.data) for loss, run in watched.items()
        }
        units = strongest_units(gradients["all"]["c"], max_units)
        layers.append(_layer(values_of(watched["all"].layers[index]), gradients, weights.b.data, units))
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
    if model.config.layer_norm:
        raise InputError(
            "anatomy: shows the plain cell; this model's cells are layer-normalised and have other equations "
            "(docs/lstm_backward.md, section 13); give a run with layer_norm = false"
        )
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
    """What was computed on the way forward, each (T, H): x_i, h_i (the products), z_i, i, …, c, h."""
    found = {}
    for k, gate in enumerate(GATES):
        found[f"x_{gate}"] = _stacked(step.x_part[k].data for step in steps)
        found[f"h_{gate}"] = _stacked(step.h_part[k].data for step in steps)
        found[f"z_{gate}"] = _stacked(step.z[k].data for step in steps)
        found[gate] = _stacked(step.gates[k].data for step in steps)
    return found | {name: _stacked(getattr(step, name).data for step in steps) for name in ("c", "h")}


def gradients_of(steps: list[Watched], W_hh: Any) -> Arrays:
    """What arrived on the way back, each (T, H).

    z_i, …, c, h: the gradients by these names. y, h_on: the parts of dh from above and from the next step.
    c_on: the part of dc from the next step. through_i, …: the parts of h_on by the next step's gates.
    """
    T, H = len(steps), W_hh.shape[1]
    found = {f"z_{gate}": _stacked(_grad(step.z[k]) for step in steps) for k, gate in enumerate(GATES)}
    for name in ("c", "h", "c_on", "h_on", "y"):
        found[name] = _stacked(_grad(getattr(step, name)) for step in steps)
    for k, gate in enumerate(GATES):
        found[f"through_{gate}"] = np.zeros((T, H))
        found[f"through_{gate}"][:-1] = found[f"z_{gate}"][1:] @ W_hh[k * H : (k + 1) * H]  # a part of (11)
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


def _layer(values: Arrays, gradients: dict[str, Arrays], b: Any, units: list[int]) -> dict[str, Any]:
    """The shown units of a layer, room for their differences, and the norms over all of its units."""
    T = len(values["c"])
    bias = b.reshape(4, -1)
    return {
        "units": units,
        "bias": {gate: bias[k, units] for k, gate in enumerate(GATES)},
        "values": {name: array[:, units] for name, array in values.items()},
        "gradients": {loss: {name: g[:, units] for name, g in by.items()} for loss, by in gradients.items()},
        "numerical": {loss: {name: np.zeros((T, len(units))) for name in NUDGED} for loss in gradients},
        "norms": {
            loss: {name: np.linalg.norm(by[name], axis=1) for name in (*NUDGED, "y", "h_on", "c_on")}
            for loss, by in gradients.items()
        },
    }


def numerical_slopes(
    model: LanguageModel, inputs: Any, targets: Any, watched: WatchedLSTM, shown: list[list[int]]
) -> Iterator[tuple[float, int, int, dict[str, Arrays]]]:
    """Both losses' derivatives by differences, for each layer and step: every shown unit's six numbers.

    What comes before the step stays as it was. Each row of a batch is a run in which one number of one unit
    was moved by one of the multiples of ε.

    Returns:
        an iterator over (share of the work done, layer, step, loss → name → (U)).
    """
    T, done = len(inputs), 0
    for index, t in itertools.product(range(len(shown)), reversed(range(T))):
        shape = (len(NUDGED), len(shown[index]), len(STENCIL))
        nudge = index, _nudges(shape, shown[index], model.layers[index].units)
        rows = int(np.prod(shape))
        state = [_tiled(steps, t, rows) for steps in watched.layers]
        with run_by(model, WatchedLSTM(nudge)), no_backprop_mode():
            h, _ = model.encode(np.repeat(inputs[t:], rows, axis=1), state)
        expected = np.repeat(targets[t:], rows, axis=1)
        costs = model.token_losses(h.data.reshape(-1, h.shape[2]), expected.reshape(-1)).reshape(
            T - t, *shape
        )
        weights = np.array([weight for _, weight in STENCIL]) / NUDGE
        by_loss = {"all": costs.sum(axis=0) @ weights / T, "last": costs[-1] @ weights}
        done += T - t
        share = done / (len(shown) * T * (T + 1) / 2)
        by_name = {loss: dict(zip(NUDGED, slopes, strict=True)) for loss, slopes in by_loss.items()}
        yield share, index, t, by_name


def _nudges(shape: tuple[int, int, int], units: list[int], H: int) -> Arrays:
    """For every name of NUDGED an array (rows, H), zero but where a row moves one unit."""
    nudges = np.zeros((*shape, len(NUDGED), H))
    for n, (u, unit), (m, (multiple, _)) in itertools.product(
        range(len(NUDGED)), enumerate(units), enumerate(STENCIL)
    ):
        nudges[n, u, m, n, unit] = multiple * NUDGE
    return {name: nudges[:, :, :, n].reshape(-1, H) for n, name in enumerate(NUDGED)}


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


class RecordedMasks(MaskStream):
    """A mask stream that remembers what it has drawn: (place, keep probability, mask)."""

    def __init__(self, seed: int, window: int = 0, first_row: int = 0) -> None:
        super().__init__(seed, window, first_row)
        self.drawn: list[tuple[str, float, Any]] = []

    def weight_mask(
        self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32
    ) -> Any:
        return self._remembered(place, keep_prob, super().weight_mask(place, shape, keep_prob, dtype))

    def row_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        return self._remembered(place, keep_prob, super().row_mask(place, shape, keep_prob, dtype))

    def step_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        return self._remembered(place, keep_prob, super().step_mask(place, shape, keep_prob, dtype))

    def lookup_mask(self, place: str, ids: Any, width: int, keep_prob: float, dtype: Any = np.float32) -> Any:
        return self._remembered(place, keep_prob, super().lookup_mask(place, ids, width, keep_prob, dtype))

    def _remembered(self, place: str, keep_prob: float, mask: Any) -> Any:
        self.drawn.append((place, keep_prob, mask))
        return mask


def drawn_masks(model: LanguageModel, inputs: Any, targets: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Every mask that the model drew for one window of training on the sentence, in their order.

    Returns:
        for each its place, keep probability and shape, the share that was dropped, and `rows`: texts of
        "1" (kept) and "0", at most `MOST_MASKED` each way; of words' masks a column for each input, of
        activations' masks a row for each step.
    """
    masks = RecordedMasks(seed)
    with no_backprop_mode():
        model.objective(inputs, targets, masks=masks)
    found = []
    for place, keep_prob, mask in masks.drawn:
        kept = mask != 0
        if place == "embedding":
            rows = kept[inputs[:, 0]][None] if kept.ndim == 1 else kept[:, 0]
        elif "weight" in place:
            rows = kept
        else:  # (T, 1, H), or (1, H) for all steps
            rows = kept[:, 0] if kept.ndim == 3 else np.repeat(kept, len(inputs), axis=0)
        found.append(
            {
                "place": place,
                "keep_prob": keep_prob,
                "shape": list(mask.shape),
                "dropped": float(1 - kept.mean()),
                "rows": [
                    "".join("01"[k] for k in row[:MOST_MASKED].astype(int)) for row in rows[:MOST_MASKED]
                ],
            }
        )
    return found


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
