"""Optimizers over the flat buffer of all parameters, in place.

A whole-array expression streams the parameters, gradients and moments through memory once for every operation
in it. Here the arrays are walked in pieces that stay in the cache while all operations are done on them; the
pieces are dealt out to a few threads, NumPy being free of the interpreter's lock. Where a piece begins does
not depend on the number of threads, so neither do the results, to the bit.

On a GPU (train/update_kernels.py) an update is one kernel over the whole arrays.

The learning rate comes from a schedule (train/schedules.py) and clipping as a factor on the gradients, both
with each update, so that an optimizer holds nothing but its moments and the count of updates made.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from autograd.backend import get_array_module
from autograd.errors import InputError
from autograd.kernels import use_kernels
from autograd.parallel import num_threads, run_parts, split_range
from train.update_kernels import UpdateControls, adam_update, sgd_update

PIECE = 1 << 18  # elements: with gradients, moments and scratch 5 MB, about one core's share of the cache
_DOT = 1 << 13  # elements of one dot product: shorter than BLAS would split among threads of its own
_SHARED = 1 << 19  # elements from which a second thread is worth waking for their sum of squares

AVERAGE = "average"
"""Name, in an optimizer's state, of the weights to evaluate instead of those that it goes on from."""

State = dict[str, Any]


