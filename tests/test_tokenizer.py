"""Raw text becomes the words of a vocabulary, in the form that the vocabulary knows."""

import numpy as np
import pytest

from train.corpus import Vocabulary
from train.tokenizer import Tokenizer


def vocabulary(words):
    return Vocabulary(["<unk>", "<eos>", *words.split()])


WIKITEXT = vocabulary(
    "the The I a didn doesn 't 's film well known @-@ @,@ @.@ 1 000 3 5 . , ! ... - U.S. great "
    'Paris was " ( ) ? it'
)
PYTHON_DOCS = vocabulary("don't it's well - known 1 , 000 3 . 5 the t")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The film was great.", "The film was great ."),
        ("THE film", "the film"),
        ("i was", "I was"),
        ("PARIS", "Paris"),
        ("it didn't", "it didn 't"),
        ("It doesn’t", "it doesn 't"),
        ("film's", "film 's"),
        ("didn 't", "didn 't"),
        ("a well-known film", "a well @-@ known film"),
        ("a well @-@ known film", "a well @-@ known film"),
        ("great - film", "great - film"),
        ("1,000 (3.5)", "1 @,@ 000 ( 3 @.@ 5 )"),
        ("3.", "3 ."),
        ("the U.S. film", "the U.S. film"),
        ("was it great?!", "was it great ? !"),
        ("great!!!", "great ! ! !"),
        ("great... the", "great ... the"),
        ("“great”", '" great "'),
        ("'great'", "' great '"),
        ("a &quot;film&quot;", 'a " film "'),
        ("a<br /><br />film<BR>a", "a <eos> film <eos> a"),
        ("a\n\n film \n", "a <eos> film"),
        ("the <unk> film", "the <unk> film"),
        ("Zebra-like", "Zebra @-@ like"),
        ("été", "été"),
        ("", ""),
        (" \t<br/>\n ", ""),
    ],
)
def test_wikitext_words(text, expected):
    assert Tokenizer(WIKITEXT).words(text) == expected.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't", "don't"),
        ("Don't", "don't"),
        ("can't", "can ' t"),
        ("well-known", "well - known"),
        ("1,000", "1 , 000"),
        ("THE 3.5", "the 3 . 5"),
    ],
)
def test_words_of_another_vocabulary(text, expected):
    assert Tokenizer(PYTHON_DOCS).words(text) == expected.split()


def test_text_of_the_run_stays_as_it_is():
    text = "The film didn 't 1 @,@ 000 well @-@ known ( U.S. ) ."
    assert Tokenizer(WIKITEXT).words(text) == text.split()


def test_unknown_words_become_unk_and_are_counted():
    ids, unknown = Tokenizer(WIKITEXT).encode("The zebra was a quagga.")
    assert " ".join(WIKITEXT.words[k] for k in ids) == "The <unk> was a <unk> ."
    assert (unknown, ids.dtype) == (2, np.int32)


def test_a_word_met_again_is_cut_the_same_way():
    tokenizer = Tokenizer(WIKITEXT)
    assert tokenizer.words("didn't well-known didn't") == tokenizer.words("didn't well-known") + [
        "didn",
        "'t",
    ]
