"""What a run will need: the model in words, and its memory reckoned from the shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from autograd.cublas import WORKSPACE_BYTES
from autograd.errors import InputError
from autograd.parallel import num_threads
from minilstm import ModelConfig
from minilstm.lstm_kernels import panels_pay
from minilstm.tied_softmax import KEPT_BYTES, words_at_a_time
from minilstm.tied_softmax_cuda import workspace_bytes
from train.config import TrainConfig

FLOAT_BYTES, HALF_BYTES = 4, 2
INTERPRETER = 60 << 20
"""Python with NumPy and h5py loaded, measured."""
CUDA_OUT_OF_MEMORY = 2
CUDA_CONTEXT = 600 << 20
"""What CUDA, its libraries and compiled kernels take of a GPU before there is an array; reckoned."""


def memory_parts(model: ModelConfig, train: TrainConfig, rows: int) -> dict[str, int]:
    """Bytes that one rank takes, by what they are for; `rows` is its share of the batch.

    It follows the arrays of one training step (minilstm/lstm.py, minilstm/tied_softmax.py): gates, outputs,
    cells and masks of every layer are held from the forward to the backward pass, blocks of logits are not.
    In mixed precision weights and gradients are there twice, and activations take half; what a layer or the
    softmax takes for as long as it runs is float32 on a CPU, which multiplies nothing else.
    """
    bytes_of_activation = FLOAT_BYTES if train.precision == "float32" else HALF_BYTES
    parameters = model.num_parameters()
    steps = train.window * rows // train.accumulate
    activations = _embedding_floats(model, steps)
    activations += sum(_layer_floats(model, index, steps) for index in range(model.num_layers))
    activations += steps * model.output_size if model.temporal_activation_regularization else 0
    softmax = _softmax_floats(model, steps)
    # The softmax's blocks are not there then; but in the backward pass those whose gradients of W can wait.
    defers = num_threads() > 1 and train.precision == "float32" and model.softmax == "full"
    passing = max(_passing_floats(model, steps, defers * _kept_floats(model, steps)) - softmax, 0)
    logit_gradients = _block_of_logits(model, steps) * (HALF_BYTES + FLOAT_BYTES)  # one multiplied as float32
    copies = {
        "float16 parameters": parameters * HALF_BYTES,
        "float16 gradients": parameters * HALF_BYTES,
    }
    return {
        "parameters": parameters * FLOAT_BYTES,
        "gradients": parameters * FLOAT_BYTES,
        **(copies if train.precision == "mixed" else {}),
        f"{train.optimizer} moments": _moments(train) * parameters * FLOAT_BYTES,
        "activations": activations * bytes_of_activation + passing * FLOAT_BYTES,
        "softmax blocks": softmax * FLOAT_BYTES + (logit_gradients if train.precision == "mixed" else 0),
        "interpreter": INTERPRETER,
    }


def gpu_memory_parts(model: ModelConfig, train: TrainConfig, rows: int, ranks: int = 1) -> dict[str, int]:
    """Bytes that one rank takes of its GPU, by what they are for; reckoned as `memory_parts` are."""
    parameters, mixed = model.num_parameters(), train.precision == "mixed"
    size = 2 if mixed else FLOAT_BYTES
    steps = train.window * rows // train.accumulate
    floats = _embedding_floats(model, steps)
    floats += sum(_layer_floats(model, index, steps) for index in range(model.num_layers))
    floats += _passing_floats(model, steps)
    words = model.num_samples if model.softmax == "sampled" else model.vocab_size
    summed = mixed and (ranks > 1 or train.accumulate > 1 or train.l2_tied > 0)  # in float32, by the masters
    return {
        "parameters": parameters * (FLOAT_BYTES + 2 if mixed else FLOAT_BYTES),
        "gradients": parameters * (size + FLOAT_BYTES if summed else size),
        f"{train.optimizer} moments": _moments(train) * parameters * FLOAT_BYTES,
        "activations": floats * size,
        "softmax": workspace_bytes(steps, words, model.output_size, np.float16 if mixed else np.float32),
        "cuBLAS": WORKSPACE_BYTES * (1 + model.num_layers),  # a stream each; layers run as a wavefront
        "CUDA itself": CUDA_CONTEXT,
    }


def _moments(train: TrainConfig) -> int:
    return {"adam": 2, "nt_asgd": 1}.get(train.optimizer, 1 if train.momentum else 0)


def fitting_batch(model: ModelConfig, train: TrainConfig, ranks: int, available: int) -> int:
    """The largest batch, over all ranks, of which a rank's share fits into its GPU; 0 if no row does."""
    low, high = 0, train.batch_size // ranks
    while low < high:
        rows = (low + high + 1) // 2
        if sum(gpu_memory_parts(model, train, rows, ranks).values()) <= available:
            low = rows
        else:
            high = rows - 1
    return low * ranks


