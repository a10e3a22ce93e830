"""An LSTM language model with a tied softmax, its gradients derived by hand.

    >>> import numpy as np
    >>> from minilstm import LanguageModel, ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=10, embedding_size=4, hidden_size=8, num_layers=2))
    >>> text = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])  # (T, B): two streams of four words
    >>> loss, state = model(text[:-1], text[1:])
    >>> loss.backward()
    >>> print(f"{loss.item():.2f}")  # nats; a blind guess among ten words costs ln 10
    2.30

Read `lstm_cell` first, then `lstm` and `layer_norm_lstm`, then `tied_softmax` and `language_model`.
"""

from minilstm.config import ModelConfig
from minilstm.dropout import MaskStream
from minilstm.language_model import LanguageModel, Objective, detach
from minilstm.torch_weights import from_torch_state_dict, to_torch_state_dict

__all__ = [
    "LanguageModel", "MaskStream", "ModelConfig", "Objective", "detach", "from_torch_state_dict",
    "to_torch_state_dict",
]  # fmt: skip
