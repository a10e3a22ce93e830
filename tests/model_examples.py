"""A small model and a small text for the tests of the language model."""

import numpy as np

from minilstm import LanguageModel, ModelConfig

V, E, H, T, B = 13, 4, 6, 5, 3
CONFIG = ModelConfig(vocab_size=V, embedding_size=E, hidden_size=H, num_layers=3)


def example(dtype=np.float64, scale=1.0, **sizes):
    """A model with weights large enough that its layers are far from linear."""
    config = ModelConfig(**{"vocab_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 3, **sizes})
    model = LanguageModel(config, dtype=dtype)
    rng = np.random.default_rng(7)
    model.flat_parameters[:] = rng.standard_normal(model.flat_parameters.size) * scale
    return model


def window(steps=T, seed=0):
    text = np.random.default_rng(seed).integers(0, V, (steps + 1, B))
    return text[:-1], text[1:].copy()


def random_state(model, batch_size=B):
    rng = np.random.default_rng(3)
    return [
        tuple(rng.standard_normal(part.shape) for part in layer) for layer in model.initial_state(batch_size)
    ]
