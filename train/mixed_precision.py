"""Mixed precision: a model that computes in float16 and learns in float32, and the scale of its loss.

Micikevicius et al. 2018, "Mixed Precision Training" (arXiv 1710.03740). float16 halves the memory of weights
and activations, and a GPU multiplies it many times faster. It has two limits, and each has its remedy:

- It keeps 11 bits. An update smaller than 1/2048 of its weight would be rounded away, so the weights that
  learn, the masters, are float32, and float16 copies of them compute (section 3.1 there).
- It ends at 65,504 and rounds to zero what is below 2^-25. Most gradients are small, so the loss is
  multiplied by a scale, which makes all of them larger; once they are float32, they are divided by it
  (section 3.2).

The steps, by whose numbers the lines here and in train/step.py are marked:

1. float16 parameters and activations, float32 masters; sums, norms, softmax and statistics in float32.
2. loss · scale; backward.
3. The gradients to float32, · 1 / scale.
4. Their mean over the ranks.
5. Are they finite? Asked of the mean, which is the same on every rank: all of them decide alike.
6. If not, an element has left float16's range: no update is made, and neither the optimizer's count of
   updates nor the learning rate's schedule goes on. The scaler lowers the scale.
7. If so: clip, update the masters, round them to the float16 copies.

docs/mixed_precision.md shows each at work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np

from autograd.backend import get_array_module
from minilstm import LanguageModel

LARGEST_EXPONENT = 16
"""float16 ends just below 2^16."""
LOWEST_SCALE = 1.0
HOPELESS_OVERFLOWS = 100
"""So many overflows at the lowest scale end a run: float16 cannot hold what it computes."""
LONG_AT_LOWEST = 100
"""So many steps at the lowest scale without a break are told of: small gradients are lost there."""

State = dict[str, Any]


class MasterWeights:
    """A float32 model that learns, and a float16 copy of it that computes (1).

    The masters are a model of their own: it is evaluated and saved like that of a float32 run, and its
    gradient buffer holds what the ranks average. A copy is never written but by `round_down`, so that after
    each update it is the masters rounded to float16, bit for bit.

    Args:
        model: float32; its flat_parameters are the masters.

    Attributes:
        half: the float16 copy.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.half = model.copy(np.float16)

    def round_down(self) -> None:
        """(7) the copies from the masters."""
        self.half.flat_parameters[...] = self.model.flat_parameters

    def take_gradients(self, factor: Any, add: bool = False) -> None:
        """(3) the copy's gradients · factor become the masters' gradients, or are added to them.

        Args:
            factor: 1 / the scale of the loss, a number, or on a GPU an array of one, of the masters' dtype.
        """
        halves, masters = self.half.flat_gradients, self.model.flat_gradients
        xp = get_array_module(masters)
        factor = factor if hasattr(factor, "dtype") else masters.dtype.type(factor)
        if add:
            masters += xp.multiply(halves, factor, dtype=masters.dtype)  # (75) of docs/lstm_backward.md
        else:
            xp.multiply(halves, factor, out=masters, dtype=masters.dtype)  # (75)


class LossScaler(ABC):
    """What the loss is multiplied with before the backward pass: a number that follows the gradients.

    Scales of `Backoff` are powers of two, so that they change exponents and round nothing. An update needs
    two numbers that every rank has alike, and a scaler holds nothing but numbers.

    Args:
        initial: the first scale.

    Attributes:
        scale: for the next step.
        overflows_at_lowest: since the scale is `LOWEST_SCALE`.
    """

    name: str
    HIGHEST_SCALE: float

    def __init__(self, initial: float) -> None:
        self.scale = initial
        self.overflows_at_lowest = 0

    def update(self, finite: bool, largest: float) -> None:
        """(6) and (7): choose the next scale.

        Args:
            finite: whether the step's gradients were.
            largest: the largest absolute value among the gradients, divided by the scale already.
        """
        if self.scale <= LOWEST_SCALE and not finite:
            self.overflows_at_lowest += 1
        self.scale = self._next_scale(finite, largest)
        if self.scale > LOWEST_SCALE:
            self.overflows_at_lowest = 0

    @abstractmethod
    def _next_scale(self, finite: bool, largest: float) -> float: ...

    @property
    def can_be_lowered(self) -> bool:
        """Whether an overflow of the backward pass may be the scale's doing, so that a lower one may help."""
        return self.scale > LOWEST_SCALE

    @property
    def is_exhausted(self) -> bool:
        """Whether there is no hope that a lower scale will help."""
        return self.overflows_at_lowest >= HOPELESS_OVERFLOWS

    def state(self) -> State:
        """All that a checkpoint needs, as JSON holds it."""
        return {"name": self.name, **vars(self)}

    def load_state(self, state: State | None) -> None:
        """Go on from what `state` returned; from the initial scale if it is None or another scaler's."""
        if state is not None and state.keys() == self.state().keys() and state["name"] == self.name:
            vars(self).update({key: value for key, value in state.items() if key != "name"})


