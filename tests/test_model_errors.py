"""What the model refuses: text, states and sizes that do not fit, each in one line that says why."""

import numpy as np
import pytest
from model_examples import CONFIG, B, E, H, T, V

from autograd import DtypeError, InputError, ShapeError
from minilstm import LanguageModel, ModelConfig

IDS = np.ones((T, B), int)


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (IDS[:0], IDS[:0], ShapeError, "inputs must be (T, B) with at least one step; got (0, 3)"),
        (IDS[0], IDS[0], ShapeError, "inputs must be (T, B) with at least one step; got (3,)"),
        (IDS[None], IDS[None], ShapeError, "inputs must be (T, B) with at least one step; got (1, 5, 3)"),
        (IDS, IDS[1:], ShapeError, "targets must be (T, B) = (5, 3) as inputs are; got (4, 3)"),
        (IDS, IDS.ravel(), ShapeError, "targets must be (T, B) = (5, 3) as inputs are; got (15,)"),
        (IDS, IDS * 1.0, DtypeError, "targets must be integer word ids; got float64"),
        (IDS, IDS.astype(np.float32), DtypeError, "targets must be integer word ids; got float32"),
        (IDS, IDS > 0, DtypeError, "targets must be integer word ids; got bool"),
        (IDS * 1.0, IDS, DtypeError, "must be integer word ids; got float64"),
        (IDS.astype(np.float32), IDS, DtypeError, "must be integer word ids; got float32"),
        (
            IDS * V,
            IDS,
            InputError,
            "ids must lie in [0, 13); got ids from 13 to 13: was the text prepared with",
        ),
        (-IDS, IDS, InputError, "ids must lie in [0, 13); got ids from -1 to -1"),
        (IDS, IDS * V, InputError, "targets must lie in [-1, 13); got ids from 13 to 13"),
        (IDS, IDS * -2, InputError, "targets must lie in [-1, 13); got ids from -2 to -2"),
    ],
)
def test_text_that_does_not_fit_is_refused(inputs, targets, error, message):
    with pytest.raises(InputError) as raised:
        LanguageModel(CONFIG)(inputs, targets)
    assert type(raised.value) is error
    assert message in str(raised.value)


def state_of(*shapes, dtype=np.float32):
    return [(np.zeros(h, dtype), np.zeros(c, dtype)) for h, c in shapes]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (
            state_of(((B, H), (B, H))),
            ShapeError,
            "of shapes [(3, 6), (3, 6), (3, 4)], one per layer; got h of [(3, 6)]",
        ),
        (state_of(*[((2, H), (2, H))] * 2, ((2, E), (2, E))), ShapeError, "h of [(2, 6), (2, 6), (2, 4)]"),
        (state_of(*[((B, H), (B, H))] * 3), ShapeError, "got h of [(3, 6), (3, 6), (3, 6)]"),
        (state_of(*[((B, H), (B, E))] * 2, ((B, E), (B, E))), ShapeError, "c of [(3, 4), (3, 4), (3, 4)]"),
        ([], ShapeError, "one per layer; got h of []"),
        (
            state_of(*[((B, H), (B, H))] * 2, ((B, E), (B, E)), dtype=np.float64),
            DtypeError,
            "float32, float64",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, error, message):
    with pytest.raises(error) as raised:
        LanguageModel(CONFIG)(IDS, IDS, state)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["vocab_size", "embedding_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3"])
def test_a_size_below_one_is_refused(name, value):
    sizes = {"vocab_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 1, name: value}
    with pytest.raises(InputError) as raised:
        ModelConfig(**sizes)
    assert str(raised.value) == f"model: {name} must be a whole number of at least 1; got {value!r}"


@pytest.mark.parametrize(
    "name", [name for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")]
)
@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan"), float("inf"), "0.5"])
def test_a_dropout_outside_its_range_is_refused(name, value):
    with pytest.raises(InputError) as raised:
        ModelConfig(V, **{name: value})
    assert f"{name} must be a keep probability in (0, 1], that is a dropout in [0, 1); got {value!r}" in str(
        raised.value
    )
    ModelConfig(V, **{name: 1e-3})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder_emb_dropout", "one of rows, elements"),
        ("activation_dropout", "one of locked, per_step"),
        ("lstm_init", "one of uniform, glorot"),
        ("softmax", "one of full, sampled, adaptive"),
    ],
)
@pytest.mark.parametrize("value", ["half", "", None, 1, ["full"]])
def test_an_unknown_choice_is_refused(name, expected, value):
    with pytest.raises(InputError) as raised:
        ModelConfig(V, **{name: value})
    assert str(raised.value) == f"model: {name} must be {expected}; got {value!r}"