class Optimizer(ABC):
    """Updates `parameters`, a flat array, in place.

    Args:
        parameters: 1-D, float32 or float64; the buffer that the model computes with.
        learning_rate: used by updates that are not given one.
        weight_decay: decoupled (Loshchilov and Hutter, arXiv 1711.05101): before each update the parameters
            shrink by the factor 1 - learning rate · weight_decay, whatever the gradients.
        threads: how many share the work; by default as many as BLAS uses.
    """

    def __init__(
        self,
        parameters: np.ndarray,
        learning_rate: float,
        weight_decay: float = 0.0,
        threads: int | None = None,
    ):
        if parameters.ndim != 1 or parameters.dtype not in (np.float32, np.float64):
            raise InputError(
                "optimizer: expected one flat float32 or float64 array, "
                f"got {parameters.ndim}-D {parameters.dtype}"
            )
        _require("learning_rate", learning_rate, 0 <= learning_rate < math.inf, "a number ≥ 0")
        _require("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "a number ≥ 0")
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.threads = threads or num_threads()
        self._t = 0
        self._controls: UpdateControls | None = None

    @property
    def t(self) -> int:
        """Updates made; if a GPU counts them, to ask is to wait for it."""
        return self._t if self._controls is None else int(self._controls.read()["updates"])

    @t.setter
    def t(self, updates: int) -> None:
        self._t = updates
        if self._controls is not None:
            self._controls.set(updates=updates)

    @property
    def controls(self) -> UpdateControls:
        """The numbers, in device memory, by which kernels make updates; see `update_by_kernels`."""
        if self._controls is None:
            self._controls = UpdateControls(self.parameters, self._t)
        return self._controls

    def update(self, gradients: np.ndarray, learning_rate: float | None = None, scale: float = 1.0) -> None:
        """One update from `gradients` · `scale`; the gradients themselves are left as they are.

        Args:
            gradients: of the shape and type of the parameters.
            learning_rate: for this update.
            scale: multiplies the gradients, as `clip_factor` gives it; must be finite.
        """
        if gradients.shape != self.parameters.shape or gradients.dtype != self.parameters.dtype:
            raise InputError(
                "update: expected gradients like the parameters, "
                f"{self.parameters.shape} {self.parameters.dtype}; got {gradients.shape} {gradients.dtype}"
            )
        rate = self.learning_rate if learning_rate is None else learning_rate
        if use_kernels(self.parameters):
            self.controls.set(learning_rate=rate, unscale=scale, max_norm=0.0, finite=1.0)
            return self.update_by_kernels(gradients)
        self.t += 1
        shrink = 1 - rate * self.weight_decay
        update_piece = self._piece_updater(gradients, rate, scale)

        def work(piece: slice, scratch: np.ndarray) -> None:
            if shrink != 1:
                self.parameters[piece] *= shrink
            update_piece(piece, scratch)

        for_each_piece(self.parameters.size, self.threads, work, (self.parameters.dtype,))

    def update_by_kernels(self, gradients: Any, copy: Any = None) -> None:
        """One update on a GPU as `controls` has it, or none if they call the gradients not finite.

        The host learns nothing and waits for nothing. `controls.measure(gradients)` goes before it.

        Args:
            gradients: flat, the loss scale still in them; of the dtype of the parameters, or of the copy's.
            copy: flat, float16: the parameters that the model computes with, rounded from these; or None.
        """
        raise InputError(f"{type(self).__name__} has no kernel; use Adam, SGD or NTASGD on a GPU")

    def validated(self, loss: float) -> str | None:
        """Hear of a validation's loss, the same on every rank; what it changes, in words, or None."""
        return None

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which `parameters` holds the weights to evaluate and to keep; NT-ASGD's are a mean."""
        yield

    @abstractmethod
    def _piece_updater(
        self, gradients: np.ndarray, rate: float, scale: float
    ) -> Callable[[slice, np.ndarray], None]:
        """What updates one piece of parameters and moments, given scratch memory of the piece's length."""

    def _moments(self) -> dict[str, np.ndarray]:
        """The arrays that go on from update to update, by name, each like the parameters."""
        return {}

    def state(self) -> State:
        """All that a checkpoint needs: `t` and the moments; its own arrays, not copies."""
        return {"t": self.t, **self._moments()}

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned.

        Raises:
            InputError: it is another optimizer's, or of another number of parameters.
        """
        own = self.state()
        if state.keys() != own.keys():
            raise InputError(
                f"optimizer state: expected {', '.join(sorted(own))}; got {', '.join(sorted(state))}"
            )
        for name, moment in self._moments().items():
            shape = np.shape(state[name])
            if shape != moment.shape:
                raise InputError(f"optimizer state: expected {name} of shape {moment.shape}, got {shape}")
        for name, moment in self._moments().items():
            moment[...] = get_array_module(moment).asarray(state[name])
        self.t = int(state["t"])


class SGD(Optimizer):
    """Stochastic gradient descent: p ← p - lr·b, where b = g, or b ← momentum·b + g (Polyak 1964)."""

    def __init__(
        self,
        parameters: np.ndarray,
        learning_rate: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        threads: int | None = None,
    ):
        super().__init__(parameters, learning_rate, weight_decay, threads)
        _require("momentum", momentum, 0 <= momentum < 1, "within [0, 1)")
        self.momentum = momentum
        self.b = get_array_module(parameters).zeros_like(parameters) if momentum else None

    def update_by_kernels(self, gradients, copy=None):
        sgd_update(
            self.controls, gradients, self.parameters, self.b, self.momentum, self.weight_decay, copy=copy
        )

    def _piece_updater(self, gradients, rate, scale):
        def update_piece(piece: slice, scratch: np.ndarray) -> None:
            if self.b is None:
                np.multiply(gradients[piece], rate * scale, out=scratch)
            else:
                b = self.b[piece]
                b *= self.momentum
                np.multiply(gradients[piece], scale, out=scratch)
                b += scratch
                np.multiply(b, rate, out=scratch)
            self.parameters[piece] -= scratch

        return update_piece

    def _moments(self) -> dict[str, np.ndarray]:
        return {} if self.b is None else {"b": self.b}


class NTASGD(SGD):
    """SGD that turns to averaging when it stops to improve (Merity et al., arXiv 1708.02182, algorithm 1).

    The trigger: a validation loss above the least of all validations before it but the last `nonmono`. From
    there on a ← a + (p - a) / n after the n-th update: the mean of the iterates since the trigger (Polyak and
    Juditsky 1992). SGD goes on from p as before; a is what is evaluated and kept.

    Attributes:
        losses: of the validations until the trigger.
        trigger: updates made before it; None until then.
        average: a; None until the trigger.
    """

    def __init__(
        self,
        parameters: np.ndarray,
        learning_rate: float = 30.0,
        nonmono: int = 5,
        weight_decay: float = 0.0,
        threads: int | None = None,
    ):
        super().__init__(parameters, learning_rate, 0.0, weight_decay, threads)
        _require("nonmono", nonmono, nonmono >= 1, "at least 1")
        self.nonmono = nonmono
        self.losses: list[float] = []
        self.trigger: int | None = None
        self.average: np.ndarray | None = None

    def validated(self, loss: float) -> str | None:
        if self.trigger is not None:
            return None
        before = self.losses[: -self.nonmono]
        self.losses.append(loss)
        if not before or loss <= min(before):
            return None
        self.trigger, self.average = self.t, self.parameters.copy()
        return f"averaging from step {self.t + 1:,} on: no better than the {min(before):.4f} of before"

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Change p and a for each other, bit for bit; nothing before the trigger."""
        if self.average is None:
            return
        parameters, average = self.parameters, self.average
        if get_array_module(parameters) is not np:
            held = parameters.copy()
            parameters[...], average[...] = average, held
            return

        def work(piece: slice, scratch: np.ndarray) -> None:
            scratch[...] = parameters[piece]
            parameters[piece] = average[piece]
            average[piece] = scratch

        for_each_piece(parameters.size, self.threads, work, (parameters.dtype,))

    def update_by_kernels(self, gradients, copy=None):
        p, average = self.parameters, self.average
        sgd_update(
            self.controls, gradients, p, None, 0.0, self.weight_decay, average, self.trigger, copy=copy
        )  # fmt: skip

    def _piece_updater(self, gradients, rate, scale):
        descend = super()._piece_updater(gradients, rate, scale)
        if self.average is None or self.trigger is None:
            return descend
        average, weight = self.average, 1 / (self.t - self.trigger)

        def update_piece(piece: slice, scratch: np.ndarray) -> None:
            descend(piece, scratch)
            np.subtract(self.parameters[piece], average[piece], out=scratch)
            scratch *= weight
            average[piece] += scratch

        return update_piece

    def state(self) -> State:
        """Also the losses and the trigger; the mean only once there is one."""
        return {
            "t": self.t,
            "losses": np.array(self.losses, np.float64),
            "trigger": np.int64(-1 if self.trigger is None else self.trigger),
            **({} if self.average is None else {AVERAGE: self.average}),
        }

    def load_state(self, state: State) -> None:
        trigger, before = int(state.get("trigger", -1)), self.average
        self.average = None if trigger < 0 else get_array_module(self.parameters).empty_like(self.parameters)
        try:
            super().load_state(state)
        except InputError:
            self.average = before
            raise
        self.trigger = None if trigger < 0 else trigger
        self.losses = [float(loss) for loss in state["losses"]]

    def _moments(self) -> dict[str, np.ndarray]:
        return {} if self.average is None else {AVERAGE: self.average}


class Adam(Optimizer):
    """Adam (Kingma and Ba, arXiv 1412.6980), as in `torch.optim.Adam`; with weight decay as in its `AdamW`.

    m ← β₁·m + (1 - β₁)·g        v ← β₂·v + (1 - β₂)·g²
    p ← p - lr · m̂ / (√v̂ + ε),   m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)
    """

    def __init__(
        self,
        parameters: np.ndarray,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        threads: int | None = None,
    ):
        super().__init__(parameters, learning_rate, weight_decay, threads)
        _require("beta1", beta1, 0 <= beta1 < 1, "within [0, 1)")
        _require("beta2", beta2, 0 <= beta2 < 1, "within [0, 1)")
        _require("epsilon", epsilon, 0 < epsilon < math.inf, "a number > 0")
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.m, self.v = (get_array_module(parameters).zeros_like(parameters) for _ in range(2))

    def update_by_kernels(self, gradients, copy=None):
        adam_update(
            self.controls, gradients, self.parameters, self.m, self.v, (self.beta1, self.beta2), self.epsilon,
            self.weight_decay, copy,
        )  # fmt: skip

    def _piece_updater(self, gradients, rate, scale):
        # m̂ / (√v̂ + ε) = (correction / (1 - β₁ᵗ)) · m / (√v + ε·correction) with correction = √(1 - β₂ᵗ): the
        # corrections, (1 - β) and the scale act on numbers, not on arrays.
        correction = math.sqrt(1 - self.beta2**self.t)
        epsilon = self.epsilon * correction
        step_size = rate * correction / (1 - self.beta1**self.t)
        weight1 = scale * (1 - self.beta1)
        weight2 = scale * math.sqrt(1 - self.beta2)

        def update_piece(piece: slice, scratch: np.ndarray) -> None:
            g, m, v = gradients[piece], self.m[piece], self.v[piece]
            m *= self.beta1
            np.multiply(g, weight1, out=scratch)
            m += scratch
            v *= self.beta2
            np.multiply(g, weight2, out=scratch)
            scratch *= scratch
            v += scratch
            np.sqrt(v, out=scratch)
            scratch += epsilon
            np.divide(m, scratch, out=scratch)
            scratch *= step_size
            self.parameters[piece] -= scratch

        return update_piece

    def _moments(self) -> dict[str, np.ndarray]:
        return {"m": self.m, "v": self.v}


def global_norm(flat: np.ndarray, threads: int | None = None) -> float:
    """√(Σ flat²) of a 1-D array: rows of squares are summed by BLAS, their sums exactly.

    The bits are equal for any number of threads.

    Not finite when any element is not, or when a float32 square overflows (an element beyond 1.8e19). On a
    GPU the squares are summed in double, in a fixed order, and the host waits for the result.
    """
    if use_kernels(flat):
        controls = UpdateControls(flat)
        controls.measure(flat)
        return controls.read()["norm"]
    threads = threads or (num_threads() if flat.size >= _SHARED else 1)
    shares = split_range(flat.size, threads, _DOT)
    sums = run_parts(lambda share: _sums_of_squares(flat[share]), shares)
    return math.sqrt(math.fsum(itertools.chain.from_iterable(sums)))


def _sums_of_squares(flat: np.ndarray) -> list[float]:
    """The sums of squares of rows of _DOT elements and of the rest, in two calls that hold no lock."""
    whole = flat.size // _DOT * _DOT
    rows = flat[:whole].reshape(-1, 1, _DOT)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the norm
        return [
            *np.matmul(rows, rows.transpose(0, 2, 1)).ravel().tolist(),
            float(np.dot(flat[whole:], flat[whole:])),
        ]


def add_scaled(target: np.ndarray, source: np.ndarray, factor: float, threads: int | None = None) -> None:
    """target += factor · source, both 1-D, piece by piece: on a CPU no array of their size is made."""
    if get_array_module(target) is not np:
        target += source * target.dtype.type(factor)
        return

    def work(piece: slice) -> None:
        target[piece] += factor * source[piece]

    for_each_piece(target.size, threads, work)


def for_each_piece(
    size: int,
    threads: int | None,
    work: Callable[..., None],
    scratch: tuple[np.dtype, ...] = (),
) -> None:
    """work(piece, *scratch) for slices of PIECE elements that cover range(size), shared out among threads.

    Args:
        threads: None: as many as BLAS uses. Where pieces begin does not depend on it.
        work: may be called by several threads at once, each with pieces of its own.
        scratch: dtypes of the arrays, each of the piece's length, that `work` may write to. They are made
            once a thread: a fresh array for every piece would cost its pages each time.
    """

    def walk(share: slice) -> None:
        length = min(PIECE, share.stop - share.start)
        memory = [np.empty(length, dtype) for dtype in scratch]
        for first in range(share.start, share.stop, PIECE):
            piece = slice(first, min(first + PIECE, share.stop))
            work(piece, *(array[: piece.stop - first] for array in memory))

    run_parts(walk, split_range(size, threads or num_threads(), PIECE))


def clip_factor(norm: float, max_norm: float | None) -> float:
    """The factor on gradients that brings their global norm to `max_norm` (Pascanu et al., arXiv 1211.5063).

    1 where the norm is no larger anyway, or `max_norm` is 0 or None: no clipping. The norm must be finite:
    with one that is not, the update is to be skipped.
    """
    return 1.0 if not max_norm or norm <= max_norm else max_norm / norm


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"{name}: expected {expected}, got {value}")
