"""Beam search with a Transformer language model in it (search.py), as a decoder of emissions."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import torch

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.vocabulary import UNKNOWN
from w2v2dist.decode import search
from w2v2dist.decode.beam_config import BeamConfig, Hypothesis
from w2v2dist.decode.emissions import Emission
from w2v2dist.decode.language_models import LanguageModel
from w2v2dist.decode.scorer import TransformerScorer, start_scores, unit_ids
from w2v2dist.decode.searchable import Searchable
from w2v2dist.decode.trie import Trie

AT_ONCE = {"cpu": 8, "cuda": 64}  # utterances in lockstep; what is found does not depend on it


class TransformerBeam:
    """A search over the words of the language model's lexicon, or without one over tokens. Raises
    ConfigError for a language model that knows none of them."""

    kind: Literal["transformer"] = "transformer"

    def __init__(self, alphabet: Alphabet, lm: LanguageModel, device: torch.device) -> None:
        assert lm.module is not None
        assert lm.vocabulary is not None
        self._of = Searchable(alphabet, lm.lexicon)
        self._units = self._of.units
        ids, strange = unit_ids(self._units, lm.vocabulary)
        if max(ids) <= UNKNOWN:
            what = "words of the lexicon" if lm.lexicon else "symbols of the alphabet"
            raise ConfigError(
                f"{lm.name} has none of the {what} (such as {', '.join(self._units[-3:])}): it is "
                "of another language, case or unit"
            )
        self.notes: list[str] = []
        if lm.lexicon and strange:
            self.notes.append(f"{strange:,} words of the lexicon are <unk> to {lm.name}")
        self._scorer = TransformerScorer(lm.module, ids)
        self._trie: Trie | None = None
        if lm.lexicon is not None:
            scores = start_scores(self._scorer)
            sizes = (self._of.alphabet.num_tokens, alphabet.blank)
            self._trie = Trie.build(self._of.spellings(), scores, *sizes)
        self._at_once = AT_ONCE[device.type]

    def decode(
        self, emissions: Iterable[Emission], beam: BeamConfig, num_best: int = 1
    ) -> Iterator[list[Hypothesis]]:
        """Up to `num_best` readings of each, the best first; at least one."""
        waiting = iter(emissions)
        while batch := [*itertools.islice(waiting, self._at_once)]:
            ready = [torch.from_numpy(self._of.ready(values)) for values in batch]
            arguments = (self._trie, self._scorer, self._of.alphabet, beam, num_best)
            found = search.search(ready, *arguments)
            for values, readings in zip(batch, found, strict=True):
                yield [self._read(reading, len(values)) for reading in readings]

    def close(self) -> None:
        """Nothing to let go of."""

    def _read(self, found: search.Hypothesis, num_frames: int) -> Hypothesis:
        return Hypothesis(
            path=self._of.path(found.tokens, num_frames, found.num_whole),
            words=tuple(self._units[i] for i in found.words),
            score=found.score,
            am_score=found.am_score,
            lm_score=found.lm_score,
        )
