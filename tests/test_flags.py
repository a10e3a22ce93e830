"""The command line: which layer wins, what is refused, what --resume starts from."""

import dataclasses
import re
import subprocess
import sys

import pytest

from autograd.errors import InputError
from minilstm import ModelConfig
from train.config import TrainConfig, to_toml
from train.flags import argument_parser, config_from_args, parse_setting


def write(path, text):
    path.write_text(text)
    return str(path)


def test_later_layers_win(tmp_path):
    file = write(tmp_path / "mine.toml", "[model]\nhidden_size = 11\n[train]\nwindow = 12\nseed = 13\n")
    preset = config_from_args(["--preset", "wt2-small"])[0]
    assert (preset.model["hidden_size"], preset.train.window) == (200, 35)

    config, _ = config_from_args(
        ["--preset", "wt2-small", "--config", file, "--set", "window=22", "--set", "seed=23", "--seed", "33"]
    )
    assert config.model["embedding_size"] == 200  # preset
    assert config.model["hidden_size"] == 11  # file over preset
    assert config.train.window == 22  # --set over file
    assert config.train.seed == 33  # flag over --set


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--data", "some/text.txt"], "data", "some/text.txt"),
        (["--seed", "7"], "seed", 7),
        (["--max-steps", "8"], "max_steps", 8),
        (["--max-tokens", "9"], "max_tokens", 9),
        (["--device", "cuda"], "device", "cuda"),
        (["--precision", "mixed"], "precision", "mixed"),
        (["--set", "optimizer=sgd"], "optimizer", "sgd"),
        (["--set", 'data="a = b"'], "data", "a = b"),
        (["--set", "data=a=b"], "data", "a=b"),
        (["--set", "learning_rate=2e-3"], "learning_rate", 2e-3),
        (["--set", "window = 5", "--set", "window=6"], "window", 6),
        (["--set", "schedule=step", "--set", "decay_epochs=[2, 12]"], "decay_epochs", (2, 12)),
        (["--set", "random_start=true"], "random_start", True),
    ],
)
def test_each_flag_reaches_its_field(flags, key, value):
    assert getattr(config_from_args(flags)[0].train, key) == value


def test_a_seed_of_0_is_given_too(tmp_path):
    file = write(tmp_path / "mine.toml", "[train]\nseed = 5\n")
    assert config_from_args(["--config", file, "--seed", "0"])[0].train.seed == 0


def test_the_preset_is_wt103_unless_named(tmp_path):
    assert config_from_args([])[0].train.preset == "wt103"
    assert config_from_args([])[0].model["hidden_size"] == 1024
    file = write(tmp_path / "mine.toml", "[train]\npreset = 'quickstart'\n")
    assert config_from_args(["--config", file])[0].train.data == "python-docs"
    both = config_from_args(["--config", file, "--preset", "wt2-small"])[0]
    assert (both.train.preset, both.train.data) == ("wt2-small", "wikitext-2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--preset", "wt2-smal"], "unknown preset 'wt2-smal'; the nearest known preset is 'wt2-small'"),
        (
            ["--set", "hiden_size=3"],
            "--set: unknown key 'hiden_size'; the nearest known key is 'hidden_size'",
        ),
        (["--set", "windows=3"], "--set: unknown key 'windows'; the nearest known key is 'window'"),
        (["--set", "window"], "--set: expected KEY=VALUE; got 'window'"),
        (["--set", "=3"], "--set: expected KEY=VALUE; got '=3'"),
        (["--set", "window=0"], "--set: window must be a whole number of at least 1; got 0"),
        (["--set", "window=many"], "--set: window must be a whole number of at least 1; got 'many'"),
        (["--set", "num_layers=2.5"], "--set: num_layers must be a whole number; got 2.5"),
        (["--set", "encoder_emb_keep_prob=1.5"], "encoder_emb_keep_prob"),
        (["--set", "adaptive_bands=[3,"], "adaptive_bands must be a list of whole numbers; got '[3,'"),
        (["--set", "adaptive_bands=[9, 3]"], "set adaptive_bands = [], or softmax = 'adaptive'"),
        (["--set", "softmax=adaptive", "--set", "adaptive_bands=[9, 3]"], "rising, above 0 and below the"),
        (["--set", "carry_state=no"], "carry_state must be true or false; got 'no'"),
        (["--set", "shuffle_windows=true"], "shuffle_windows needs carry_state=false"),
        (["--set", "optimizer=nt_asgd", "--set", "momentum=0.9"], "momentum belongs to optimizer 'sgd'"),
        (["--set", "l2_tied=1e-6", "--set", "tied_weights=false"], "set tied_weights=true or l2_tied=0"),
        (["--seed", "-1"], "command line: seed must be a whole number from 0"),
        (["--config", "absent.toml"], "absent.toml: cannot be read"),
        (["--resume"], "runs/wikitext-103-wt103/config.toml is not there; name the run by --run-dir"),
        (["--resume", "--run-dir", "absent"], "absent/config.toml is not there"),
    ],
)
def test_a_mistake_is_refused_in_one_line(flags, expected):
    with pytest.raises(InputError) as caught:
        config_from_args(flags)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [["--device", "gpu"], ["--seed", "x"], ["--max-step", "3"], ["--nonsense"]])
