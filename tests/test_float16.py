"""float16 through the engine and the model: stored and rounded in float16, summed in float32."""

import itertools

import numpy as np
import pytest

import autograd.function_cases
import autograd.functions as F
import minilstm.function_cases
from autograd import Parameter, Variable, backprop
from autograd.function_cases import outputs_of
from autograd.gradient_check import backward_all
from minilstm import LanguageModel, MaskStream, ModelConfig, tied_softmax
from minilstm.regularization import activation_regularization, temporal_activation_regularization
from minilstm.tied_softmax import LOGIT_GRADIENT_SCALE, tied_softmax_loss

HALF = np.float16
CASES = [*autograd.function_cases.CASES, *minilstm.function_cases.CASES]
KINDS = sorted({case.kind for case in CASES}, key=lambda kind: kind.__name__)
CASES_OF = {kind: [case for case in CASES if case.kind is kind] for kind in KINDS}


def values_and_gradients(case, inputs, grad_dtype):
    """Outputs, and gradients of the floating-point inputs."""
    variables = [Variable(value, value.dtype.kind == "f") for value in inputs]
    outputs = outputs_of(case, variables)
    backward_all(outputs, [np.ones(output.shape, grad_dtype or output.dtype) for output in outputs])
    return [output.data for output in outputs], [variables[k].grad for k in case.float_inputs]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_function_takes_float16_and_gives_what_float64_gives(kind, monkeypatch):
    """From the same rounded inputs. Results and gradients are float16; a loss, which is a sum, is float32."""
    deliver, delivered = backprop._deliver, set()

    def watch(node, grad, gradients):
        delivered.add((node.dtype, grad.dtype))
        deliver(node, grad, gradients)

    monkeypatch.setattr(backprop, "_deliver", watch)
    monkeypatch.setattr("minilstm.layer_norm_lstm.epsilon_for", lambda *_: 0.01)  # of units as few as 1
    for case in CASES_OF[kind]:
        halves = [x.astype(HALF) if x.dtype.kind == "f" else x for x in case.inputs]
        delivered.clear()
        values, gradients = values_and_gradients(case, halves, None)
        assert {value.dtype for value in values} == {np.dtype("float32" if kind.is_sum else HALF)}
        assert all(node == grad for node, grad in delivered), "each gradient is of its variable's dtype"
        exact = values_and_gradients(
            case, [x.astype(np.float64) if x.dtype == HALF else x for x in halves], np.float64
        )
        for low, high in zip(values + gradients, exact[0] + exact[1], strict=True):
            np.testing.assert_allclose(low, high, rtol=0.01, atol=0.01 * max(1, np.abs(high).max(initial=0)))


# Sums: added up in float16, ones stand still at 2,048.


@pytest.mark.parametrize("axis", [None, 0])
def test_sums_and_means_are_float32_inside(axis):
    x = np.full((4096, 2), 0.5, HALF)
    assert F.sum(x, axis=axis).data.ravel()[0] == (4096 if axis is None else 2048)
    assert F.mean(x * HALF(100), axis=axis).data.ravel()[0] == 50


def test_gradients_of_what_was_repeated_are_summed_in_float32():
    x, ones = Variable(np.zeros((), HALF)), np.ones((4096, 1), HALF)
    backward_all([x + ones], [ones])
    assert x.grad == 4096
    x = Variable(np.zeros(3, HALF))
    backward_all([x[np.ones(4096, int)]], [ones[:, 0]])
    assert x.grad.tolist() == [0, 4096, 0]


def test_a_frequent_words_row_is_summed_in_float32_and_joins_the_decoders_part():
    W = Parameter(np.zeros((3, 2), HALF))
    W.grad_target()[0][...] = 1024
    backward_all([F.embedding(np.ones(4096, int), W)], [np.ones((4096, 2), HALF)])
    assert W.grad.tolist() == [[1024, 1024], [5120, 5120], [1024, 1024]]


