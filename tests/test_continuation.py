"""Many texts side by side: each is what it would be alone."""

import numpy as np
import pytest

from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig
from train.continuation import Piece, generate_many, in_order, search_many
from train.corpus import Vocabulary
from train.sampling import Sampling

WORDS = Vocabulary(["the", "<eos>", "<unk>", "cat", "sees", "fish", "a", "dog", "."])
PROMPTS = [[0, 3], [], [7, 4, 6, 5, 8, 1, 0, 7, 4], [5], [0, 3, 4], [8], [4, 4, 4], [6, 5], [3], [0, 7, 4, 5]]


@pytest.fixture(scope="module")
def model():
    built = LanguageModel(ModelConfig(vocab_size=9, embedding_size=5, hidden_size=7, num_layers=2), seed=2)
    built.flat_parameters *= 6
    return built


def texts(pieces):
    """text -> its (word, log_prob), and that nothing follows its last piece."""
    found, ended = {}, set()
    for piece in pieces:
        assert piece.text not in ended
        found.setdefault(piece.text, []).extend((word, piece.log_prob) for word in piece.words)
        if piece.is_last:
            ended.add(piece.text)
    assert ended == set(found)
    return dict(sorted(found.items()))


def write(model, prompts, num_words=12, **options):
    options = {"sampling": Sampling(), "seed": 3, **options}
    return texts(generate_many(model, WORDS, prompts, num_words, **options))


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(), Sampling(0.8, top_k=3), Sampling(top_p=0.7)])
@pytest.mark.parametrize("until_eos", [False, True])
def test_a_text_is_the_same_alone_and_in_any_company(model, sampling, until_eos):
    options = {"sampling": sampling, "until_eos": until_eos}
    together = write(model, PROMPTS, **options)
    backwards = write(model, PROMPTS[::-1], **options)
    for index, prompt in enumerate(PROMPTS):
        alone = write(model, [prompt], **options)[0]
        assert alone == together[index] == backwards[len(PROMPTS) - 1 - index]  # to the last bit


def test_the_log_probs_are_the_models_own(model):
    for prompt, drawn in zip(PROMPTS, write(model, PROMPTS, sampling=Sampling(2.0, 4)).values(), strict=True):
        state = None
        for word in [WORDS.eos_id, *prompt]:
            log_probs, state = model.next_log_probs(np.array([word]), state)
        for word, log_prob in drawn:
            assert log_prob == pytest.approx(float(log_probs[0, word]), rel=1e-4, abs=1e-5)
            log_probs, state = model.next_log_probs(np.array([word]), state)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
def test_texts_on_any_number_of_rows_are_those_of_the_default(model, batch_size):
    default, other = write(model, PROMPTS), write(model, PROMPTS, batch_size=batch_size)
    assert {text: [word for word, _ in drawn] for text, drawn in default.items()} == {
        text: [word for word, _ in drawn] for text, drawn in other.items()
    }


def test_prompts_and_samples_have_luck_of_their_own():
    """Where every word is as likely as any other, only the draws tell texts apart."""
    flat = LanguageModel(ModelConfig(vocab_size=9, embedding_size=5, hidden_size=7, num_layers=1))
    flat.flat_parameters[...] = 0
    found = write(flat, [[0], [0, 0], [3], [0]], num_words=20, num_samples=3)
    assert len(found) == 12
    assert found[0] == found[9]  # the same prompt, seed and sample
    assert len({tuple(drawn) for drawn in found.values()}) == 9
    assert write(flat, [[0]], num_words=20, seed=4)[0] != found[0]


def test_a_text_ends_with_its_first_eos_or_at_its_length(model):
    lengths = []
    for drawn in write(model, PROMPTS, num_words=15, until_eos=True).values():
        words = [word for word, _ in drawn]
        assert WORDS.eos_id not in words[:-1]
        assert len(words) == 15 or words[-1] == WORDS.eos_id
        lengths.append(len(words))
    assert min(lengths) < 15
    assert {len(drawn) for drawn in write(model, PROMPTS, num_words=15).values()} == {15}


def test_unk_is_barred_unless_allowed(model):
    model.decoder_bias.data[WORDS.unk_id] += 50
    try:
        for allow_unk, expected in ((False, {False}), (True, {True})):
            drawn = write(model, PROMPTS[:2], 5, allow_unk=allow_unk)
            searched = texts(search_many(model, WORDS, PROMPTS[:2], 5, 3, allow_unk=allow_unk))
            for found in (*drawn.values(), *searched.values()):
                assert {word == WORDS.unk_id for word, _ in found} == expected
    finally:
        model.decoder_bias.data[WORDS.unk_id] -= 50


def test_a_search_gives_each_prompt_the_best_text_found_after_it(model):
    pieces = list(search_many(model, WORDS, PROMPTS, 8, 4, until_eos=True))
    assert [piece.text for piece in pieces] == list(range(len(PROMPTS)))
    for piece, prompt in zip(pieces, PROMPTS, strict=True):
        assert piece == next(search_many(model, WORDS, [prompt], 8, 4, until_eos=True))._replace(
            text=piece.text
        )


def test_pieces_are_put_in_order_as_early_as_can_be():
    given = [(1, False), (0, False), (2, True), (1, True), (0, True), (3, True)]
    source = iter([Piece(text, [at], 0.0, is_last) for at, (text, is_last) in enumerate(given)])
    ordered = in_order(source)
    assert [next(ordered).words for _ in range(1)] == [[1]]  # given second; nothing was awaited after it
    assert [piece.words[0] for piece in ordered] == [4, 0, 3, 2, 5]


@pytest.mark.parametrize("name", ["num_words", "num_samples", "batch_size"])
def test_nothing_to_write_is_refused(model, name):
    options = {"num_words": 3, "sampling": Sampling(), name: 0}
    with pytest.raises(InputError, match=f"{name} must be at least 1; got 0"):
        generate_many(model, WORDS, [[]], **options)
