"""A prompt is a prompt, and the same seed writes the same text."""

import io
import json
import sys

import numpy as np
import pytest
from mpi import kill, run_ranks, start_ranks
from tiny import train_tiny, write_text

from autograd import evaluation_mode
from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig
from train.continuation import generate_many
from train.corpus import Vocabulary
from train.generate import as_text, generate, main, read_prompt
from train.run_folder import load_trained
from train.sampling import Sampling

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
        options = {"num_samples": 3000, "allow_unk": True, "batch_size": 500}
        drawn = generate_many(model, WORDS, [[]], 1, Sampling(temperature), **options)
        first = [word for piece in drawn for word in piece.words]
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


def test_the_cuts_reach_the_draws(model):
    greedy = list(generate(model, WORDS, [0], 20, temperature=0))
    assert list(generate(model, WORDS, [0], 20, top_k=1)) == greedy
    assert list(generate(model, WORDS, [0], 20, top_p=1e-9)) == greedy
    assert list(generate(model, WORDS, [0], 20)) != greedy


def test_a_prompt_is_read_as_the_training_text_was():
    prompt = read_prompt("the  cat\tsees\nzebra\u00a0fish fish\n", WORDS)
    assert prompt.words == ["the", "cat", "sees", "<eos>", "zebra\u00a0fish", "fish", "<eos>"]
    assert prompt.ids == [0, 3, 4, 1, 2, 5, 1]
    assert prompt.unknown == ["zebra\u00a0fish"]
    assert read_prompt("", WORDS).ids == []
    assert read_prompt("\n", WORDS).ids == [1]
    assert read_prompt("<unk>", WORDS).unknown == []


@pytest.mark.parametrize("text", ["zebra", "zebra\nlion", "\nzebra"])
def test_the_end_of_a_line_is_nothing_known(text):
    with pytest.raises(InputError, match="here: the model knows none of its words .zebra"):
        read_prompt(text, WORDS, "here")


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
    result = run_ranks(1, "train.generate", str(run), "--prompt", "the cat", "--prompt", "xylophone zebra")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: --prompt: the model knows none of its words (xylophone zebra)" in result.stderr