def test_biases_gains_and_shifts_are_summed_in_float32():
    b = Variable(np.zeros(2, HALF))
    ones = np.ones((4096, 2), HALF)
    backward_all([F.linear(ones, np.zeros((2, 2), HALF), b)], [ones])
    assert b.grad.tolist() == [4096, 4096]
    x, shift = np.tile(HALF([-1, 1]), (4096, 1)), Variable(np.zeros(2, HALF))
    backward_all([F.layer_normalization(x, np.ones(2, HALF), shift)], [ones])
    assert shift.grad.tolist() == [4096, 4096]


def test_penalties_of_small_activations_do_not_vanish():
    """1e-4 squared is 0 in float16."""
    h = np.full((5, 4, 3), 1e-4, HALF)
    loss = activation_regularization(h, 2.0)
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(2e-8, rel=0.01)
    h[::2] *= HALF(2)
    assert temporal_activation_regularization(h, 1.0).item() == pytest.approx(1e-8, rel=0.01)


# The softmax.


CARD_TARGETS = 224 * 96
"""In a window of the model card's size; the loss is a mean over them."""


def wide_softmax(V=10_000, N=48, E=16):
    rng = np.random.default_rng(0)
    h, W = (rng.standard_normal(shape).astype(HALF) for shape in ((N, E), (V, E)))
    return h * HALF(0.4), W, np.zeros(V, HALF), rng.integers(0, V, N)


def softmax_gradients(dtype, scale=1.0):
    h, W, b, targets = wide_softmax()
    variables = [Variable(value.astype(dtype)) for value in (h, W, b)]
    loss = tied_softmax_loss(*variables, targets)
    backward_all([loss], [np.asarray(scale, loss.dtype)])
    return loss.item(), [variable.grad.astype(np.float64) / scale for variable in variables]


def probabilities():
    h, W, b, _ = (x.astype(np.float64) for x in wide_softmax())
    return np.exp(F.log_softmax(h @ W.T + b).data)


def test_gradients_of_the_logits_have_a_scale_of_their_own():
    """Of a mean over the card's window almost all would round to zero; with the scale 99.9% do not."""
    q = probabilities()
    lost = [np.mean((q * factor).astype(HALF) == 0) for factor in (1 / CARD_TARGETS, LOGIT_GRADIENT_SCALE)]
    assert lost[0] > 0.95
    assert lost[1] < 0.001


def test_so_the_softmaxs_gradients_are_as_good_as_float16_is():
    loss, gradients = softmax_gradients(HALF, scale=2.0**14)
    exact_loss, exact = softmax_gradients(np.float64)
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    for name, ours, theirs in zip("hWb", gradients, exact, strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs), name


def test_without_that_scale_they_are_not(monkeypatch):
    """The test above has the power to fail."""
    monkeypatch.setattr(tied_softmax, "LOGIT_GRADIENT_SCALE", 1 / CARD_TARGETS)
    _, (_, dW, _) = softmax_gradients(HALF, scale=2.0**14)
    _, (_, exact, _) = softmax_gradients(np.float64)
    absent = np.setdiff1d(np.arange(len(dW)), wide_softmax()[3])  # words that are nobody's target
    assert np.linalg.norm(dW[absent] - exact[absent]) > 0.1 * np.linalg.norm(exact[absent])


def test_large_logits_do_not_overflow():
    h, W = np.full((2, 8), 100, HALF), np.full((5, 8), 100, HALF)  # logits of 80,000
    W[3:] = -100
    loss = tied_softmax_loss(h, W, np.zeros(5, HALF), np.array([0, 1]))
    assert loss.item() == pytest.approx(np.log(3), rel=0.01)  # 80,000 is known to 0.008 in float32


# The model.

