"""The same language model in PyTorch, as its users write it. Only here and in `torch_kernels` is torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig, to_torch_state_dict
from train.config import TrainConfig

SCORED_STEPS = 256
"""Steps scored at a time: their logits take 34 MB with 33,278 words."""

LOCKED_DROPOUTS = (
    "encoder_dp_input_keep_prob",
    "encoder_dp_output_keep_prob",
    "encoder_last_input_keep_prob",
    "encoder_last_output_keep_prob",
)
"""The only dropouts that both sides have."""

States = list[tuple[torch.Tensor, torch.Tensor]]


class TorchModel(torch.nn.Module):
    """nn.Embedding, a stack of nn.LSTM, and nn.Linear with the embedding's weight."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        _refuse_what_this_lacks(config)
        self.config, self.generator = config, generator
        self.encoder = torch.nn.Embedding(config.vocab_size, config.embedding_size)
        self.rnns = torch.nn.ModuleList(torch.nn.LSTM(inputs, units) for inputs, units in config.layer_sizes)
        self.decoder = torch.nn.Linear(config.embedding_size, config.vocab_size)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: torch.Tensor, states: States | None) -> tuple[torch.Tensor, States]:
        """Logits (T, B, V) and the new states from words (T, B) and the states before them."""
        config = self.config
        x = self.encoder(inputs)
        new_states = []
        for index, rnn in enumerate(self.rnns):
            last = index == config.num_layers - 1
            x = self._locked_dropout(
                x, config.encoder_last_input_keep_prob if last else config.encoder_dp_input_keep_prob
            )
            x, state = rnn(x, None if states is None else states[index])
            x = self._locked_dropout(
                x, config.encoder_last_output_keep_prob if last else config.encoder_dp_output_keep_prob
            )
            new_states.append(state)
        return self.decoder(x), new_states

    def _locked_dropout(self, x: torch.Tensor, keep_prob: float) -> torch.Tensor:
        """One mask (B, units) for all steps of x (T, B, units) (Gal & Ghahramani 2016), in training."""
        if not self.training or keep_prob == 1:
            return x
        mask = torch.empty(x.shape[1:]).bernoulli_(keep_prob, generator=self.generator)
        return x * (mask / keep_prob)


def _refuse_what_this_lacks(config: ModelConfig) -> None:
    plain = dataclasses.asdict(ModelConfig(config.vocab_size))
    known = {
        "vocab_size",
        "embedding_size",
        "hidden_size",
        "num_layers",
        "embedding_init_scale",
        *LOCKED_DROPOUTS,
    }
    for name, value in dataclasses.asdict(config).items():
        if name not in known and value != plain[name]:
            raise InputError(
                f"the PyTorch side is a plain tied LSTM with locked dropouts; it lacks {name} = {value}"
            )


class TorchSystem:
    """PyTorch eager with torch.optim.Adam and clip_grad_norm_; arguments as for `systems.make_system`."""

    def __init__(self, config: ModelConfig, train: TrainConfig, seed: int, one_bias: bool = False) -> None:
        self.model = TorchModel(config, torch.Generator().manual_seed(seed))
        weights = to_torch_state_dict(LanguageModel(config, seed))
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        for rnn in self.model.rnns:
            rnn.bias_hh_l0.requires_grad_(not one_bias)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        betas = (train.beta1, train.beta2)
        self._optimizer = torch.optim.Adam(trained, train.learning_rate, betas, train.epsilon)
        self._clip_norm = train.clip_norm
        self._states: States | None = None

    def start_stream(self) -> None:
        self._states = None

    def step(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        self._optimizer.zero_grad()
        loss, states = self._loss(inputs, targets, self._states)
        loss.backward()
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._states = [(h.detach(), c.detach()) for h, c in states]
        return loss.item()

    def score(self, tokens: np.ndarray, eos_id: int) -> float:
        """As one single stream from its first word to its last."""
        text = np.concatenate([[eos_id], tokens])[:, None]
        total, states = 0.0, None
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(tokens), SCORED_STEPS):
                window = text[start : start + SCORED_STEPS + 1]
                loss, states = self._loss(window[:-1], window[1:], states)
                total += loss.item() * (len(window) - 1)
        self.model.train()
        return total / len(tokens)

    def _loss(
        self, inputs: np.ndarray, targets: np.ndarray, states: States | None
    ) -> tuple[torch.Tensor, States]:
        """Mean cross-entropy of a window (T, B) and the states after it."""
        logits, new_states = self.model(torch.from_numpy(inputs.astype(np.int64)), states)
        wanted = torch.from_numpy(targets.astype(np.int64))
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten()), new_states
