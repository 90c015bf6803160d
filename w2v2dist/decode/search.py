"""Beam search over CTC emissions with a language model in it, several utterances in lockstep.

What flashlight's LexiconDecoder and LexiconFreeDecoder find (criterion CTC, no log-add, MAX
smearing, no unknown words), but the language model is asked once a frame for all hypotheses of all
utterances, and only for those that a perfect score could keep in the beam. A utterances, M
hypotheses, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.extend import RECORD, Extender, LexiconExtender, Records, TokenExtender
from w2v2dist.decode.scorer import START, Scorer
from w2v2dist.decode.trie import Trie

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """`tokens`: the id of each frame (blanks and repeats included); `words`: units of the lexicon,
    none without one, of which the last ends with frame `num_whole` - 1. `score` = am_score +
    lm_weight · lm_score + word_score · len(words)."""

    tokens: list[int]
    words: list[int]
    num_whole: int
    score: float
    am_score: float
    lm_score: float


def search(
    emissions: Sequence[Tensor],
    trie: Trie | None,
    scorer: Scorer,
    alphabet: Alphabet,
    config: BeamConfig,
    num_best: int = 1,
) -> list[list[Hypothesis]]:
    """Log-probabilities (T, V) of each utterance to its `num_best` hypotheses, the best first, or
    as many as there are. The scorer's units are the words of `trie`, or without one the alphabet's
    tokens (then word_score is not used). The result does not depend on the other utterances.

    An utterance without frames has one empty hypothesis. Where no hypothesis of the beam ends with
    a whole word, the best ones that do not are taken, as flashlight does it: `words` lacks the
    unfinished one, while `tokens` and the scores (with the best word that it could become) have it.
    Raises ValueError for numbers that are not finite, another alphabet's emissions or language
    model, and more hypotheses than the beam holds."""
    if not 1 <= num_best <= config.beam_size:
        raise ValueError(
            f"num_best is {num_best} but must be from 1 to beam_size = {config.beam_size}: the "
            "beam holds no more"
        )
    if trie is None and scorer.num_units != alphabet.num_tokens:
        raise ValueError(
            f"the language model scores {scorer.num_units} units, the alphabet has "
            f"{alphabet.num_tokens} tokens: without a lexicon both must be the same"
        )
    arrays = [_checked(e, i, alphabet) for i, e in enumerate(emissions)]
    silence = alphabet.blank if alphabet.delimiter is None else alphabet.delimiter
    sizes = (alphabet.num_tokens, scorer.num_units, alphabet.blank, config)
    extender: Extender = TokenExtender(*sizes)
    if trie is not None:
        extender = LexiconExtender(*sizes, trie, silence)
    return _Search(extender, scorer, arrays, config).run(silence, num_best)


def _checked(emissions: Tensor, place: int, alphabet: Alphabet) -> Floats:
    if emissions.ndim != 2 or emissions.shape[1] != alphabet.num_tokens:
        raise ValueError(
            f"emissions of utterance {place} have shape {tuple(emissions.shape)} but must be "
            f"(frames, {alphabet.num_tokens}): the alphabet has {alphabet.num_tokens} tokens"
        )
    array: Floats = emissions.detach().cpu().double().numpy()
    if not (finite := np.isfinite(array)).all():
        frame, token = np.argwhere(~finite)[0]
        raise ValueError(
            f"emissions of utterance {place} have {array[frame, token]} at frame {frame}, token "
            f"{token}, but must be finite log-probabilities: the model or its input is broken"
        )
    return array


@dataclass(slots=True)
class _Search:
    """One lockstep run: a frame of all utterances that have it, then the next."""

    extender: Extender
    scorer: Scorer
    emissions: list[Floats]
    config: BeamConfig
    trace: list[tuple[Ints, Ints, Ints]] = field(default_factory=list)  # parents, tokens, units

    def run(self, silence: int, num_best: int) -> list[list[Hypothesis]]:
        """See `search`."""
        num_frames = np.array([len(e) for e in self.emissions], np.int64)
        padded = np.zeros((max(num_frames, default=0), len(num_frames), self.extender.num_tokens))
        for i, array in enumerate(self.emissions):
            padded[: len(array), i] = array
        beam = np.zeros(len(num_frames), RECORD)
        beam["utterance"], beam["token"] = np.arange(len(beam)), silence
        beam["state"], beam["unit"] = START, -1
        out: list[list[Hypothesis]] = [[] for _ in num_frames]
        for frame in range(len(padded) + 1):
            ends = num_frames[beam["utterance"]] == frame
            if ends.any():
                self._finish(beam[ends], frame, num_best, out)
                beam = beam[~ends]
            if len(beam):
                beam = self._advance(beam, padded[frame])
        self.scorer.keep(np.zeros(0, np.int64))
        return out

    def _advance(self, beam: Records, emissions: Floats) -> Records:
        """The beam after a frame with log-probabilities (A, V)."""
        moves = self.extender.moves(beam, emissions)
        plain = self.extender.plain(beam, emissions, moves)
        kept = plain[self._best(plain)]
        # What is not in the beam with a perfect score of the language model need not be scored
        count = np.bincount(kept["utterance"], minlength=len(emissions))
        bar = np.full(len(emissions), -np.inf)
        np.maximum.at(bar, kept["utterance"], kept["score"])
        bar -= self.config.beam_threshold
        full = np.flatnonzero(count == self.config.beam_size)
        bar[full] = np.maximum(bar[full], kept["score"][np.cumsum(count)[full] - 1])
        scored = self.extender.scored(beam, emissions, moves, bar)
        self._add(scored, self.scorer.scores(scored["state"], scored["unit"]))
        both = np.concatenate([kept, scored])
        beam = both[self._best(both)]
        new = beam["unit"] >= 0
        beam["state"][new] = self.scorer.children(beam["state"][new], beam["unit"][new])
        self.trace.append((beam["parent"].copy(), beam["token"].copy(), beam["unit"].copy()))
        beam["place"] = np.arange(len(beam))
        self.scorer.keep(np.unique(beam["state"]))
        return beam

    def _add(self, records: Records, scores: Floats) -> None:
        if np.isnan(scores).any():
            raise ValueError(
                "the language model gave a score that is no number (nan): its weights are broken, "
                "or its precision too low; use another checkpoint, or fp32"
            )
        records["lm"] += scores
        records["score"] += self.config.lm_weight * scores

    def _best(self, records: Records) -> Ints:
        """The places of the best hypotheses: of those in the same state the best one, of these
        `beam_size` of each utterance, by utterance and falling score."""
        utterance, score = records["utterance"], records["score"]
        size = self.config.beam_size
        best = np.full(len(self.emissions), -np.inf)
        np.maximum.at(best, utterance, score)
        order = np.flatnonzero(score >= best[utterance] - self.config.beam_threshold)
        order = order[np.argsort(-score[order], kind="stable")]
        small = utterance.astype(np.min_scalar_type(len(best)))  # numpy sorts those in linear time
        order = order[np.argsort(small[order], kind="stable")]
        # Few states are there more than twice, so most need not be compared
        kept = self._distinct(records, order[self._rank(utterance[order]) < 2 * size])
        found, there = (np.bincount(utterance[o], minlength=len(best)) for o in (kept, order))
        if ((found < size) & (there > 2 * size)).any():
            kept = self._distinct(records, order)
        return kept[self._rank(utterance[kept]) < size]

    def _distinct(self, records: Records, order: Ints) -> Ints:
        """Of places in falling order of score the first of each state."""
        context, place = records["context"][order], self.extender.place(records[order])
        by_state = np.lexsort((place, context))
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(context[by_state]) != 0) | (np.diff(place[by_state]) != 0)
        return order[np.sort(by_state[first])]

    @staticmethod
    def _rank(utterance: Ints) -> Ints:
        """The place of each within its utterance, of which the numbers rise."""
        return np.arange(len(utterance)) - np.searchsorted(utterance, utterance)

    def _finish(
        self, beam: Records, frame: int, num_best: int, out: list[list[Hypothesis]]
    ) -> None:
        """The hypotheses of utterances that have no more frames."""
        whole = beam["node"] == 0
        some_whole = np.zeros(len(out), bool)
        some_whole[beam["utterance"][whole]] = True
        beam = beam[whole | ~some_whole[beam["utterance"]]]
        self._add(beam, self.scorer.finish(beam["state"]))
        beam["token"], beam["blank"] = 0, False  # as the end's, they do not tell states apart
        beam = beam[self._best(beam)]
        beam = beam[self._rank(beam["utterance"]) < num_best]
        tokens, units = np.zeros((2, frame, len(beam)), np.int64)
        places = beam["place"]
        for t in range(frame - 1, -1, -1):
            parents, tokens_t, units_t = self.trace[t]
            tokens[t], units[t], places = tokens_t[places], units_t[places], parents[places]
        for i, record in enumerate(beam):
            ends = np.flatnonzero(units[:, i] >= 0)
            words: list[int] = units[ends, i].tolist()
            whole = int(ends[-1]) + 1 if len(ends) else 0
            scores: dict[str, Any] = {
                "score": float(record["score"]),
                "am_score": float(record["am"]),
                "lm_score": float(record["lm"]),
            }
            words = words if self.extender.has_words else []
            said = tokens[:, i].tolist()
            found = Hypothesis(tokens=said, words=words, num_whole=whole, **scores)
            out[record["utterance"]].append(found)