V = 90
SIZES = {"vocab_size": V, "embedding_size": 12, "hidden_size": 20, "num_layers": 2}
DROPOUTS = {
    "encoder_emb_keep_prob": 0.9, "encoder_emb_dropout": "elements", "encoder_emb_output_keep_prob": 0.9,
    "input_weight_keep_prob": 0.9, "recurrent_weight_keep_prob": 0.7, "recurrent_keep_prob": 0.8,
    "encoder_dp_input_keep_prob": 0.8, "encoder_last_output_keep_prob": 0.7, "activation_regularization": 2.0,
    "temporal_activation_regularization": 1.0,
}  # fmt: skip
SOFTMAXES = {
    "full": {"activation_dropout": "per_step"},
    "sampled": {"softmax": "sampled", "num_samples": 40, "tied_weights": False},
    "adaptive": {"softmax": "adaptive", "adaptive_bands": (20, 50), "residual": True, "hidden_size": 12},
}


def objective_and_gradients(knobs, dtype, implementation, scale):
    config = ModelConfig(**{**SIZES, **knobs})
    model = LanguageModel(config, seed=1, dtype=HALF).copy(dtype)  # the same rounded weights
    model.implementation = implementation
    text = np.random.default_rng(0).integers(0, V, (9, 6))
    objective, loss, state = model.objective(text[:-1], text[1:], None, MaskStream(3))
    (objective * scale).backward()
    assert {part.dtype for pair in state for part in pair} == {np.dtype(dtype)}
    return loss, model.flat_gradients.astype(np.float64) / scale


@pytest.mark.parametrize("implementation", ["fused", "readable"])
@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_gradients_of_a_float16_model_are_those_of_float64(layer_norm, softmax, implementation):
    """With every loss, every dropout, AR and TAR; within float16's rounding."""
    knobs = {**DROPOUTS, **SOFTMAXES[softmax], "layer_norm": layer_norm}
    loss, gradients = objective_and_gradients(knobs, HALF, implementation, 2.0**11)
    exact_loss, exact = objective_and_gradients(knobs, np.float64, implementation, 1.0)
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=2e-5)
    error = np.linalg.norm(gradients - exact) / np.linalg.norm(exact)
    assert error < (0.02 if layer_norm else 2e-3)


def test_a_scaled_loss_saves_gradients_that_float16_would_round_to_zero():
    """Of a long window of many rows each gradient is small: a mean over N targets."""
    config = ModelConfig(vocab_size=2000, embedding_size=16, hidden_size=16, num_layers=2)
    model = LanguageModel(config, seed=1, dtype=HALF)
    text = np.random.default_rng(0).integers(0, 2000, (41, 32))
    lost = []
    for scale in (1.0, 2.0**14):
        model.zero_grads()
        (model.objective(text[:-1], text[1:]).objective * scale).backward()
        lost.append(np.mean(model.layers[0].W_ih.grad == 0))
    assert lost[0] > 0.05
    assert lost[1] == 0


def test_evaluation_and_generation_in_float16_are_near_float32s():
    for knobs in ({}, SOFTMAXES["adaptive"]):
        model = LanguageModel(ModelConfig(**{**SIZES, **knobs}), seed=1)
        half = model.copy(HALF)
        words = np.arange(7)
        results = [which.next_log_probs(words)[0] for which in (model, half)]
        assert results[1].dtype == np.float32
        np.testing.assert_allclose(results[1], results[0], rtol=2e-3)
        h = np.random.default_rng(0).standard_normal((7, 12))
        losses = [which.token_losses(h.astype(which.dtype), words) for which in (model, half)]
        assert losses[1].dtype == np.float32
        np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_copy_computes_the_same_function(layer_norm):
    """Also where the epsilon of layer normalisation is left to the precision, which has one of its own."""
    config = ModelConfig(**SIZES, layer_norm=layer_norm)
    model = LanguageModel(config, seed=1)
    copy = model.copy(np.float64)
    text = np.random.default_rng(0).integers(0, V, (9, 6))
    losses = [which(text[:-1], text[1:], None, MaskStream(0))[0].item() for which in (model, copy)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert not np.shares_memory(model.flat_parameters, copy.flat_parameters)
    if layer_norm:
        assert [m.config.layer_norm_epsilon for m in (model.copy(HALF), LanguageModel(config))] == [1e-12, 0]


def test_all_functions_are_asked():
    assert len(KINDS) >= 33
    assert len(list(itertools.chain(*CASES_OF.values()))) == len(CASES)
