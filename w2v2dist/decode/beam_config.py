"""Settings of a beam search, and what it finds; the same for every language model."""

import math
from dataclasses import dataclass

from w2v2dist.config import at_least

WEIGHTS = {
    "lm_weight": (0.0, 5.0),
    "word_score": (-5.0, 5.0),
    "rescore_weight": (0.0, 5.0),
}  # tuned


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamConfig:
    """A hypothesis has the score am + lm_weight x lm + word_score x words: the sums of the
    log-probabilities of its tokens (nats) and of its words (a neural model's in nats, an n-gram's
    in log10, as in the paper's values), and their number (section 4.4)."""

    beam_size: int = 50  # hypotheses kept after a frame
    beam_size_token: int = 32  # most probable tokens of a frame that extend them
    beam_threshold: float = 50.0  # hypotheses that are worse than the best by more are left out
    lm_weight: float = 2.0
    word_score: float = 0.0  # for each word of a lexicon
    rescore_weight: float = 0.5  # of the second language model, where there is one

    def __post_init__(self) -> None:
        at_least(self, 1, "beam_size beam_size_token")
        at_least(self, 0, "beam_threshold lm_weight rescore_weight")
        for name in ("beam_threshold", *WEIGHTS):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} is {value} but must be a finite number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """One reading of an utterance of T frames."""

    path: tuple[int, ...]  # the token of each frame, T
    words: tuple[str, ...] = ()  # of the lexicon; () of a search without one
    score: float
    am_score: float = 0.0
    lm_score: float = 0.0
    rescored: float = 0.0  # log-probability by the second language model
