"""What a run will need: the model in words, and its memory reckoned from the shapes."""

from __future__ import annotations

from autograd.parallel import num_threads
from minilstm import ModelConfig
from minilstm.tied_softmax import BLOCK_WORDS, KEPT_BYTES
from train.config import TrainConfig

FLOAT_BYTES = 4
INTERPRETER = 60 << 20
"""Python with NumPy and h5py loaded, measured."""


def memory_parts(model: ModelConfig, train: TrainConfig, rows: int) -> dict[str, int]:
    """Bytes that one rank takes, by what they are for; `rows` is its share of the batch.

    It follows the arrays of one training step (minilstm/lstm.py, minilstm/tied_softmax.py): gates, outputs,
    cells of every layer are held from the forward to the backward pass, blocks of logits are not.
    """
    parameters = model.num_parameters()
    steps = train.window * rows
    moments = {"adam": 2, "sgd": 1 if train.momentum else 0}[train.optimizer]
    activations = 2 * steps * model.embedding_size
    largest_backward = 0
    for inputs, units in model.layer_sizes:
        recurrent = 4 * units * units
        activations += steps * (4 * units + 3 * units + units)  # gates; h, c, tanh(c); the dropped output
        activations += 2 * recurrent if model.recurrent_weight_keep_prob < 1 else 0  # W_hh masked, its mask
        largest_backward = max(largest_backward, steps * (5 * units + inputs) + recurrent)  # its panels
    kept = min(KEPT_BYTES // FLOAT_BYTES, steps * model.vocab_size)
    softmax = kept + num_threads() * steps * (BLOCK_WORDS + 2 * model.embedding_size)
    return {
        "parameters": parameters * FLOAT_BYTES,
        "gradients": parameters * FLOAT_BYTES,
        f"{train.optimizer} moments": moments * parameters * FLOAT_BYTES,
        "activations": (activations + largest_backward) * FLOAT_BYTES,
        "softmax blocks": softmax * FLOAT_BYTES,
        "interpreter": INTERPRETER,
    }


def describe(model: ModelConfig, train: TrainConfig, ranks: int) -> str:
    """The model layer by layer, its parameters, and the memory that each rank will take."""
    V, E = model.vocab_size, model.embedding_size
    lines = [f"embedding and decoder  {V:>9,} × {E:<5} {V * E:>13,}"]
    for index, (inputs, units) in enumerate(model.layer_sizes):
        size = 4 * units * (inputs + units + 1)
        lines.append(f"LSTM layer {index}           {inputs:>9,} → {units:<5} {size:>13,}")
    lines.append(f"decoder bias           {V:>9,} {'':7} {V:>13,}")
    lines.append(f"parameters             {'':17} {model.num_parameters():>13,}")
    rows = train.batch_size // ranks
    parts = memory_parts(model, train, rows)
    lines.append("")
    lines.append(
        f"memory of each rank ({ranks} in all, {rows} of {train.batch_size} rows, windows of {train.window}):"
    )
    lines += [
        f"  {name:<38} {size / 2**20:>11,.0f} MB"
        for name, size in (parts | {"in all": sum(parts.values())}).items()
    ]
    return "\n".join(lines)