@contextmanager
def told_of_gpu_memory(device: Any, model: ModelConfig, train: TrainConfig, ranks: int) -> Iterator[None]:
    """Context in which a lack of a GPU's memory is an InputError: how much was needed, what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        memory = device.memory() if _is_lack_of_memory(error) else None
        if memory is None:
            raise
        raise InputError(_out_of_memory(model, train, ranks, memory[1])) from None


def _is_lack_of_memory(error: Exception) -> bool:
    """CuPy's pools raise a MemoryError; what goes by them, an error of CUDA's with its number."""
    return isinstance(error, MemoryError) or getattr(error, "status", None) == CUDA_OUT_OF_MEMORY


def _out_of_memory(model: ModelConfig, train: TrainConfig, ranks: int, total: int) -> str:
    rows = train.batch_size // ranks
    needed = sum(gpu_memory_parts(model, train, rows, ranks).values())
    # Less than what failed, whatever the reckoning says, and not quite all: others may have some of it.
    fits = min(fitting_batch(model, train, ranks, int(0.95 * total)), max(rows // 2, 1) * ranks)
    advice = f"batch_size = {fits} would fit" if fits else "no batch would fit; choose a smaller model"
    if fits and train.accumulate == 1:
        advice += f", or accumulate = {-(-train.batch_size // fits)} with this batch, if it divides its rows"
    return (
        f"out of GPU memory: {rows} rows of {train.window} steps a rank need about {needed / 2**20:,.0f} MB, "
        f"and the GPU has {total / 2**20:,.0f} MB; {advice}"
    )


def _embedding_floats(model: ModelConfig, steps: int) -> int:
    """The rows that were looked up and their gradient; with masked elements, the mask and the product."""
    masked = model.encoder_emb_keep_prob < 1 and model.encoder_emb_dropout == "elements"
    arrays = 4 if masked else 2
    if model.encoder_emb_output_keep_prob < 1:
        arrays += 2 if model.activation_dropout == "per_step" else 1
    return arrays * steps * model.embedding_size


def _layer_floats(model: ModelConfig, index: int, steps: int) -> int:
    """What one layer holds from its forward to its backward pass."""
    inputs, units = model.layer_sizes[index]
    into, out = model.activation_keep_probs(index)
    product_and_mask = 2 if model.activation_dropout == "per_step" else 1  # a locked one is T times smaller
    floats = steps * (4 * units + 3 * units)  # gates; h, c, tanh(c)
    floats += steps * (5 * units + 5) if model.layer_norm else 0  # normalised gates and cell, 1 / deviations
    floats += steps * inputs * product_and_mask if into < 1 else 0
    floats += steps * units * product_and_mask if out < 1 else 0
    floats += steps * units if model.recurrent_keep_prob < 1 else 0
    floats += steps * units if model.residual else 0
    floats += 2 * 4 * units * inputs if model.input_weight_keep_prob < 1 else 0  # W_ih masked, its mask
    floats += 2 * 4 * units * units if model.recurrent_weight_keep_prob < 1 else 0
    return floats


def _passing_floats(model: ModelConfig, steps: int, beside_backward: int = 0) -> int:
    """What the forward or the backward pass of a layer takes for as long as it runs: the most of all layers.

    Args:
        beside_backward: what there is besides during the backward passes.
    """
    most = 0
    for inputs, units in model.layer_sizes:
        W_ih, W_hh = 4 * units * inputs, 4 * units * units
        forward = W_hh if model.layer_norm else W_ih + 2 * W_hh  # scaled for one tanh; W_hh as steps read it
        if model.layer_norm and panels_pay():
            forward += W_hh  # padded, before it is cut
        backward = steps * (5 * units + inputs) + W_hh  # slopes, gradients; W_hh as steps read it
        backward += W_ih if model.input_weight_keep_prob < 1 else 0  # what arrives at the masked weights
        backward += W_hh if model.recurrent_weight_keep_prob < 1 else 0
        most = max(most, forward, backward + beside_backward)
    return most


def _block_of_logits(model: ModelConfig, steps: int) -> int:
    """Elements that all threads work on at a time."""
    words = model.num_samples if model.softmax == "sampled" else model.vocab_size
    return _softmax_threads(words, steps) * steps * min(_words_at_a_time(steps), words)


def _words_at_a_time(steps: int) -> int:
    return words_at_a_time(steps, num_threads(), FLOAT_BYTES)


def _softmax_threads(words: int, steps: int) -> int:
    return min(num_threads(), -(-words // _words_at_a_time(steps)))


def _softmax_floats(model: ModelConfig, steps: int) -> int:
    """Exponentials that are kept, one block a thread, and rows of W and of its gradient that are gathered:
    the drawn words', or the head's."""
    words, gathered = model.vocab_size, 0
    if model.softmax == "sampled":
        words, gathered = model.num_samples, 2 * model.num_samples * model.output_size
    elif model.softmax == "adaptive":
        gathered = 2 * (model.adaptive_bands[0] + len(model.adaptive_bands)) * (model.output_size + 1)
    each = steps * (_words_at_a_time(steps) + 2 * model.output_size)
    return _kept_floats(model, steps) + _softmax_threads(words, steps) * each + gathered


def _kept_floats(model: ModelConfig, steps: int) -> int:
    """Exponentials that are kept for the backward pass."""
    words = model.num_samples if model.softmax == "sampled" else model.vocab_size
    # An adaptive softmax is several: at most, for it depends on how many rows each band gets.
    softmaxes = 1 + len(model.adaptive_bands) if model.softmax == "adaptive" else 1
    return min(softmaxes * KEPT_BYTES // FLOAT_BYTES, steps * words)


def describe(model: ModelConfig, train: TrainConfig, ranks: int) -> str:
    """The model layer by layer, its parameters, and the memory that each rank will take."""
    V, E, last = model.vocab_size, model.embedding_size, model.output_size
    name = "embedding and decoder" if model.tied_weights else "embedding"
    lines = [f"{name:<22} {V:>9,} × {E:<5} {V * E:>13,}"]
    for index, (inputs, units) in enumerate(model.layer_sizes):
        size = model.layer_parameters(index)
        lines.append(f"LSTM layer {index}           {inputs:>9,} → {units:<5} {size:>13,}")
    if not model.tied_weights:
        lines.append(f"decoder                {V:>9,} × {last:<5} {V * last:>13,}")
    lines.append(f"decoder bias           {V:>9,} {'':7} {V:>13,}")
    if model.softmax == "adaptive":
        bands = len(model.adaptive_bands)
        lines.append(f"bands                  {bands:>9,} × {last + 1:<5} {bands * (last + 1):>13,}")
    lines.append(f"parameters             {'':17} {model.num_parameters():>13,}")
    rows = train.batch_size // ranks
    on_gpu = train.device == "cuda"
    parts = gpu_memory_parts(model, train, rows, ranks) if on_gpu else memory_parts(model, train, rows)
    lines.append("")
    whose = "memory of each rank's GPU, reckoned" if on_gpu else "memory of each rank"
    lines.append(f"{whose} ({ranks} in all, {rows} of {train.batch_size} rows, windows of {train.window}):")
    lines += [
        f"  {name:<38} {size / 2**20:>11,.0f} MB"
        for name, size in (parts | {"in all": sum(parts.values())}).items()
    ]
    return "\n".join(lines)
