"""The training step in PyTorch on a GPU, as its users write it, to be measured beside this project's.

nn.Embedding, nn.LSTM (cuDNN) layer by layer, the tied nn.Linear and cross_entropy, clip_grad_norm_, Adam; in
float32, or in float16 by autocast and GradScaler. The sampled loss gathers the drawn words' rows. No dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from minilstm.config import ModelConfig


class TorchGpuModel(torch.nn.Module):
    """The loss of a window, and the state after it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.embedding_size)
        self.rnns = torch.nn.ModuleList(torch.nn.LSTM(inputs, units) for inputs, units in config.layer_sizes)
        self.decoder = torch.nn.Linear(config.embedding_size, config.vocab_size)
        self.decoder.weight = self.embedding.weight
        torch.nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        torch.nn.init.zeros_(self.decoder.bias)

    def forward(self, inputs: Any, targets: Any, states: Any, sample: Any = None) -> tuple[Any, Any]:
        """Mean cross-entropy of targets (T, B), against all words, or against a sample of their ids (K)."""
        x, new_states = self.embedding(inputs), []
        for rnn, state in zip(self.rnns, states, strict=True):
            x, state = rnn(x, state)
            new_states.append((state[0].detach(), state[1].detach()))
        h, wanted = x.flatten(0, 1), targets.flatten()
        if sample is None:
            return F.cross_entropy(self.decoder(h), wanted), new_states
        W, b = self.decoder.weight, self.decoder.bias
        of_sample = F.linear(h, W[sample], b[sample]).float()
        of_sample = of_sample.masked_fill(wanted[:, None] == sample[None], -1e9)  # accidental hits
        of_target = (h * W[wanted]).sum(1).float() + b[wanted].float()
        return (torch.logaddexp(torch.logsumexp(of_sample, 1), of_target) - of_target).mean(), new_states


def torch_step(
    config: ModelConfig, batch_size: int, device: str, mixed: bool, compiled: bool
) -> Callable[[np.ndarray, np.ndarray, np.ndarray | None], Any]:
    """A function that makes one step of a window (T, B) and returns its loss, still on the device."""
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model: Any = TorchGpuModel(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=mixed and device == "cuda")
    loss_of = torch.compile(model) if compiled else model
    states = [
        tuple(torch.zeros(1, batch_size, units, device=device) for _ in "hc")
        for _, units in config.layer_sizes
    ]
    dtype = torch.float16 if device == "cuda" else torch.bfloat16

    def on_device(ids: np.ndarray) -> Any:
        return torch.from_numpy(ids.astype(np.int64)).to(device, non_blocking=True)

    def step(inputs: np.ndarray, targets: np.ndarray, sample: np.ndarray | None = None) -> Any:
        nonlocal states
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=mixed):
            drawn = None if sample is None else on_device(sample)
            loss, states = loss_of(on_device(inputs), on_device(targets), states, drawn)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def synchronize(device: str) -> None:
    """Wait until the device has done all that was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_bytes_in_use(device: str) -> int | None:
    """Of the whole GPU, pools included, which keep what they once had; None on a CPU."""
    if device != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free


def versions() -> dict[str, Any]:
    """What was measured against."""
    return {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
