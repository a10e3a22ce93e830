"""Configurations: what they accept, what they refuse and in which words, and that TOML holds them whole."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograd.errors import InputError
from minilstm.config import ModelConfig
from train.config import (
    RunConfig,
    TrainConfig,
    field_kinds,
    load_preset,
    load_run_config,
    preset_names,
    read_config_file,
    run_config_of,
    to_toml,
)

PRESETS = ["quickstart", "wt103", "wt2-small"]


def test_no_key_is_both_the_models_and_trainings():
    model, train = field_kinds(ModelConfig), field_kinds(TrainConfig)
    assert not set(model) & set(train)
    assert {"hidden_size", "vocab_size"} <= set(model)
    assert {"window", "seed"} <= set(train)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("window", 0, "a whole number of at least 1; got 0"),
        ("window", 1.0, "a whole number of at least 1; got 1.0"),
        ("batch_size", True, "a whole number of at least 1; got True"),
        ("max_steps", -1, "a whole number of at least 0; got -1"),
        ("seed", 2**63, "a whole number from 0 to 2"),
        ("learning_rate", 0, "a number above 0; got 0"),
        ("learning_rate", "1e-3", "a number above 0; got '1e-3'"),
        ("learning_rate", math.nan, "a number above 0; got nan"),
        ("clip_norm", math.inf, "a number of at least 0; got inf"),
        ("weight_decay", 10**400, "a number of at least 0; got 1000"),
        ("beta2", 1.0, "a number in [0, 1); got 1.0"),
        ("optimizer", "adan", "one of adam, sgd, nt_asgd; got 'adan'"),
        ("precision", 16, "one of float32, mixed, bfloat16; got 16"),
        ("carry_state", 1, "true or false; got 1"),
        ("nonmono", 0, "a whole number of at least 1; got 0"),
        ("decay_epochs", [3, 2], "a list of rising whole numbers of at least 1; got [3, 2]"),
        ("decay_epochs", [0], "a list of rising whole numbers of at least 1; got [0]"),
        ("decay_epochs", [True, 2], "a list of rising whole numbers of at least 1; got [True, 2]"),
        ("decay_epochs", 12, "a list of rising whole numbers of at least 1; got 12"),
        ("decay_epochs", ["1"], "a list of rising whole numbers of at least 1; got ['1']"),
        ("data", "", "a text in UTF-8, not empty; got ''"),
        ("data", "caf\udce9", "a text in UTF-8, not empty"),
        ("data", 2, "a text in UTF-8, not empty; got 2"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(key, value, expected):
    with pytest.raises(InputError) as caught:
        TrainConfig(**{key: value})
    message = str(caught.value)
    assert message.startswith(f"train: {key} must be ")
    assert expected in message
    assert "\n" not in message


def test_steps_of_the_learning_rate_need_their_length():
    with pytest.raises(InputError, match="decay_steps must be at least 1"):
        TrainConfig(schedule="step")
    assert TrainConfig(schedule="step", decay_steps=10).decay_steps == 10


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"shuffle_windows": True}, "shuffle_windows needs carry_state=false"),
        ({"variable_window": True, "carry_state": False}, "variable_window needs carry_state=true"),
        (
            {"variable_window": True, "carry_state": False, "shuffle_windows": True},
            "variable_window needs carry_state=true",
        ),
        ({"momentum": 0.9}, "momentum belongs to optimizer 'sgd', not 'adam'; set momentum=0"),
        ({"momentum": 0.9, "optimizer": "nt_asgd"}, "momentum belongs to optimizer 'sgd', not 'nt_asgd'"),
        ({"decay_epochs": [2]}, "decay_epochs belong to schedule 'step', not 'fixed'"),
        ({"schedule": "step", "decay_epochs": [2], "decay_steps": 3}, "both say when to decay"),
    ],
)
def test_what_cannot_be_meant_together_is_refused_in_one_line(knobs, expected):
    with pytest.raises(InputError) as caught:
        TrainConfig(**knobs)
    assert str(caught.value).startswith("train: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_l2_on_the_tied_matrix_needs_one():
    untied = {"tied_weights": False, "last_hidden_size": 7}
    with pytest.raises(InputError, match="set tied_weights=true or l2_tied=0"):
        RunConfig(untied, TrainConfig(l2_tied=1e-6))
    assert RunConfig(untied, TrainConfig()).train.l2_tied == 0


def test_a_list_of_whole_numbers_is_held_by_toml_and_json(tmp_path):
    bands = {"softmax": "adaptive", "adaptive_bands": [4, 9]}
    config = RunConfig(bands, TrainConfig(schedule="step", decay_epochs=(1, 3)))
    assert config.model_config(10).adaptive_bands == (4, 9)
    assert config.train.decay_epochs == (1, 3)
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config))
    assert "adaptive_bands = [4, 9]\n" in path.read_text()
    assert load_run_config(path) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    with pytest.raises(InputError, match=r"adaptive_bands must be a list of whole numbers; got \[1.5\]"):
        RunConfig({"adaptive_bands": [1.5]}, TrainConfig())


def test_a_whole_number_is_taken_for_a_float_and_becomes_one():
    config = TrainConfig(learning_rate=1)
    assert type(config.learning_rate) is float


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole(name):
    config = run_config_of(load_preset(name))
    assert config.model_config(vocab_size=1000).vocab_size == 1000
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_presets_are_found():
    assert set(PRESETS) <= set(preset_names())


def test_wt103_is_the_size_of_the_model_card():
    model = run_config_of(load_preset("wt103")).model_config(vocab_size=267_735)
    assert model.num_parameters() == 123_871_239


def test_wt2_small_is_the_protocol_it_is_compared_by():
    config = run_config_of(load_preset("wt2-small"))
    model = config.model_config(vocab_size=33_278)
    assert (model.num_layers, model.hidden_size, model.embedding_size) == (2, 200, 200)
    kept = (
        model.encoder_dp_input_keep_prob,
        model.encoder_last_input_keep_prob,
        model.encoder_last_output_keep_prob,
    )
    assert kept == (0.8, 0.8, 0.8)
    train = config.train
    assert (train.batch_size, train.window, train.clip_norm) == (20, 35, 0.25)
    assert (train.optimizer, train.learning_rate, train.schedule) == ("adam", 1e-3, "fixed")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(
        InputError, match="unknown preset 'quikstart'; the nearest known preset is 'quickstart'"
    ):
        load_preset("quikstart")


def texts(**limits):
    return st.text(st.characters(exclude_categories=["Cs"]), **limits)


@given(
    data=texts(min_size=1).filter(str.strip),
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**63 - 1),
    keep=st.floats(0, 1, exclude_min=True),
    vocab_size=st.none() | st.integers(1, 2**31 - 1),
)
def test_toml_holds_a_configuration_whole(tmp_path_factory, data, learning_rate, seed, keep, vocab_size):
    model = {"encoder_emb_keep_prob": keep} | ({} if vocab_size is None else {"vocab_size": vocab_size})
    config = RunConfig(model, TrainConfig(data=data, learning_rate=learning_rate, seed=seed))
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert load_run_config(path) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_saved_configuration_holds_the_defaults_too():
    sections = RunConfig({}, TrainConfig()).to_dict()
    assert set(sections["model"]) == set(field_kinds(ModelConfig)) - {"vocab_size"}
    assert set(sections["train"]) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_vocabulary_may_come_later_but_not_change():
    config = RunConfig({"hidden_size": 7}, TrainConfig())
    with pytest.raises(InputError, match="vocab_size is unknown"):
        config.model_config()
    filled = config.with_vocab_size(50)
    assert filled.model_config() == filled.model_config(50) == ModelConfig(vocab_size=50, hidden_size=7)
    with pytest.raises(InputError, match="50 as configured, but the data has 51"):
        filled.model_config(51)


def test_what_the_model_refuses_is_refused_before_the_data_is_known():
    with pytest.raises(InputError, match="num_layers"):
        RunConfig({"num_layers": 0}, TrainConfig())
    with pytest.raises(InputError, match="encoder_emb_keep_prob"):
        RunConfig({"encoder_emb_keep_prob": 0.0}, TrainConfig())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[modle]\nhidden_size = 3", "unknown section [modle]"),
        ("hidden_size = 3", "hidden_size stands outside [model] and [train]"),
        ("model = 3", "model must be a section"),
        (
            "[model]\nhiden_size = 3",
            "unknown key 'hiden_size' in [model]; the nearest known key is 'hidden_size'",
        ),
        ("[train]\nwindow = '35'", "window must be a whole number of at least 1; got '35'"),
        ("[train]\nwindow = 2020-01-01", "window must be a whole number"),
        ("[train]\nwindow =", "is not a TOML file"),
        ("[train]\nx = " + "[" * 5000, "is not a TOML file"),
    ],
)
def test_a_file_is_refused_in_one_line_that_names_it(tmp_path, text, expected):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_config_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_what_is_no_file_of_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read .no such file or directory."):
        read_config_file(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="cannot be read .is a directory"):
        read_config_file(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a TOML file"):
        read_config_file(tmp_path / "binary.toml")
