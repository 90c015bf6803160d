"""The decoders, made of a few settings: greedy, beams with a language model, rescoring."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from w2v2dist.config import ConfigError, at_least
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.beam_config import BeamConfig, Hypothesis
from w2v2dist.decode.emissions import Emission
from w2v2dist.decode.language_models import (
    NO_LEXICON,
    LanguageModel,
    content,
    is_over_tokens,
    open_lm,
    symbols_of,
    transformer_scores,
)
from w2v2dist.decode.ngram_beam import NgramBeam
from w2v2dist.decode.transformer_beam import TransformerBeam


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingConfig:
    """How emissions become text."""

    decoder: Literal["greedy", "beam", "rescore"] = "greedy"
    lm: str | None = (
        None  # of the search: a KenLM file, or a Transformer that open_language_model opens
    )
    lexicon: str | None = None  # a file; none: tokens instead of words; null: of the LM's words
    beam: BeamConfig = field(default_factory=BeamConfig)
    num_best: int = 1  # readings of an utterance that are kept
    rescore_lm: str | None = None  # rescore: what reads the best of the search once more
    num_workers: int = 0  # processes; 0: as many as there are cores
    trust_pickle: bool = False  # of files of language models that hold more than data

    def __post_init__(self) -> None:
        at_least(self, 1, "num_best")
        at_least(self, 0, "num_workers")
        if self.num_best > self.beam.beam_size and self.decoder != "greedy":
            raise ConfigError(
                f"num_best is {self.num_best} but the beam holds {self.beam.beam_size} hypotheses: "
                f"search wider (--beam-size {self.num_best}), or ask for fewer"
            )
        if self.decoder == "greedy" and (self.lm or self.rescore_lm or self.num_best > 1):
            raise ConfigError(
                "the greedy decoder has one reading and no language model: choose --decoder beam"
            )
        if (self.decoder == "rescore") != (self.rescore_lm is not None):
            raise ConfigError(
                "--decoder rescore reads the best hypotheses of a beam again with --rescore-lm: "
                f"the decoder is {self.decoder!r} and the language model {self.rescore_lm!r}"
            )

    def check_tunable(self) -> None:
        """Raise ConfigError where there is no language model whose weight could be found."""
        if self.lm is None and self.rescore_lm is None:
            raise ConfigError("--tune finds the weights of a language model: name one with --lm")


Kind = Literal["none", "ngram", "transformer"]


class Decoder(Protocol):
    """Emissions to readings."""

    notes: list[str]  # what a person should know of it

    @property
    def kind(self) -> Kind:
        """Of its last language model."""

    def decode(
        self, emissions: Iterable[Emission], beam: BeamConfig, num_best: int = 1
    ) -> Iterator[list[Hypothesis]]:
        """Up to `num_best` readings of each, in order, the best first; at least one."""

    def close(self) -> None:
        """Let go of processes."""


class BestPath:
    """The best token of each frame."""

    kind: Kind = "none"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def decode(
        self, emissions: Iterable[Emission], beam: BeamConfig, num_best: int = 1
    ) -> Iterator[list[Hypothesis]]:
        """One reading of each."""
        for values in emissions:
            score = float(values.max(-1).sum())
            path = tuple(values.argmax(-1).tolist())
            yield [Hypothesis(path=path, words=(), score=score, am_score=score)]

    def close(self) -> None:
        """Nothing to let go of."""


class Rescorer:
    """The best of a search in the order that a second language model gives them: score + weight x
    its log-probability. Both language models count, each with its weight."""

    def __init__(self, first: Decoder, second: LanguageModel, alphabet: Alphabet) -> None:
        self._first, self._second, self._alphabet = first, second, alphabet
        self._ngram: NgramBeam | None = None
        self.kind: Kind = "transformer" if second.module is not None else "ngram"
        if second.module is None:
            self._ngram = NgramBeam(alphabet, second.path, second.lexicon, 1)
        self.notes = [*first.notes, *second.notes]

    def decode(
        self, emissions: Iterable[Emission], beam: BeamConfig, num_best: int = 1
    ) -> Iterator[list[Hypothesis]]:
        """All readings of the beam with the second model's scores, in the order of its weight."""
        for found in self._first.decode(emissions, beam, beam.beam_size):
            pairs = zip(found, self._score(found), strict=True)
            rescored = [dataclasses.replace(h, rescored=score) for h, score in pairs]
            yield reordered(rescored, beam)[:num_best]

    def _score(self, found: list[Hypothesis]) -> list[float]:
        texts = [self._alphabet.decode(h.path) for h in found]
        # Words as the lexicon has them, not as they are spelled; of a search over tokens the text's
        words = [[*h.words] or text.split() for h, text in zip(found, texts, strict=True)]
        vocabulary = self._second.vocabulary
        if self._ngram is None:
            by_words = vocabulary is not None and vocabulary.units == "words"
            texts = [" ".join(w) for w in words] if by_words else texts
            return transformer_scores(self._second, texts, self._alphabet)
        by_words = self._second.lexicon is not None
        units = words if by_words else [symbols_of(t, self._alphabet) for t in texts]
        return [self._ngram.score(unit) for unit in units]

    def close(self) -> None:
        """Let go of processes."""
        self._first.close()


def reordered(found: list[Hypothesis], beam: BeamConfig) -> list[Hypothesis]:
    """Hypotheses with the scores, and in the order, of other weights; equal ones stay in order."""
    scores = (
        h.am_score
        + beam.lm_weight * h.lm_score
        + beam.rescore_weight * h.rescored
        + beam.word_score * len(h.words)
        for h in found
    )
    out = [dataclasses.replace(h, score=s) for h, s in zip(found, scores, strict=True)]
    return sorted(out, key=lambda h: -h.score)


def make_decoder(config: DecodingConfig, alphabet: Alphabet, device: torch.device) -> Decoder:
    """The decoder of these settings. Raises ConfigError, ValueError where a language model or a
    lexicon does not open or is not of this alphabet."""
    if config.decoder == "greedy":
        return BestPath()
    trust = config.trust_pickle
    lm = open_lm(config.lm, alphabet, config.lexicon, device, trust_pickle=trust)
    first: Decoder = (
        NgramBeam(alphabet, lm.path, lm.lexicon, config.num_workers)
        if lm.module is None
        else TransformerBeam(alphabet, lm, device)
    )
    first.notes = [*lm.notes, *first.notes]
    if config.rescore_lm is None:
        return first
    lexicon = None if config.lexicon == NO_LEXICON else config.lexicon
    if lexicon and is_over_tokens(config.rescore_lm, alphabet):
        lexicon = None
    second = open_lm(config.rescore_lm, alphabet, lexicon, device, trust_pickle=trust)
    return Rescorer(first, second, alphabet)


def identity(config: DecodingConfig) -> dict[str, Any]:
    """What tells a search from others besides its beam: the decoder, its files by their content."""
    names = ("lm", "lexicon", "rescore_lm")
    files = {name: content(value) for name in names if (value := getattr(config, name))}
    return {"decoder": config.decoder, **files}
