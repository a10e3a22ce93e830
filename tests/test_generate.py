"""A prompt is a prompt, and the same seed writes the same text."""

import numpy as np
import pytest
from mpi import run_ranks
from tiny import train_tiny, write_text

from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig
from train.corpus import Vocabulary
from train.generate import as_text, generate

WORDS = Vocabulary(["the", "<eos>", "<unk>", "cat", "sees", "fish"])


@pytest.fixture(scope="module")
def model():
    built = LanguageModel(ModelConfig(vocab_size=6, embedding_size=5, hidden_size=7, num_layers=2), seed=2)
    built.flat_parameters *= 8
    return built


def test_greedy_follows_the_likeliest_word_after_eos_and_the_whole_prompt(model):
    prompt, expected, state = [0, 3, 4], [], None
    for word in [1, *prompt]:
        log_probs, state = model.next_log_probs(np.array([word]), state)
    for _ in range(5):
        log_probs[0, 2] = -np.inf
        expected.append(int(log_probs[0].argmax()))
        log_probs, state = model.next_log_probs(np.array(expected[-1:]), state)
    assert list(generate(model, WORDS, prompt, 5, temperature=0)) == expected


def test_the_order_of_the_prompt_matters(model):
    texts = [list(generate(model, WORDS, prompt, 20, seed=1)) for prompt in ([0, 3, 4], [4, 3, 0])]
    assert texts[0] != texts[1]


def test_the_same_seed_gives_the_same_text_and_another_one_another(model):
    texts = [list(generate(model, WORDS, [], 30, seed=seed)) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_distribution_sharpened_by_temperature(model):
    log_probs, _ = model.next_log_probs(np.array([WORDS.eos_id]))
    for temperature in (0.5, 1.0):
        expected = np.exp(log_probs[0] / temperature)
        expected /= expected.sum()
        first = [
            next(generate(model, WORDS, [], 1, temperature, seed=seed, allow_unk=True))
            for seed in range(3000)
        ]
        found = np.bincount(first, minlength=6) / len(first)
        np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(3000))


def test_unk_is_barred_unless_allowed(model):
    model.decoder_bias.data[2] += 50
    try:
        assert 2 not in list(generate(model, WORDS, [], 50))
        assert 2 in list(generate(model, WORDS, [], 5, allow_unk=True))
    finally:
        model.decoder_bias.data[2] -= 50


def test_a_negative_temperature_is_refused(model):
    with pytest.raises(InputError, match="temperature must be a number of at least 0; got -1"):
        next(generate(model, WORDS, [], 1, temperature=-1))


def test_eos_ends_a_line():
    assert "".join(map(as_text, ["a", "b", "<eos>", "c"])) == "a b \nc "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    train_tiny(1, write_text(folder / "text.txt"), folder / "run", "--max-steps", "60")
    return folder / "run"


def test_the_command_goes_on_from_the_prompt_and_needs_the_run_folder_alone(run):
    arguments = [str(run), "--prompt", "the cat zebra", "--words", "12", "--temperature", "0.5"]
    result = run_ranks(1, "train.generate", *arguments, env={"MINILSTM_DATA": "nowhere"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the cat zebra ")
    assert len(result.stdout.split()) <= 3 + 12
    assert result.stderr == "not in the vocabulary, read as <unk>: zebra\n"


def test_a_prompt_with_nothing_known_in_it_is_refused(run):
    result = run_ranks(1, "train.generate", str(run), "--prompt", "xylophone zebra")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: --prompt: the model knows none of its words (xylophone zebra)" in result.stderr
