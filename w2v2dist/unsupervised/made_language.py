"""The folder of a made language: speech as features (train, valid), another text of it (text), and
one of another language (other)."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from w2v2dist.config import ConfigError
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.unsupervised import text
from w2v2dist.unsupervised.feature_store import FeatureStoreWriter, Frames, Targets
from w2v2dist.unsupervised.synthetic_language import Language, Rng, Sentence

SILENCE = 0.25  # between two words, in speech as in text
ABOUT = "synthetic.json"


class Speaker(Protocol):
    """Speaks sentences."""

    def speak(self, sentence: Sentence, rng: Rng) -> tuple[Frames, Targets | None]:
        """Frames (T, C), and an auxiliary target for each where it gives any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeLanguage:
    """A language, another one that must not explain its speech, and what tells them from others."""

    language: Language
    other: Language
    seed: int
    silences: bool  # <SIL> in speech and text
    about: dict[str, Any]  # of synthetic.json

    def begin(self, folder: Path) -> None:
        """Take the folder. Raises ConfigError where another language has it."""
        check_about(folder, self.about)
        with atomic(made(folder, "--output") / ABOUT) as file:
            file.write(json.dumps(self.about).encode())

    def write_texts(self, folder: Path, num_sentences: int) -> None:
        """Write both texts; what is there already stays."""
        self._write_text(folder / "text", self.language, num_sentences)
        self._write_text(folder / "other", self.other, num_sentences)

    def _write_text(self, folder: Path, language: Language, num_sentences: int) -> None:
        written = folder.with_name(f"{folder.name}.phones.txt")
        with atomic(written) as file:
            for _, sentence, _ in sentences(language, self.seed, folder.name, num_sentences):
                words = (" ".join(language.phones[i] for i in word) for word in sentence)
                file.write(" | ".join(words).encode() + b"\n")
        parser = argparse.ArgumentParser()
        text.add_arguments(parser)
        silence = ["--silence", str(SILENCE)] if self.silences else ["--no-silence"]
        options = ["--phones", "--min-phones", "1", "--seed", str(self.seed), *silence]
        text.run(parser.parse_args([str(written), "--output", str(folder), *options]))

    def write_speech(self, store: FeatureStoreWriter, speaker: Speaker, num_sentences: int) -> None:
        """Write the features of sentences, with their phones as labels; a whole store stays."""
        count = 0 if store.complete else num_sentences
        with store:
            for key, sentence, rng in sentences(self.language, self.seed, store.folder.name, count):
                frames, targets = speaker.speak(sentence, rng)
                said = " ".join(self.language.phones[i] for word in sentence for i in word)
                store.add(key, frames, targets, {"phones": said})


def check_about(folder: Path, about: dict[str, Any]) -> None:
    """Raise ConfigError where a folder has another language than what `about` tells."""
    path = folder / ABOUT
    if path.exists() and json.loads(path.read_text()) != about:
        raise ConfigError(
            f"{folder} has another language ({path.read_text()}): remove it or choose another "
            "--output"
        )


def sentences(
    language: Language, seed: int, name: str, count: int
) -> Iterator[tuple[str, Sentence, Rng]]:
    """Sentences with their keys, each by its own generator, which may draw on."""
    for i in range(count):
        rng = keyed_rng(seed, "synthetic", name, i)
        yield f"{name}-{i:05d}", language.sentence(rng), rng


def with_silences(sentence: Sentence, silence: int, rng: Rng) -> NDArray[np.int64]:
    """The phones of a sentence with the number `silence` at its ends and between some words."""
    said = [silence]
    for number, word in enumerate(sentence):
        if number and rng.random() < SILENCE:
            said.append(silence)
        said += word
    return np.array([*said, silence], np.int64)
