"""Labels to token ids and back: letters of LibriSpeech's alphabet, and TIMIT's phones."""

import itertools
import unicodedata
from collections.abc import Iterable

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # <pad> is the CTC blank
LETTERS = tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")  # the order of fairseq's dict.ltr.txt

# TIMIT's 61 symbols, or 48, to the 39 classes that are scored (Lee & Hon, 1989): the first of each
# group stands for all of it; q is deleted.
FOLDED = """aa ao, ah ax ax-h, er axr, hh hv, ih ix, l el, m em, n en nx, ng eng, sh zh, uw ux,
sil h# pau epi bcl dcl gcl pcl tcl kcl cl vcl"""
KEPT = "ae aw ay b ch d dh dx eh ey f g iy jh k ow oy p r s t th uh v w y z"
FOLD = {p: g.split()[0] for g in [*FOLDED.split(","), *KEPT.split()] for p in g.split()}
PHONES = tuple(sorted({*FOLD.values()}))


class _Tokenizer:
    """Token ids of a fixed alphabet; 0 is the CTC blank, 1 to 3 are never produced by `encode`."""

    blank_id = 0
    label: str  # the member of an utterance's labels that is encoded
    alphabet: tuple[str, ...]

    def __init__(self) -> None:
        self.tokens: tuple[str, ...] = (*SPECIAL, *self.alphabet)
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    @property
    def num_tokens(self) -> int:
        """Size of the output layer."""
        return len(self.tokens)

    def _decode(self, ids: Iterable[int], collapse: bool) -> list[str]:
        """Tokens without the special ones; `collapse` merges repeats first, as in a CTC path."""
        path = [i for i, _ in itertools.groupby(ids)] if collapse else ids
        return [self.tokens[i] for i in path if i >= len(SPECIAL)]


class LetterTokenizer(_Tokenizer):
    """32 tokens: the special ones, `|` between words, and 26 letters with the apostrophe."""

    label, alphabet = "text", LETTERS

    def encode(self, text: str) -> list[int]:
        """Text of any case to ids. Raises ValueError naming a character outside the alphabet."""
        words = "|".join(text.upper().split())
        for char in words:
            if char not in self.ids:
                raise ValueError(
                    f"label {text!r} holds {char!r}, which is not in the alphabet (A-Z, apostrophe "
                    "and space): spell it in words, or build the shards with --clean-text"
                )
        return [self.ids[char] for char in words]

    def decode(self, ids: Iterable[int], collapse: bool = True) -> str:
        """Ids to text; `collapse` for a frame-by-frame CTC path, False for labels."""
        return " ".join("".join(self._decode(ids, collapse)).replace("|", " ").split())


class PhoneTokenizer(_Tokenizer):
    """43 tokens: the special ones and TIMIT's 39 classes, into which 61 or 48 are folded."""

    label, alphabet = "phones", PHONES

    def encode(self, text: str) -> list[int]:
        """Phones separated by spaces to ids, without q. Raises ValueError naming a stranger."""
        phones = [phone for phone in text.lower().split() if phone != "q"]
        for phone in phones:
            if phone not in FOLD:
                raise ValueError(
                    f"label {text!r} holds {phone!r}, which is not a TIMIT phone: use TIMIT's 61 "
                    "symbols or their 39 classes, or set data.tokens=letters"
                )
        return [self.ids[FOLD[phone]] for phone in phones]

    def decode(self, ids: Iterable[int], collapse: bool = True) -> str:
        """Ids to phones separated by spaces; `collapse` for a CTC path, False for labels."""
        return " ".join(self._decode(ids, collapse))


Alphabet = LetterTokenizer | PhoneTokenizer


def alphabet(name: str) -> Alphabet:
    """The alphabet called "letters" or "phones". Raises ValueError for another name."""
    if name not in ("letters", "phones"):
        raise ValueError(f"data.tokens is {name!r} but must be letters or phones")
    return LetterTokenizer() if name == "letters" else PhoneTokenizer()


def clean_text(text: str) -> str:
    """Upper case without accents and punctuation; digits stay: only a person can spell them."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    kept = (c if c.isalnum() or c == "'" else " " for c in plain)
    # A quotation mark is an apostrophe outside a word: strip it, and keep the one in DON'T.
    return " ".join(word for part in "".join(kept).upper().split() if (word := part.strip("'")))
