"""The weights of a search, found without labels (Baevski et al. 2021): readings shall look like
text and stay near what the generator reads by itself. O outputs of an utterance, V symbols."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.beam_config import WEIGHTS, BeamConfig
from w2v2dist.decode.decoders import BestPath, Decoder
from w2v2dist.decode.emissions import Emission
from w2v2dist.decode.scoring import errors
from w2v2dist.decode.tune import Study
from w2v2dist.lm.arpa import Arpa, read_arpa
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised.phone_text import PhoneText
from w2v2dist.unsupervised.selection import sampled

LEAST_RATE = 0.03  # of errors: what is nearer to the greedy reading is no better (the paper's mu)
# Where the paper searches. A weight w of an n-gram's log10 is an acoustic scale of ln 10 / w
SPACE = {**WEIGHTS, "lm_weight": (0.0, 8.0), "silence_weight": (-3.0, 8.0)}
MEASURE = "unlabelled_score"


def perplexity(lm: Arpa, readings: Sequence[str]) -> float:
    """Of readings (symbols between blanks) a symbol, the end of each counted as one."""
    rows = [reading.split() for reading in readings]
    log10 = sum(sum(lm.score(row)) for row in rows)
    return float(10 ** min(300.0, -log10 / sum(len(row) + 1 for row in rows)))


@dataclass(frozen=True, slots=True)
class Judge:
    """What readings are measured by where there are no labels."""

    greedy: list[str]  # of each utterance, phones between blanks
    lm: Arpa  # of phones, without silence
    text_perplexity: float  # of the text itself: less than it is no better

    @classmethod
    def of(cls, text: PhoneText, greedy: list[str]) -> "Judge":
        """By a text and its n-gram. Raises ConfigError where it has none, or nothing was read."""
        path = text.lm_path(False)
        if not path.is_file():
            raise ConfigError(
                f"{path} does not exist, by which readings are judged where there are no labels: "
                "`w2v2dist unsupervised text` writes it"
            )
        if not any(greedy):
            raise ConfigError(
                "nothing is read without a search, so that no search can be held to it: look at "
                "the training's score (`w2v2dist unsupervised select`)"
            )
        lm, symbols = read_arpa(path), text.symbols
        lines = [" ".join(symbols[i] for i in row) for row in sampled(text)]
        return cls(greedy, lm, perplexity(lm, lines))

    def score(self, readings: list[str]) -> float:
        """Lower is better: ln max(perplexity, the text's) x max(errors against the greedy readings,
        0.03)."""
        counted = errors(self.greedy, readings, "word")  # phones are separated as words are
        rate = sum(e.total for e in counted) / sum(e.num_units for e in counted)
        likely = max(perplexity(self.lm, readings), self.text_perplexity)
        return math.log(likely) * max(rate, LEAST_RATE)


def louder(heard: Sequence[Emission], weight: float) -> Iterator[Emission]:
    """Log-probabilities (O, V) as they were with `weight` added to the logit of the last symbol,
    `<SIL>`."""
    for values in heard:
        moved = np.array(values)
        moved[:, -1] += weight
        yield moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What is tuned: a decoder on what was heard, without a weight of silence."""

    decoder: Decoder
    heard: list[Emission]
    letters: Alphabet
    beam: BeamConfig

    def greedy(self) -> list[str]:
        """What the generator reads by itself: phones between blanks, by utterance."""
        found = BestPath().decode(self.heard, self.beam)
        return [self.letters.decode(best[0].path) for best in found]

    def readings(self, weights: dict[str, float]) -> list[str]:
        """What the decoder finds with these weights."""
        of_beam: dict[str, Any] = {
            name: value for name, value in weights.items() if name in WEIGHTS
        }
        beam = dataclasses.replace(self.beam, **of_beam)
        found = self.decoder.decode([*louder(self.heard, weights["silence_weight"])], beam)
        return [self.letters.decode(best[0].path) for best in found]


def tune(
    search: Search,
    judge: Judge,
    about: dict[str, Any],
    start: dict[str, float],
    folder: Path,
    num_trials: int,
) -> dict[str, float]:
    """The weights of the names of `start` that are the best of `num_trials`, with their score.
    Trials of an interrupted search, in trials.jsonl of `folder`, count where they are of the same
    one (`about`); weights.json there has what was found. Raises ConfigError."""
    space = {name: SPACE[name] for name in start}
    study = Study(space=space, start=start, measure=MEASURE, about=about, folder=folder)
    left = range(study.num_done, num_trials)
    for _ in track(left, "tuning", console=console, transient=True):
        study.tell(judge.score(search.readings(study.ask())))
    return study.best()
