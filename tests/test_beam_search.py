"""Beam search against all texts that there are, tried one by one."""

import itertools

import numpy as np
import pytest

from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig
from train.beam_search import beam_search

V, END, BARRED = 4, 1, 2
PROMPT = [END, 0, 3]


def tiny_model(seed):
    model = LanguageModel(
        ModelConfig(vocab_size=V, embedding_size=3, hidden_size=4, num_layers=2), seed, dtype=np.float64
    )
    model.flat_parameters *= 8  # far from uniform predictions
    return model


def log_probs_of(model, texts):
    """log P(words | PROMPT) of each text, read word by word, side by side."""
    lengths = np.array([len(words) for words in texts])
    padded = np.array([[*words, *[0] * (lengths.max() - len(words))] for words in texts])
    totals, state = np.zeros(len(texts)), None
    for word in PROMPT:
        log_probs, state = model.next_log_probs(np.full(len(texts), word), state)
    for place in range(lengths.max()):
        found = log_probs[np.arange(len(texts)), padded[:, place]]
        totals += np.where(place < lengths, found, 0)
        log_probs, state = model.next_log_probs(padded[:, place], state)
    return totals


def all_texts(longest, end, barred):
    """Every text of `longest` words, or fewer if it ends with `end`; none has it elsewhere."""
    allowed = [word for word in range(V) if word != barred]
    for length in range(1, longest + 1):
        for words in itertools.product(allowed, repeat=length):
            ends = [place for place, word in enumerate(words, 1) if word == end]
            if (not ends and length == longest) or ends == [length]:
                yield list(words)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("end", "barred"), [(None, None), (None, BARRED), (END, None), (END, BARRED)])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
def test_with_beams_for_all_texts_the_best_of_them_is_found(seed, end, barred, length_penalty):
    model, longest = tiny_model(seed), 4
    texts = list(all_texts(longest, end, barred))
    log_probs = log_probs_of(model, texts)
    scores = log_probs / np.array([len(words) for words in texts]) ** length_penalty
    best = beam_search(model, PROMPT, longest, V ** (longest - 1), end, barred, length_penalty)
    assert best.words == texts[scores.argmax()]
    assert best.score == pytest.approx(scores.max())
    assert best.log_prob == pytest.approx(log_probs[scores.argmax()])


@pytest.mark.parametrize("seed", range(8))
def test_the_length_penalty_decides_between_short_and_long(seed):
    """The likeliest text is the shortest as often as the penalty allows."""
    lengths = [len(beam_search(tiny_model(seed), PROMPT, 5, 64, END, None, a).words) for a in (0, 1, 5)]
    assert lengths == sorted(lengths)


def test_the_penalty_test_sees_both_lengths():
    lengths = {
        len(beam_search(tiny_model(seed), PROMPT, 5, 64, END, None, a).words)
        for seed in range(8)
        for a in (0, 5)
    }
    assert len(lengths) > 1


def test_one_beam_is_greedy_search_and_more_beams_find_no_worse_a_text():
    for seed in range(6):
        model, greedy, state = tiny_model(seed), [], None
        for word in PROMPT:
            log_probs, state = model.next_log_probs(np.array([word]), state)
        for _ in range(6):
            greedy.append(int(log_probs[0].argmax()))
            log_probs, state = model.next_log_probs(np.array(greedy[-1:]), state)
        assert beam_search(model, PROMPT, 6, 1).words == greedy
        assert beam_search(model, PROMPT, 6, 4).log_prob >= log_probs_of(model, [greedy])[0] - 1e-9


def test_two_beams_beat_greedy_somewhere():
    gains = [
        beam_search(tiny_model(seed), PROMPT, 4, 64).log_prob
        - beam_search(tiny_model(seed), PROMPT, 4, 1).log_prob
        for seed in range(8)
    ]
    assert max(gains) > 0.01


def test_every_growing_text_may_end_at_any_place():
    """With one beam there is one way on, and the best place to end is found on it."""
    lengths = set()
    for seed, alpha in itertools.product(range(6), (0.0, 1.0, 3.0)):
        model = tiny_model(seed)
        way = beam_search(model, PROMPT, 6, 1, barred=END).words
        texts = [[*way[:length], END] for length in range(6)] + [way]
        scores = log_probs_of(model, texts) / np.array([len(words) for words in texts]) ** alpha
        found = beam_search(model, PROMPT, 6, 1, END, length_penalty=alpha)
        assert found.words == texts[scores.argmax()]
        lengths.add(len(found.words))
    assert len(lengths) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "num_words and num_beams must each be at least 1; got 0 and 2"),
        ((3, 0), "got 3 and 0"),
        ((3, 2, None, None, -1.0), "length_penalty must be within .0, 10.; got -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        beam_search(tiny_model(0), PROMPT, *arguments)


def test_a_diverged_model_is_refused():
    model = tiny_model(0)
    model.flat_parameters[...] = np.nan
    with pytest.raises(InputError, match="must give some word a probability"):
        beam_search(model, PROMPT, 3, 2)


def test_the_prompt_is_read_once_for_all_beams(monkeypatch):
    model, rows = tiny_model(1), []
    plain = model.next_log_probs
    monkeypatch.setattr(
        model, "next_log_probs", lambda ids, state: rows.append(len(ids)) or plain(ids, state)
    )
    beam_search(model, PROMPT, 3, 5)
    assert rows == [1, 1, 1, 5, 5]
