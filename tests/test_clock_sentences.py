"""Sentences that tell a time: every one is understood, and no two say different times alike."""

import random

import numpy as np
import pytest

from qvae.data.clock_renderer import render_clocks
from qvae.data.clock_sentences import (
    FACES,
    HELD_OUT,
    PHRASINGS,
    face_names,
    parse_sentence,
    phrase,
    say,
    sentence_words,
    train_phrasings,
)
from qvae.data.clock_style import sample_styles
from qvae.metrics.clock_reader import read_clocks


def test_every_phrase_says_one_time_and_no_two_phrasings_are_alike():
    texts = {phrase(m, name): (m, name) for name in PHRASINGS for m in range(720)}
    assert len(texts) == 720 * len(PHRASINGS), "else a held-out pair could be seen by another name"
    for text, (minutes, _) in texts.items():
        assert parse_sentence(text) == (minutes, None), text


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("ten past ten", 610),
        ("22:10", 610),
        ("10:10", 610),
        ("a quarter to four", 225),
        ("quarter past twelve", 15),
        ("half past twelve", 30),
        ("exactly twelve", 0),
        ("0:05", 5),
        ("four o'clock", 240),
        ("twelve oh five", 5),
        ("it is twenty five to one", 35),
        ("zero minutes past four", 240),
        ("a clock that shows 4:05 am", 245),
    ],
)
def test_known_sentences(text, minutes):
    assert parse_sentence(text) == (minutes, None)
    assert parse_sentence(f"{text}, on a pale green face") == (minutes, "pale green")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "five past twenty",
        "25:10",
        "ten past ten face",
        "ten past ten, on a face",
        "ten past ten, on a mauve face",
        "ten past ten, on green face",
    ],
)
def test_what_is_no_sentence(text):
    assert parse_sentence(text) is None


def test_sentences_are_made_of_the_words_that_are_listed_and_avoid_what_is_held_out():
    rng, words, seen = random.Random(0), set(sentence_words()), set()
    for _ in range(5000):
        minutes, face = rng.randrange(720), rng.choice(FACES)
        text = say(minutes, train_phrasings(minutes), rng, face=face)
        found = parse_sentence(text)
        assert found is not None and found[0] == minutes, text
        assert found[1] in (None, face, face.rpartition(" ")[2])
        seen |= {word for word in text.replace(",", "").split() if ":" not in word}
    assert seen <= words
    assert len(words - seen) < 10, "the list holds little that is never said"
    names = list(PHRASINGS)
    for minutes in range(720):
        held_out = {names[i] for i in HELD_OUT[minutes]}
        assert len(held_out) == 2 and not held_out & set(train_phrasings(minutes))
    shares = np.bincount(HELD_OUT.ravel(), minlength=len(names)) / 1440
    assert (np.abs(shares - 1 / len(names)) < 0.03).all(), "every phrasing is tested alike"


def test_names_of_faces_are_those_that_a_picture_shows():
    styles = sample_styles(200, seed=5)
    names = face_names(styles.face)
    assert set(names) <= set(FACES) and len(set(names)) > 8
    shown = face_names(read_clocks(render_clocks(np.arange(200) * 3.0, styles)).face)
    assert np.mean([a == b for a, b in zip(names, shown, strict=True)]) > 0.95
    known = [("pale red", (1, 0.7, 0.7)), ("dark yellow", (0.2, 0.2, 0)), ("black", (0, 0, 0)),
             ("pale purple", (1, 0.8, 1)), ("dark cyan", (0, 0.2, 0.2))]  # fmt: skip
    assert face_names(np.array([rgb for _, rgb in known], float)) == [name for name, _ in known]
