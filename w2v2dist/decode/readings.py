"""What a hypothesis says, with the times of its words."""

import dataclasses
import math

import numpy as np

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.beam_config import Hypothesis
from w2v2dist.decode.emissions import Emission
from w2v2dist.decode.words import PAUSE_S, Word, words_of_path
from w2v2dist.model import Wav2Vec2Config


def reading(
    found: Hypothesis,
    log_probs: Emission,
    alphabet: Alphabet,
    config: Wav2Vec2Config,
    first_frame: int = 0,
) -> tuple[str, list[Word]]:
    """The text of a hypothesis of log-probabilities (T, num_tokens), and its words, which begin at
    a frame of a recording. A lexicon's words are written as it has them, and are whole."""
    sure = np.exp(log_probs[range(len(log_probs)), found.path]).tolist()
    pause_s = math.inf if found.words else PAUSE_S
    said = words_of_path(found.path, sure, alphabet, config, first_frame, pause_s)
    apart = alphabet.has_words or alphabet.units == "phones"
    if not found.words or not apart:
        return alphabet.decode(found.path), said
    if len(said) == len(found.words):
        pairs = zip(said, found.words, strict=True)
        said = [dataclasses.replace(word, text=text) for word, text in pairs]
    return " ".join(found.words), said
