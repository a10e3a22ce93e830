"""What a configuration comes to: windows, number of steps, learning rates, optimizer, loss scaler."""

from __future__ import annotations

import numpy as np

from minilstm import LanguageModel
from train.batches import Windows
from train.config import TrainConfig
from train.mixed_precision import LossScaler, make_loss_scaler
from train.optimizers import NTASGD, SGD, Adam, Optimizer
from train.schedules import Schedule, make_schedule


def windows_of(train: TrainConfig) -> Windows:
    """How the configuration cuts each epoch into windows."""
    return Windows(train.window, train.seed, train.random_start, train.variable_window, train.shuffle_windows)


def total_steps(train: TrainConfig, length: int) -> int:
    """Updates of the whole run: the epochs', or fewer if max_steps or max_tokens say so.

    Args:
        train: epochs, the windows, batch_size and the two limits.
        length: steps of time in a row of the batch, as `Batches.length`.
    """
    limit = train.max_steps or None
    if train.max_tokens:
        return _steps_to_tokens(train, length, limit)
    return windows_of(train).count(train.epochs, length, limit)


def _steps_to_tokens(train: TrainConfig, length: int, limit: int | None) -> int:
    """Updates until max_tokens are trained on or the epochs are over, `limit` at most."""
    windows, steps_of_time = windows_of(train), -(-train.max_tokens // train.batch_size)
    epoch = steps = 0
    if windows.all_epochs_alike:  # whole ones need no counting
        epoch = min(train.epochs, steps_of_time // length)
        steps, steps_of_time = windows.count(epoch, length), steps_of_time - epoch * length
    while epoch < train.epochs and steps_of_time > 0 and (limit is None or steps < limit):
        starts, stops = windows.cut(epoch, length).T
        done = np.cumsum(stops - starts)
        steps += min(len(done), int(np.searchsorted(done, steps_of_time)) + 1)
        epoch, steps_of_time = epoch + 1, steps_of_time - int(done[-1])
    return steps if limit is None else min(steps, limit)


def schedule_of(train: TrainConfig, length: int) -> Schedule:
    """The learning rate at each step of the whole run; `length` as for `total_steps`."""
    windows, steps = windows_of(train), total_steps(train, length)
    return make_schedule(
        train.schedule,
        train.learning_rate,
        warmup_steps=train.warmup_steps,
        decay_factor=train.decay_factor,
        decay_steps=train.decay_steps,
        milestones=[windows.count(epochs, length, steps) for epochs in train.decay_epochs],
        total_steps=steps,
        final_learning_rate=train.final_learning_rate,
    )


def make_optimizer(model: LanguageModel, train: TrainConfig) -> Optimizer:
    """The optimizer that the configuration names, over the model's weights."""
    weights, rate, decay = model.flat_parameters, train.learning_rate, train.weight_decay
    if train.optimizer == "sgd":
        return SGD(weights, rate, momentum=train.momentum, weight_decay=decay)
    if train.optimizer == "nt_asgd":
        return NTASGD(weights, rate, nonmono=train.nonmono, weight_decay=decay)
    return Adam(weights, rate, train.beta1, train.beta2, train.epsilon, weight_decay=decay)


def make_scaler(train: TrainConfig) -> LossScaler | None:
    """What scales the loss of a mixed run; None in float32."""
    if train.precision == "float32":
        return None
    return make_loss_scaler(train.loss_scaler, train.initial_loss_scale, train.loss_scale_growth_steps)