def command(capsys, *arguments):
    """(standard output, standard error) of the command, run here."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def test_words_are_printed_as_they_come(run):
    """Far more words than could be written before the first are read."""
    process = start_ranks(1, "train.generate", str(run), "--words", "10000000")
    assert process.stdout is not None
    try:
        assert len(process.stdout.read(200)) == 200
        assert process.poll() is None
    finally:
        kill(process)
        process.communicate()


def test_many_texts_are_printed_in_order_with_their_numbers(run, capsys):
    prompts = ["--prompt", "the cat zebra", "--prompt", "the dog hears"]
    together, errors = command(capsys, run, *prompts, "--samples", 2, "--words", 9)
    assert errors == "prompt 1: not in the vocabulary, read as <unk>: zebra\n"
    parts = [part.partition(" ---\n")[::2] for part in together.split("--- ")[1:]]
    assert [number for number, _ in parts] == ["1/4", "2/4", "3/4", "4/4"]
    assert [text.split()[1] for _, text in parts] == ["cat", "cat", "dog", "dog"]
    assert len({text for _, text in parts}) == 4
    alone, _ = command(capsys, run, "--prompt", "the dog hears", "--words", 9)
    assert parts[2][1] == alone
    assert alone.endswith("\n")
    assert not alone.endswith("\n\n")


@pytest.mark.parametrize("source", ["file", "-"])
def test_prompts_come_from_a_file_or_from_standard_input(run, tmp_path, capsys, monkeypatch, source):
    text = b"the bird\r\n\n   \nrain fell on zebra ."
    file = tmp_path / "prompts.txt"
    file.write_bytes(text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    name = str(file) if source == "file" else "-"
    printed, errors = command(capsys, run, "--prompt", "the cat", "--prompts", name, "--json", "--words", 3)
    texts = json.loads(printed)["texts"]
    assert [text["prompt"] for text in texts] == [
        ["the", "cat"],
        ["the", "bird"],
        ["rain", "fell", "on", "zebra", "."],
    ]
    assert errors == f"{name}, line 4: not in the vocabulary, read as <unk>: fell on zebra\n"


def test_json_tells_every_text_and_its_probability(run, capsys):
    arguments = ["--prompt", "the cat", "--prompt", "zebra fish", "--samples", 2, "--words", 7, "--top-k", 5]
    told = json.loads(command(capsys, run, *arguments, "--json").out)
    assert (told["run"], told["step"]) == (str(run), 60)
    assert [(text["prompt"][0], text["sample"]) for text in told["texts"]] == [
        ("the", 0),
        ("the", 1),
        ("zebra", 0),
        ("zebra", 1),
    ]
    assert [text["unknown"] for text in told["texts"]] == [[], [], ["zebra"], ["zebra"]]
    model, _, vocabulary, _ = load_trained(run)
    for text in told["texts"]:
        assert len(text["words"]) == 7
        assert text["text"].replace("\n", " <eos> ").split() == text["prompt"] + text["words"]
        ids = vocabulary.encode(["<eos>", *text["prompt"], *text["words"]])[0]
        targets = ids[1:].copy()
        targets[: len(text["prompt"])] = -1
        with evaluation_mode():
            loss = model(ids[:-1, None], targets[:, None])[0].item()
        assert text["log_prob"] == pytest.approx(-7 * loss, rel=1e-4)


def test_beams_find_what_is_at_least_as_likely_as_greedy_words(run, capsys):
    options = ["--prompt", "the cat", "--prompt", "the dog", "--words", 5, "--json"]
    greedy = json.loads(command(capsys, run, *options, "--greedy").out)["texts"]
    beams = json.loads(command(capsys, run, *options, "--num-beams", 14).out)["texts"]
    for one, other in zip(greedy, beams, strict=True):
        assert other["log_prob"] >= one["log_prob"] - 1e-4
        assert other["prompt"] == one["prompt"]
    zero = command(capsys, run, *options, "--temperature", 0).out
    assert json.loads(zero)["texts"] == greedy


def test_until_eos_a_text_is_a_line(run, capsys):
    """The made-up grammar has lines of seven words: a full stop at their end, then <eos>."""
    printed, _ = command(capsys, run, "--prompt", "the cat", "--until-eos", "--num-beams", 8, "--words", 30)
    assert printed.endswith(" . \n")
    assert printed.count("\n") == 1
    assert 4 <= len(printed.split()) <= 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--words", "0"], "--words: must be at least 1; got 0"),
        (["--samples", "0"], "--samples: must be at least 1; got 0"),
        (["--num-beams", "-2"], "--num-beams: must be at least 1; got -2"),
        (["--batch-size", "0"], "--batch-size: must be at least 1; got 0"),
        (["--top-k", "0"], "--top-k: must be at least 1; got 0"),
        (["--seed", "-1"], "--seed: must be at least 0; got -1"),
        (["--temperature", "-1"], "temperature must be a number of at least 0; got -1"),
        (["--top-p", "1.5"], "top_p must be a probability in (0, 1]; got 1.5"),
        (["--length-penalty", "1"], "--length-penalty: is of beam search; add --num-beams K"),
        (
            ["--num-beams", "2", "--top-k", "3"],
            "--num-beams: searches for one text and draws none; leave --top-k out",
        ),
        (["--num-beams", "2", "--samples", "3"], "leave --samples out"),
        (
            ["--greedy", "--top-p", "0.5"],
            "--greedy: takes the likeliest word each time; leave --top-p out",
        ),
        (["--greedy", "--temperature", "0.5"], "leave --temperature out"),
        (["--greedy", "--samples", "2"], "leave --samples out"),
        (["--greedy", "--seed", "2"], "leave --seed out"),
        (["--temperature", "0", "--top-k", "2"], "--temperature 0: takes the likeliest word each time"),
        (["--num-beams", "2", "--seed", "0"], "--num-beams: searches for one text and draws none"),
        (["--num-beams", "2", "--batch-size", "4"], "one text at a time; leave --batch-size out"),
        (["--num-beams", "2", "--length-penalty", "1"], "--length-penalty: acts with --until-eos alone"),
        (["--batch-size", "1000000000000"], "--batch-size: must be at most 65,536; got 1000000000000"),
        (["--num-beams", "1000000000000"], "the words of the vocabulary; got 1000000000000"),
        (
            ["--temperature", "0", "--samples", "2"],
            "--samples: with --temperature 0 all of them are the same",
        ),
        (["--prompts", "gone.txt"], "gone.txt: cannot be read (no such file or directory)"),
        (["--prompts", "."], ".: cannot be read (is a directory)"),
        (["--prompt", "the \udcff"], "--prompt: must be UTF-8"),
        (
            ["--num-beams", "2", "--until-eos", "--length-penalty", "-1"],
            "length_penalty must be within [0, 10]; got -1",
        ),
    ],
)
def test_bad_flags_are_refused_before_anything_is_printed(run, capsys, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        main([str(run), *flags])
    assert message in str(raised.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n  \n", "prompts.txt: must hold one prompt a line; it holds none"),
        (b"the cat\n\nzebra lion\n", "prompts.txt, line 3: the model knows none of its words (zebra lion)"),
        (b"the \xff\n", "prompts.txt: is not UTF-8 text"),
    ],
)
def test_bad_files_of_prompts_are_refused(run, capsys, tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError) as raised:
        main([str(run), "--prompts", str(tmp_path / "prompts.txt")])
    assert message in str(raised.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("penalty", ["10.5", "inf", "nan", "1e308"])
def test_a_penalty_out_of_range_is_told_before_the_model_is_loaded(penalty):
    with pytest.raises(InputError, match="length_penalty must be within .0, 10.; got "):
        main(["no such run", "--num-beams", "2", "--until-eos", "--length-penalty", penalty])


def test_of_many_ranks_the_root_alone_writes(run):
    result = run_ranks(2, "train.generate", str(run), "--words", "5", "--json")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["texts"]) == 1


def test_texts_are_made_up_as_they_are_written_and_not_before(model):
    pieces = generate_many(model, WORDS, [[0], [3]], 2, Sampling(), num_samples=10**15)
    assert [next(pieces).text for _ in range(8)] == list(range(8))


def test_more_samples_than_memory_holds_begin_at_once(run):
    process = start_ranks(1, "train.generate", str(run), "--words", "2", "--samples", "10000000000000")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "--- 1/10000000000000 ---\n"
    finally:
        kill(process)
        process.communicate()
