"""What the searches need of emissions, alphabets and lexica: finite numbers, a delimiter of words
that may follow each, and an end."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.emissions import Emission
from w2v2dist.lm.lexicon import Lexicon, token_names

FLOOR = -1e4  # the log-probability of what cannot be; sums of it stay numbers
NO_DELIMITER = "<word>"


class Searchable:
    """An alphabet whose words end with a delimiter. One without it (phones, Chinese) gets a token
    more, which is as probable as the blank in every frame: a blank may end a word there."""

    def __init__(self, alphabet: Alphabet, lexicon: Lexicon | None) -> None:
        self.given, self.alphabet, self.lexicon = alphabet, alphabet, lexicon
        if alphabet.delimiter is None:
            tokens = (*alphabet.tokens, NO_DELIMITER)
            changed = {"tokens": tokens, "delimiter": alphabet.num_tokens, "folding": None}
            self.alphabet = dataclasses.replace(alphabet, **changed)  # type: ignore[arg-type]
        assert self.alphabet.delimiter is not None
        self.delimiter = self.alphabet.delimiter
        # What the language model scores: words, or the tokens with their names in its files
        self.units = [*self.alphabet.tokens]
        if lexicon is not None:
            self.units = [*lexicon.spellings]
        for i, name in () if lexicon is not None else token_names(alphabet).items():
            self.units[i] = name

    def spellings(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The place of each word in `units`, and its tokens."""
        assert self.lexicon is not None
        for unit, several in enumerate(self.lexicon.spellings.values()):
            for spelling in several:
                yield unit, spelling
                if self.given.delimiter is None:
                    yield unit, (*spelling, self.delimiter)

    def ready(self, log_probs: Emission) -> NDArray[np.float32]:
        """Log-probabilities (T, num_tokens) for a search: special tokens but the blank cannot be.
        Of words, the last one ends for free, in a frame more: our labels have no delimiter there.
        Raises ValueError where they are not finite."""
        if not np.isfinite(log_probs).all():
            raise ValueError(
                "the log-probabilities hold NaN or infinity: the model is broken (see its "
                "training's alarms), or what was kept of it is: remove its folder of emissions"
            )
        blank, words = self.given.blank, self.lexicon is not None
        out = np.full((len(log_probs) + words, self.alphabet.num_tokens), FLOOR, np.float32)
        out[: len(log_probs), : log_probs.shape[1]] = log_probs
        out[:, sorted(self.given.special - {blank})] = FLOOR
        if words:
            if self.given.delimiter is None:
                out[:, self.delimiter] = out[:, blank]
                # flashlight's words end with the first frame of their last token: where that lasts,
                # its last frame may be the end of the word
                best = log_probs.argmax(-1)
                ends = 1 + np.flatnonzero((best[1:-1] == best[:-2]) & (best[1:-1] != best[2:]))
                likely = np.maximum(out[ends, blank], log_probs[ends].max(-1))
                out[ends, self.delimiter] = likely
            out[-1, self.delimiter] = 0
        return out

    def path(self, found: list[int], num_frames: int, num_whole: int) -> tuple[int, ...]:
        """The token of each frame in the given alphabet. Of words, what follows the last whole one,
        which ends with frame `num_whole` - 1, is the beginning of none: blank."""
        own, blank = self.given.num_tokens, self.given.blank
        said = found[:num_frames] if self.lexicon is None else found[: min(num_whole, num_frames)]
        path = [token if token < own else blank for token in said]
        return (*path, *[blank] * (num_frames - len(path)))
