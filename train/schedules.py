"""Learning rates as pure functions of the step: nothing to save, nothing to restore.

Steps are counted from 0: `schedule(step)` is the learning rate of the update that `step` updates went before.
Every schedule begins with the same linear warm-up: the first update has 1/warmup_steps of the learning rate,
not 0.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from autograd.errors import InputError
from train.nearest import nearest

Schedule = Callable[[int], float]

NAMES = ("fixed", "step", "exponential", "cosine", "inverse_sqrt")


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    decay_factor: float = 0.5,
    decay_steps: int = 0,
    milestones: Sequence[int] = (),
    total_steps: int | None = None,
    final_learning_rate: float = 0.0,
) -> Schedule:
    """The schedule of this name. With lr the learning rate, w the warm-up and s the step, from s = w on:

    - "fixed": lr
    - "step": lr · decay_factor^n, n the number of milestones ≤ s; without milestones n = ⌊s / decay_steps⌋
    - "exponential": lr · decay_factor^((s - w) / decay_steps), by default once from w to total_steps
    - "cosine": from lr at w to `final_learning_rate` at decay_steps, by default at total_steps, along half a
      cosine (Loshchilov and Hutter, arXiv 1608.03983), and constant from there
    - "inverse_sqrt": lr · √(w / (s + 1)), with w at least 1 (Vaswani et al., arXiv 1706.03762)

    Before w, all of them: lr · (s + 1) / w.

    Args:
        milestones: in steps.
        others: what a schedule does not name above, it does not look at; 0 or None where there is a default.

    Raises:
        InputError: an unknown name, or a value that the schedule needs and that is missing or out of its
        range.
    """
    _require(0 < learning_rate < math.inf, f"learning_rate: expected a number > 0, got {learning_rate}")
    _require(warmup_steps >= 0, f"warmup_steps: expected a number ≥ 0, got {warmup_steps}")
    _require(decay_factor > 0, f"decay_factor: expected a number > 0, got {decay_factor}")
    lr, w = learning_rate, warmup_steps
    makers: dict[str, Callable[[], Schedule]] = {
        "fixed": lambda: _fixed(lr),
        "step": lambda: _step(lr, decay_factor, sorted(milestones), decay_steps),
        "exponential": lambda: _exponential(lr, decay_factor, w, decay_steps or (total_steps or 0) - w),
        "cosine": lambda: _cosine(lr, final_learning_rate, w, decay_steps or total_steps or 0),
        "inverse_sqrt": lambda: _inverse_sqrt(lr, w),
    }
    if name not in makers:
        hint = nearest("schedule", name, NAMES, cutoff=0.4)
        message = f"schedule: expected one of {', '.join(NAMES)}; got {name!r}"
        raise InputError(f"{message}; {hint}" if hint else message)
    after = makers[name]()

    def schedule(step: int) -> float:
        return learning_rate * (step + 1) / warmup_steps if step < warmup_steps else after(step)

    return schedule


def _fixed(learning_rate: float) -> Schedule:
    return lambda step: learning_rate


def _step(learning_rate: float, factor: float, boundaries: Sequence[int], decay_steps: int) -> Schedule:
    if boundaries:
        return lambda step: learning_rate * factor ** bisect_right(boundaries, step)
    _require(
        decay_steps > 0, "schedule 'step' needs milestones, or the decay_steps from one decay to the next"
    )
    return lambda step: learning_rate * factor ** (step // decay_steps)


def _exponential(learning_rate: float, factor: float, begin: int, length: int) -> Schedule:
    _require(
        length > 0, f"schedule 'exponential' needs decay_steps, or total_steps beyond its warm-up of {begin}"
    )
    return lambda step: learning_rate * factor ** ((step - begin) / length)


def _cosine(learning_rate: float, final: float, begin: int, end: int) -> Schedule:
    _require(
        end > begin,
        f"schedule 'cosine' ends at step {end}, which must be beyond its warm-up of {begin} steps; "
        "lower warmup_steps, or let the run be longer",
    )
    _require(0 <= final < math.inf, f"final_learning_rate: expected a number ≥ 0, got {final}")

    def cosine(step: int) -> float:
        done = min(1.0, (step - begin) / (end - begin))
        return final + (learning_rate - final) * 0.5 * (1 + math.cos(math.pi * done))

    return cosine


def _inverse_sqrt(learning_rate: float, warmup_steps: int) -> Schedule:
    return lambda step: learning_rate * math.sqrt(max(1, warmup_steps) / (step + 1))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
