"""Beam search with an n-gram: flashlight's decoders, which torchaudio's ctc_decoder wraps, with the
scores and the path that it hides. One trie and one language model serve every weight and every
process."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flashlight.lib.text import decoder as flashlight
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.beam_config import BeamConfig, Hypothesis
from w2v2dist.decode.emissions import Emission
from w2v2dist.decode.forked import ForkedPool
from w2v2dist.decode.searchable import Searchable
from w2v2dist.lm.lexicon import Lexicon

UNKNOWN = "<unk>"
Job = tuple[Emission, BeamConfig, int]


class NgramBeam:
    """A search over the words of `lexicon` with an n-gram of words, or with None over tokens and an
    n-gram of these. `lm` is a file of KenLM (ARPA or binary); None: no language model. Log
    probabilities of n-grams are to the base of 10, as in the values of the paper. Raises ValueError
    for a language model that does not open, or has none of the words."""

    kind: Literal["ngram"] = "ngram"

    def __init__(
        self, alphabet: Alphabet, lm: Path | None, lexicon: Lexicon | None, num_workers: int = 0
    ) -> None:
        self._of = Searchable(alphabet, lexicon)
        self._units = self._of.units
        known = Dictionary()
        for unit in self._units:
            known.add_entry(unit)
        if UNKNOWN not in self._units:
            known.add_entry(UNKNOWN)
        self._unknown = known.get_index(UNKNOWN)
        self._lm = flashlight.ZeroLM() if lm is None else _open(lm, known)
        self.notes: list[str] = []
        self._scores = self._check(lm)
        self._made: tuple[BeamConfig, Any] | None = None  # the search of these settings
        self._pool = ForkedPool(self._one, num_workers)

    def decode(
        self, emissions: Iterable[Emission], beam: BeamConfig, num_best: int = 1
    ) -> Iterator[list[Hypothesis]]:
        """Up to `num_best` readings of each, the best first; at least one."""
        _ = self._trie  # before the processes are forked
        yield from self._pool.map((values, beam, num_best) for values in emissions)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def score(self, words: Iterable[str]) -> float:
        """log10 of a sentence, with its end."""
        places = {unit: i for i, unit in enumerate(self._units)}
        state, total = self._lm.start(False), 0.0
        for word in words:
            state, score = self._lm.score(state, places.get(word, self._unknown))
            total += score
        return total + float(self._lm.finish(state)[1])

    def _check(self, lm: Path | None) -> list[float]:
        """The score of each unit at the start of a sentence."""
        start = self._lm.start(False)
        scores = [float(self._lm.score(start, i)[1]) for i in range(len(self._units))]
        unknown = float(self._lm.score(start, self._unknown)[1])
        silent = set() if self._of.lexicon else self._of.given.special
        spoken = [s for i, s in enumerate(scores) if i not in silent]
        strange = sum(abs(score - unknown) < 1e-6 for score in spoken) if lm is not None else 0
        if strange and self._of.lexicon:
            self.notes.append(f"{strange:,} words of the lexicon are <unk> to {lm}")
        if lm is not None and strange == len(spoken):
            what = "words of the lexicon" if self._of.lexicon else "symbols of the alphabet"
            raise ValueError(
                f"{lm} has none of the {what} (such as {', '.join(self._units[-3:])}): it is of "
                "another language, case or unit. Make one with `w2v2dist lm text` and `lm ngram`"
            )
        return scores

    @cached_property
    def _trie(self) -> Any:
        """The spellings, with the best score below each node; None without a lexicon."""
        if self._of.lexicon is None:
            return None
        trie = flashlight.Trie(self._of.alphabet.num_tokens, self._of.delimiter)
        for unit, spelling in self._of.spellings():
            trie.insert([*spelling], unit, self._scores[unit])
        trie.smear(flashlight.SmearingMode.MAX)
        return trie

    def _search(self, beam: BeamConfig) -> Any:
        """A decoder with these weights."""
        common = {
            "beam_size": beam.beam_size,
            "beam_size_token": min(beam.beam_size_token, self._of.alphabet.num_tokens),
            "beam_threshold": beam.beam_threshold,
            "lm_weight": beam.lm_weight,
            "sil_score": 0.0,
            "log_add": False,
            "criterion_type": flashlight.CriterionType.CTC,
        }
        ends = (self._of.delimiter, self._of.given.blank)
        if self._trie is None:
            options = flashlight.LexiconFreeDecoderOptions(**common)
            return flashlight.LexiconFreeDecoder(options, self._lm, *ends, [])
        scores = {"word_score": beam.word_score, "unk_score": -np.inf}
        options = flashlight.LexiconDecoderOptions(**common, **scores)
        unknown, of_tokens = self._unknown, False
        return flashlight.LexiconDecoder(
            options, self._trie, self._lm, *ends, unknown, [], of_tokens
        )

    def _one(self, job: Job) -> list[Hypothesis]:
        """The best readings of one utterance; runs in a worker."""
        values, beam, num_best = job
        ready = self._of.ready(values)
        num_frames, width = ready.shape
        if self._made is None or self._made[0] != beam:
            self._made = beam, self._search(beam)
        found = self._made[1].decode(ready.ctypes.data, num_frames, width)
        return [self._read(result, len(values)) for result in found[:num_best]]

    def _read(self, result: Any, num_frames: int) -> Hypothesis:
        # An entry more stands before the frames
        tokens, units = [*result.tokens][1:], [*result.words][1:]
        ends = [frame for frame, unit in enumerate(units) if unit >= 0]
        words = [self._units[units[frame]] for frame in ends]
        return Hypothesis(
            path=self._of.path(tokens, num_frames, ends[-1] + 1 if ends else 0),
            words=() if self._of.lexicon is None else tuple(words),
            score=float(result.score),
            am_score=float(result.emittingModelScore),
            lm_score=float(result.lmScore),
        )


def _open(path: Path, known: Any) -> Any:
    """KenLM's model of a file, with the ids of a dictionary. Raises ValueError."""
    with _quiet():
        try:
            return KenLM(str(path), known)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
    reason = re.sub(r"^.* threw \w+\. ?", "", reason)  # without KenLM's sources
    raise ValueError(
        f"{path} cannot be opened as an n-gram of KenLM (ARPA or binary, of order 6 at most): "
        f"{reason}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a C library prints to the standard error is not shown."""
    with open(os.devnull, "w") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