def test_a_wrong_flag_is_refused_in_one_line_that_names_the_help(flags):
    with pytest.raises(InputError, match=r"^(argument|unrecognized).*; python -m train\.wt103 --help lists"):
        config_from_args(flags)


def test_the_run_folder_has_a_default_that_all_ranks_share():
    assert str(config_from_args(["--preset", "quickstart"])[1].run_dir) == "runs/python-docs-quickstart"
    assert str(config_from_args(["--data", "books/emma.txt"])[1].run_dir) == "runs/emma-wt103"
    assert str(config_from_args(["--run-dir", "here"])[1].run_dir) == "here"


def test_resume_starts_from_what_the_run_was_started_with(tmp_path):
    start = ["--preset", "quickstart", "--set", "hidden_size=17", "--run-dir", str(tmp_path)]
    started, _ = config_from_args(start)
    (tmp_path / "config.toml").write_text(to_toml(started.with_vocab_size(99)))

    resumed, args = config_from_args(["--run-dir", str(tmp_path), "--resume"])
    assert args.resume
    assert resumed == started.with_vocab_size(99)
    assert config_from_args([*start, "--resume"])[0] == resumed
    longer, _ = config_from_args(["--run-dir", str(tmp_path), "--resume", "--max-steps", "500"])
    assert (longer.train.max_steps, longer.model) == (500, resumed.model)
    with pytest.raises(InputError, match="was started with preset 'quickstart', not 'wt103'"):
        config_from_args(["--run-dir", str(tmp_path), "--resume", "--preset", "wt103"])


def test_a_command_may_add_flags():
    parser = argument_parser("python -m other")
    parser.add_argument("--extra", type=int)
    assert config_from_args(["--extra", "4"], parser)[1].extra == 4


def test_help_names_every_key_and_loads_no_library_of_files_or_ranks():
    script = (
        "import sys\n"
        "from train.flags import config_from_args\n"
        "try: config_from_args(['--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {name for name, module in sys.modules.items() if module}\n"
        "print({'h5py', 'mpi4py', 'tqdm', 'matplotlib', 'cupy'} & loaded or 'light')\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert printed.endswith("light\n")
    for word in ("--preset", "--set", "--dry-run", "quickstart", "learning_rate", "precision"):
        assert word in printed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("window=5", ("window", 5)),
        (" data = a b ", ("data", "a b")),
        ("decay_epochs=[1, 2]", ("decay_epochs", [1, 2])),
    ],
)
def test_a_setting_is_tomls(text, expected):
    assert parse_setting(text) == expected


def test_every_knob_is_listed_with_its_default_and_its_meaning(capsys):
    with pytest.raises(SystemExit) as ended:
        config_from_args(["--knobs"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for config in (ModelConfig, TrainConfig):
        for field in dataclasses.fields(config):
            (number,) = (k for k, line in enumerate(lines) if re.match(rf"  {field.name}( = |$)", line))
            assert re.match(r"      \S{1,}", lines[number + 1]), field.name
    assert "  recurrent_weight_keep_prob = 1.0\n      elements of W_hh, drawn once per window" in printed
    assert "  carry_state = true\n      each window starts from the state" in printed
    assert "  check_ranks_every = 500\n      updates between checks" in printed
    assert "  schedule = 'fixed'\n      of the learning rate after the warm-up" in printed
    assert max(map(len, lines)) <= 100
