"""What a classifier reads of a text: its own words alone, whatever lies beside it in the batch."""

import numpy as np
import pytest
from model_examples import V, example

import autograd.functions as F
from autograd import evaluation_mode
from autograd.errors import InputError
from autograd.gradient_check import numerical_grad
from minilstm import MaskStream
from train.checkpoint import save_checkpoint
from train.classifier import FEATURES, Classifier, HeadConfig, load_classifier, text_features
from train.corpus import Vocabulary

LENGTHS = (3, 1, 7, 3, 5, 1, 7)
EVERY_KNOB = {
    "encoder_emb_keep_prob": 0.7,
    "encoder_emb_dropout": "elements",
    "input_weight_keep_prob": 0.8,
    "recurrent_weight_keep_prob": 0.7,
    "recurrent_keep_prob": 0.8,
    "encoder_dp_input_keep_prob": 0.7,
    "encoder_dp_output_keep_prob": 0.7,
    "encoder_last_output_keep_prob": 0.7,
}


def texts(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, length) for length in lengths]


def one_word_after_the_other(model, text):
    """The plain twin: all features of one text, read word by word."""
    outputs, state = [], None
    with evaluation_mode():
        for word in text:
            y, state = model.encode(np.array([[word]]), state)
            outputs.append(y.data[0, 0])
    h, c = state[-1]
    return {"h": h.data[0], "c": c.data[0], "mean": np.mean(outputs, axis=0), "max": np.max(outputs, axis=0)}


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"hidden_size": 4, "residual": True}], ids=str)
def test_a_batch_of_unequal_texts_gives_what_each_text_gives_alone(options):
    model = example(**options)
    with evaluation_mode():
        found = text_features(model, texts(), FEATURES).data
    for row, text in zip(found, texts(), strict=True):
        expected = one_word_after_the_other(model, text)
        np.testing.assert_allclose(row, np.concatenate([expected[name] for name in FEATURES]), rtol=1e-12)


def test_features_stand_in_the_order_asked_for():
    model = example()
    with evaluation_mode():
        alone = {name: text_features(model, texts(), (name,)).data for name in FEATURES}
        both = text_features(model, texts(), ("max", "h")).data
    np.testing.assert_array_equal(both, np.hstack([alone["max"], alone["h"]]))


@pytest.mark.parametrize("activations", ["locked", "per_step"])
def test_a_text_keeps_its_masks_when_shorter_ones_end(activations):
    """The pieces draw the masks of one window that is read whole, padding behind the texts."""
    model = example(activation_dropout=activations, **EVERY_KNOB)
    longest_first = sorted(texts(), key=len, reverse=True)
    masks = MaskStream(5, window=2)
    found = text_features(model, longest_first, ("mean", "max"), masks).data
    padded = np.zeros((7, len(longest_first)), int)
    for column, text in enumerate(longest_first):
        padded[: len(text), column] = text
    whole = model.encode(padded, None, masks)[0].data
    for column, text in enumerate(longest_first):
        own = whole[: len(text), column]
        expected = np.concatenate([own.mean(axis=0), own.max(axis=0)])
        np.testing.assert_allclose(found[column], expected, rtol=1e-12)
    again = text_features(model, longest_first, ("mean", "max"), MaskStream(5, window=3)).data
    assert not np.allclose(found, again)


def loss_of(classifier, batch, labels, weights=None):
    return classifier.loss(batch, labels, MaskStream(1), weights)


def test_the_gradient_is_right_in_every_weight():
    model = example(embedding_size=2, hidden_size=3, num_layers=2, recurrent_weight_keep_prob=0.8)
    config = HeadConfig(("a", "b", "c"), FEATURES, hidden_size=3, keep_prob=0.7)
    classifier = Classifier(model, config, seed=1)
    batch, labels, weights = texts((3, 1, 2)), np.array([2, 0, 1]), np.array([0.2, 1.0, 3.0])
    parameters = classifier.named_parameters()
    loss_of(classifier, batch, labels, weights).backward()
    assert {name.split(".")[0] for name in parameters} == {"embedding", "lstm", "head"}
    numeric = numerical_grad(
        lambda: [loss_of(classifier, batch, labels, weights).data],
        [parameter.data for parameter in parameters.values()],
        [np.ones(())],
    )
    for (name, parameter), expected in zip(parameters.items(), numeric, strict=True):
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_class_weights_weigh_each_text_by_its_class():
    classifier = Classifier(example(num_layers=1), HeadConfig(("a", "b")))
    batch, labels, weights = texts((3, 2, 4)), np.array([0, 1, 1]), np.array([3.0, 0.5])
    with evaluation_mode():
        log_probs = F.log_softmax(classifier.logits(batch)).data[np.arange(3), labels]
        loss = loss_of(classifier, batch, labels, weights).item()
    assert loss == pytest.approx(-(3 * log_probs[0] + 0.5 * log_probs[1] + 0.5 * log_probs[2]) / 3)


def test_log_probs_do_not_depend_on_the_batch_and_drop_nothing():
    model = example(num_layers=2, **EVERY_KNOB)
    classifier = Classifier(model, HeadConfig(("a", "b"), keep_prob=0.5))
    many = texts((5, 2, 9, 1, 2, 6))
    expected = classifier.log_probs(many)
    np.testing.assert_allclose(np.exp(expected).sum(axis=1), 1)
    for batch_size in (1, 4):
        np.testing.assert_allclose(classifier.log_probs(many, batch_size), expected, rtol=1e-12)


def test_the_last_layer_may_have_a_width_of_its_own():
    model = example(tied_weights=False, last_hidden_size=9)
    assert Classifier(model, HeadConfig(("a", "b"))).log_probs(texts()).shape == (len(LENGTHS), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("a",)}, "expected two classes at least; got a"),
        ({"classes": ("a", "b"), "features": ()}, "expected some of h, c, mean, max, each once; got "),
        ({"classes": ("a", "b"), "features": ("h", "h")}, "each once; got h, h"),
        ({"classes": ("a", "b"), "features": ("h", "last")}, "got h, last"),
    ],
)
def test_a_head_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        HeadConfig(**options)


WORDS = Vocabulary(["<unk>", "<eos>", *(f"w{k}" for k in range(V - 2))])


def saved(path, **changes):
    classifier = Classifier(example(dtype=np.float32), HeadConfig(("a", "b"), ("c", "max"), hidden_size=4), 3)
    facts = {**classifier.facts(), "vocabulary": WORDS.fingerprint(), **changes}
    save_checkpoint(path, classifier.arrays(), facts)
    return classifier


def test_a_checkpoint_brings_the_same_classifier_back(tmp_path):
    classifier = saved(tmp_path / "best.h5")
    loaded, _ = load_classifier(tmp_path / "best.h5", WORDS)
    assert loaded.config == classifier.config
    np.testing.assert_array_equal(loaded.log_probs(texts()), classifier.log_probs(texts()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": None}, "is no checkpoint of a classifier"),
        ({"vocabulary": "other"}, "was made with another vocabulary"),
        ({"head": {"classes": ["a", "b", "c"]}}, "must hold head.0.weight of shape"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, changes, message):
    saved(tmp_path / "best.h5", **changes)
    with pytest.raises(InputError, match=message):
        load_classifier(tmp_path / "best.h5", WORDS)
