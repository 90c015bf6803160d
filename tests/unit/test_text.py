"""Letters and phones: ids, CTC collapse, and errors that name the stranger."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.text import clean_text

# TIMIT's 61 symbols, and the 39 classes of Lee & Hon with all closures in "sil"
TIMIT_61 = (
    "aa ae ah ao aw ax ax-h axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h# hh hv "
    "ih ix iy jh k kcl l m n ng nx ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh"
)
LEE_HON_39 = (
    "aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh sil t th uh uw "
    "v w y z"
)


def test_letters_have_the_published_order() -> None:
    letters = alphabet("letters")
    assert letters.tokens[:8] == ("<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A")
    assert letters.num_tokens == 32
    assert letters.blank == 0
    assert letters.encode("eat  at") == [5, 7, 6, 4, 7, 6]


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ", max_size=60))
def test_letters_round_trip(text: str) -> None:
    letters = alphabet("letters")
    words = " ".join(text.split())
    ids = letters.encode(text)
    assert letters.decode(ids, collapse=False) == words
    # the CTC path that says each token twice, with a blank between tokens
    path = [i for token in ids for i in (token, token, letters.blank)]
    assert letters.decode(path) == words


def test_collapse_needs_a_blank_between_equal_letters() -> None:
    letters = alphabet("letters")
    e = letters.encode("E")[0]
    assert letters.decode([e, e, 0, 0]) == "E"
    assert letters.decode([e, 0, e]) == "EE"
    assert letters.decode([4, 1, e, 2, 4, 4, 0, 4, e, 3]) == "E E"


@pytest.mark.parametrize("char", ["1", "É", "%"])
def test_letters_name_a_character_outside_the_alphabet(char: str) -> None:
    with pytest.raises(ValueError, match=rf"its label holds '{char}'.*, which is not in the alpha"):
        alphabet("letters").encode(f"A{char}")


def test_61_phones_fold_into_39() -> None:
    phones = alphabet("phones")
    folded = phones.decode(phones.encode(TIMIT_61), collapse=False).split()
    assert len(folded) == 60  # all but q
    assert sorted(set(folded)) == LEE_HON_39.split()
    assert phones.encode(LEE_HON_39) == sorted(phones.encode(LEE_HON_39))
    assert phones.num_tokens == 43
    expected = "sil sh iy hh ae sil jh ih sh er ah sil"
    assert (
        phones.decode(phones.encode("h# sh iy hv ae dcl jh ix zh axr ax-h q pau"), False)
        == expected
    )


def test_phones_name_a_stranger() -> None:
    with pytest.raises(
        ValueError, match=r"holds 'xx', which is not in the alphabet: use TIMIT's 61"
    ):
        alphabet("phones").encode("aa xx")


def test_tokenizer_by_name() -> None:
    assert alphabet("letters").num_tokens == 32
    assert alphabet("phones").num_tokens == 43
    with pytest.raises(ValueError, match=r"tokens is 'words' but must be letters or phones"):
        alphabet("words")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Don’t ask me, to-day!", "DON'T ASK ME TO DAY"),
        ("Ça va, 'naïve' café?", "CA VA NAIVE CAFE"),
        ("  ", ""),
        ("Room 12", "ROOM 12"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
