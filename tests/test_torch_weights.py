"""The model against one written in PyTorch, and weights that go to its names and back."""

import numpy as np
import pytest
from model_examples import CONFIG, B, E, H, V, example, random_state, window

from autograd import InputError, ShapeError
from minilstm import LanguageModel, from_torch_state_dict, to_torch_state_dict


def torch_model(torch, model):
    """The same model as a PyTorch user would write it."""

    class Peer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = model.config
            self.encoder = torch.nn.Embedding(config.vocab_size, config.embedding_size)
            self.rnns = torch.nn.ModuleList(torch.nn.LSTM(i, units) for i, units in config.layer_sizes)
            self.decoder = torch.nn.Linear(config.output_size, config.vocab_size)
            if config.tied_weights:
                self.decoder.weight = self.encoder.weight

        def forward(self, inputs, targets, state):
            x, new_state = self.encoder(inputs), []
            for rnn, (h, c) in zip(self.rnns, state, strict=True):
                x, (h, c) = rnn(x, (h[None], c[None]))
                new_state.append((h[0], c[0]))
            logits = self.decoder(x).flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-1), new_state

    peer = Peer().to(getattr(torch, model.dtype.name))
    peer.load_state_dict({name: torch.tensor(value) for name, value in to_torch_state_dict(model).items()})
    return peer


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_layers": 1},
        {"num_layers": 2, "embedding_size": 40, "hidden_size": 33},
        {"tied_weights": False},
        {"tied_weights": False, "last_hidden_size": 9},
    ],
)
def test_equal_to_torch(dtype, tolerance, sizes):
    torch = pytest.importorskip("torch")
    model, (inputs, targets) = example(dtype, 0.3, **sizes), window(9)
    targets[2, 1] = -1
    state = [tuple(part.astype(dtype) for part in layer) for layer in random_state(model)]
    peer = torch_model(torch, model)
    loss, new_state = model(inputs, targets, state)
    loss.backward()
    peer_state = [tuple(map(torch.tensor, layer)) for layer in state]
    peer_loss, peer_new_state = peer(torch.tensor(inputs), torch.tensor(targets), peer_state)
    peer_loss.backward()

    assert loss.item() == pytest.approx(peer_loss.item(), rel=tolerance)
    for ours, theirs in zip(new_state, peer_new_state, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=0, atol=tolerance)
    grads = [peer.encoder.weight.grad]
    for rnn in peer.rnns:
        grads += [rnn.weight_ih_l0.grad, rnn.weight_hh_l0.grad, rnn.bias_ih_l0.grad]
    grads += (
        [peer.decoder.bias.grad] if model.config.tied_weights else [p.grad for p in peer.decoder.parameters()]
    )
    for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
        np.testing.assert_allclose(parameter.grad, grad.numpy(), rtol=0, atol=tolerance, err_msg=name)


def test_weights_come_back_from_torch():
    torch = pytest.importorskip("torch")
    model = example(np.float32)
    peer = torch_model(torch, model)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_()
    returned = LanguageModel(CONFIG)
    from_torch_state_dict(returned, peer.state_dict())
    inputs, targets = window()
    state = [tuple(torch.zeros(B, layer.units) for _ in range(2)) for layer in model.layers]
    expected = peer(torch.tensor(inputs), torch.tensor(targets), state)[0].item()  # with two biases each
    assert returned(inputs, targets)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_weights": False},
        {"tied_weights": False, "last_hidden_size": 9},
        {"softmax": "sampled", "num_samples": 3},
        {"softmax": "adaptive", "adaptive_bands": (3,)},
        {"layer_norm": True},
    ],
    ids=str,
)
def test_weights_go_to_torchs_names_and_back(options):
    model = example(**options)
    other = LanguageModel(model.config, seed=5, dtype=np.float64)
    tensors = to_torch_state_dict(model)
    assert tensors["rnns.2.weight_ih_l0"].shape == (4 * model.config.output_size, H)
    assert (tensors["encoder.weight"] is tensors["decoder.weight"]) == model.config.tied_weights
    memory = other.flat_parameters
    from_torch_state_dict(other, tensors)
    assert other.flat_parameters is memory
    assert memory.tobytes() == model.flat_parameters.tobytes()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "decoder.weight",
            np.zeros((V, E)),
            InputError,
            "decoder.weight must equal encoder.weight, which the",
        ),
        ("rnns.3.bias_hh_l0", np.zeros(4), InputError, "rnns.3.bias_hh_l0 must not be there; the"),
        ("rnns.0.weight_hr_l0", np.zeros(4), InputError, "rnns.0.weight_hr_l0 must not be there"),
        ("rnns.1.bias_hh_l0", None, InputError, "rnns.1.bias_hh_l0 is missing; got decoder.bias, "),
        ("decoder.bias", np.zeros(V + 1), ShapeError, f"decoder.bias must be ({V},); got ({V + 1},)"),
    ],
)
def test_other_weights_are_refused_and_none_is_loaded(name, value, error, message):
    tensors, model = to_torch_state_dict(example()), example(scale=2.0)
    tensors.pop(name, None)
    tensors |= {} if value is None else {name: value}
    kept = model.flat_parameters.copy()
    with pytest.raises(error) as raised:
        from_torch_state_dict(model, tensors)
    assert message in str(raised.value)
    assert model.flat_parameters.tobytes() == kept.tobytes()