@pytest.mark.parametrize("name", ["activation_regularization", "temporal_activation_regularization"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", True])
def test_a_negative_penalty_is_refused(name, value):
    with pytest.raises(InputError) as raised:
        ModelConfig(V, **{name: value})
    assert str(raised.value) == f"model: {name} must be a finite number of at least 0; got {value!r}"


@pytest.mark.parametrize("name", ["tied_weights", "layer_norm", "residual"])
@pytest.mark.parametrize("value", [1, "true", None])
def test_what_is_neither_true_nor_false_is_refused(name, value):
    with pytest.raises(InputError) as raised:
        ModelConfig(V, **{name: value})
    assert str(raised.value) == f"model: {name} must be true or false; got {value!r}"


BANDS = (
    "model: adaptive_bands must be whole numbers, the first word of each band, rising, above 0 and below the "
    "13 words of the vocabulary; got "
)
SMALL = {"vocab_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 3}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"last_hidden_size": H},
            "model: tied_weights needs last_hidden_size = embedding_size = 4; got 6; make them equal, "
            "or set tied_weights = false",
        ),
        ({"last_hidden_size": -1}, "model: last_hidden_size must be a whole number of at least 0; got -1"),
        (
            {"residual": True},
            "model: residual needs embedding_size, hidden_size and last_hidden_size to be equal; got layers "
            "of 4 → 6, 6 → 6, 6 → 4; make them equal, or set residual = false",
        ),
        (
            {"residual": True, "embedding_size": H, "tied_weights": False, "last_hidden_size": 5},
            "model: residual needs embedding_size, hidden_size and last_hidden_size to be equal; got layers "
            "of 6 → 6, 6 → 6, 6 → 5; make them equal, or set residual = false",
        ),
        (
            {"softmax": "sampled", "num_samples": V + 1},
            "model: num_samples must be at most vocab_size = 13; got 14; draw fewer, or set softmax = 'full'",
        ),
        ({"num_samples": 0}, "model: num_samples must be a whole number of at least 1; got 0"),
        (
            {"softmax": "adaptive"},
            "model: softmax = 'adaptive' needs adaptive_bands, the first word of each band after the most "
            "frequent words; got []; set adaptive_bands = [2000, 10000], say",
        ),
        ({"softmax": "adaptive", "adaptive_bands": (4, 4)}, BANDS + "[4, 4]"),
        ({"softmax": "adaptive", "adaptive_bands": [9, 4]}, BANDS + "[9, 4]"),
        ({"softmax": "adaptive", "adaptive_bands": (4, V)}, BANDS + "[4, 13]"),
        (
            {"adaptive_bands": (4,)},
            "model: adaptive_bands are for softmax = 'adaptive'; got [4] with softmax = 'full'; "
            "set adaptive_bands = [], or softmax = 'adaptive'",
        ),
        (
            {"softmax": "sampled", "num_samples": 3, "adaptive_bands": (4, 9)},
            "model: adaptive_bands are for softmax = 'adaptive'; got [4, 9] with softmax = 'sampled'; "
            "set adaptive_bands = [], or softmax = 'adaptive'",
        ),
        ({"adaptive_bands": (0, 4)}, "model: adaptive_bands must be whole numbers of at least 1; got (0, 4)"),
        ({"adaptive_bands": (2.5,)}, "model: adaptive_bands must be whole numbers of at least 1; got (2.5,)"),
        ({"adaptive_bands": "abc"}, "model: adaptive_bands must be whole numbers of at least 1; got 'abc'"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused_in_one_line(knobs, message):
    with pytest.raises(InputError) as raised:
        ModelConfig(**{**SMALL, **knobs})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "knobs",
    [
        {"last_hidden_size": E},
        {"last_hidden_size": H, "tied_weights": False},
        {"residual": True, "embedding_size": H},
        {"residual": True, "num_layers": 1},
        {"softmax": "sampled", "num_samples": V},
        {"num_samples": V + 1},
        {"softmax": "adaptive", "adaptive_bands": [1, V - 1]},
        {"adaptive_bands": []},
    ],
    ids=str,
)
def test_knobs_that_go_together_are_taken(knobs):
    config = ModelConfig(**{**SMALL, **knobs})
    assert config.adaptive_bands == tuple(knobs.get("adaptive_bands", ()))
    assert hash(config) == hash(ModelConfig(**{**SMALL, **knobs})), "a list would not be frozen"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None])
def test_a_scale_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="embedding_init_scale must be a finite number above 0; got"):
        ModelConfig(V, embedding_init_scale=value)


@pytest.mark.parametrize("dtype", [np.int32, bool, complex, np.longdouble])
def test_a_model_of_another_precision_is_refused(dtype):
    with pytest.raises(DtypeError, match="model: dtype must be float16, float32 or float64; got"):
        LanguageModel(CONFIG, dtype=dtype)


def test_a_configuration_is_frozen():
    with pytest.raises(AttributeError):
        CONFIG.vocab_size = 5