class Backoff(LossScaler):
    """Halve the scale when the gradients overflow, double it after many steps in a row that went well.

    Args:
        initial: 2^14; up to 2^16 for models whose gradients are small.
        growth_steps: clean steps before the scale is doubled.
    """

    name = "backoff"
    HIGHEST_SCALE = 2.0**24  # gradients of zero would double it for ever

    def __init__(self, initial: float = 2.0**14, growth_steps: int = 2000) -> None:
        super().__init__(initial)
        self.growth_steps = growth_steps
        self.clean_steps = 0

    def _next_scale(self, finite: bool, largest: float) -> float:
        self.clean_steps = self.clean_steps + 1 if finite else 0
        if not finite:
            return max(self.scale / 2, LOWEST_SCALE)  # (76)
        if self.clean_steps < self.growth_steps:
            return self.scale
        self.clean_steps = 0
        return min(self.scale * 2, self.HIGHEST_SCALE)  # (76)

    def state(self) -> State:
        state = super().state()
        del state["growth_steps"]  # of the configuration, which may be changed
        return state


class LogMax(LossScaler):
    """The largest scale with which one step in a thousand would overflow.

    Of x, the log2 of a step's largest gradient, the mean μ and the deviation σ are followed. If x is normal,
    it exceeds μ + 3.09 σ once in a thousand steps: scale = 2^(16 - (μ + 3.09 σ)) within [1, 2^14]. The means
    move with 0.99 for μ and 0.999 for σ, and are freed from where they began as Adam's are. Of a step that
    overflowed nothing is known but that x was above 16 - log2(scale): it counts as one more than that.

    From NVIDIA's OpenSeq2Seq (Kuchaiev et al. 2018, arXiv 1805.10387).

    Args:
        initial: until a first gradient is known.
    """

    name = "log_max"
    HIGHEST_SCALE = 2.0**14
    DEVIATIONS = 3.09
    BETA_MEAN, BETA_DEVIATION = 0.99, 0.999

    def __init__(self, initial: float = 2.0**14) -> None:
        super().__init__(initial)
        self.steps = 0
        self.mean = self.slow_mean = self.square = 0.0  # moving, not yet freed from their zeros

    def _next_scale(self, finite: bool, largest: float) -> float:
        if finite and largest == 0:
            return self.scale  # nothing to learn from
        x = math.log2(largest) if finite else LARGEST_EXPONENT + 1 - math.log2(self.scale)
        self.steps += 1
        self.mean += (1 - self.BETA_MEAN) * (x - self.mean)
        self.slow_mean += (1 - self.BETA_DEVIATION) * (x - self.slow_mean)
        self.square += (1 - self.BETA_DEVIATION) * (x * x - self.square)
        freed, slow_freed = 1 - self.BETA_MEAN**self.steps, 1 - self.BETA_DEVIATION**self.steps
        variance = self.square / slow_freed - (self.slow_mean / slow_freed) ** 2
        cutoff = self.mean / freed + self.DEVIATIONS * math.sqrt(max(variance, 0.0))
        return min(max(2.0 ** min(LARGEST_EXPONENT - cutoff, 99), LOWEST_SCALE), self.HIGHEST_SCALE)


def make_loss_scaler(name: Literal["backoff", "log_max"], initial: float, growth_steps: int) -> LossScaler:
    """The scaler of this name; `growth_steps` is of `Backoff` alone."""
    return Backoff(initial, growth_steps) if name == "backoff" else LogMax(initial)


def largest_of(flat: Any) -> float:
    """The largest absolute value in an array that is not empty, without a copy of it."""
    return max(float(flat.max()), -float(flat.min()))
