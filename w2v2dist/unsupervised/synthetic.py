"""`w2v2dist unsupervised synthetic`: made languages, on which a training shows whether it works."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from w2v2dist.config import ConfigError
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised import text
from w2v2dist.unsupervised.feature_store import FeatureStoreWriter
from w2v2dist.unsupervised.synthetic_language import (
    Language,
    MarkovLanguage,
    Rng,
    Sentence,
    english,
    invented,
)

Floats = NDArray[np.float32]
SILENCE = 0.25  # between two words, in speech as in text
NUM_TARGETS = 64
WRONG_TARGETS = 0.2  # of the targets that say nothing of their phone


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """How a language is spoken."""

    language: Callable[[int], Language]
    other: Callable[[int], Language]  # whose text must not explain the speech
    dim: int
    durations: tuple[float, ...]  # how likely 1, 2, … frames of a phone are
    silences: bool  # <SIL> in speech and text
    noise: float = 0.2  # in every channel; the phones' codes have the length 1
    anisotropic: bool = False  # and with auxiliary targets
    num_train: int = 2000
    num_valid: int = 200
    num_text: int = 4000


LEVELS = {
    2: Level(
        language=MarkovLanguage,
        other=lambda seed: MarkovLanguage(seed + 1_000_000),
        dim=16,
        durations=(1.0,),
        silences=False,
    ),
    3: Level(
        language=english,
        other=invented,
        dim=64,
        durations=(0.65, 0.3, 0.05),
        silences=True,
        num_train=4000,
        num_text=20_000,
    ),
    4: Level(
        language=english,
        other=invented,
        dim=64,
        durations=(0.0, 0.0, 0.3, 0.3, 0.2, 0.1, 0.06, 0.04),
        silences=True,
        anisotropic=True,
        num_train=4000,
        num_text=20_000,
    ),
}


class Voice:
    """Sentences as frames. The last code is silence's."""

    def __init__(self, level: Level, num_phones: int, seed: int) -> None:
        self.level = level
        rng = keyed_rng(seed, "voice")
        # Of length 1 and at right angles, so that noise of 0.2 hides few of them
        self._codes = np.linalg.qr(rng.standard_normal((level.dim, level.dim)))[0][: num_phones + 1]
        self._shape: NDArray[np.float64] = np.eye(level.dim)
        self._mean = np.zeros(level.dim)
        if level.anisotropic:  # few directions have most of the variance, as in a model's features
            turned = np.linalg.qr(rng.standard_normal((level.dim, level.dim)))[0]
            self._shape = np.geomspace(3, 0.1, level.dim)[:, None] * turned
            self._mean = 3 * rng.standard_normal(level.dim)
        self._targets = rng.integers(NUM_TARGETS, size=(num_phones + 1, 2))

    def speak(self, sentence: Sentence, rng: Rng) -> tuple[Floats, NDArray[np.int64] | None]:
        """Frames (T, C), and an auxiliary target for each where the level has them."""
        level = self.level
        silence = len(self._codes) - 1
        said: list[int] = [silence] * level.silences
        for number, word in enumerate(sentence):
            if number and level.silences and rng.random() < SILENCE:
                said.append(silence)
            said += word
        said += [silence] * level.silences
        sizes = 1 + rng.choice(len(level.durations), len(said), p=level.durations)
        phones = np.repeat(said, sizes)
        values = self._codes[phones] + level.noise * rng.standard_normal((len(phones), level.dim))
        frames = (values @ self._shape + self._mean).astype(np.float32)
        if not level.anisotropic:
            return frames, None
        ends = np.repeat(np.cumsum(sizes), sizes)
        left = ends - np.arange(len(phones))  # frames up to the end of the phone
        half = (2 * left <= np.repeat(sizes, sizes)).astype(np.int64)
        targets = self._targets[phones, half]
        wrong = rng.random(len(phones)) < WRONG_TARGETS
        targets[wrong] = rng.integers(NUM_TARGETS, size=int(wrong.sum()))
        return frames, targets


def write_synthetic(folder: Path, number: int, seed: int) -> None:
    """Write speech (train, valid), a text of the same language (text) and one of another (other).
    What is there already stays."""
    level = LEVELS[number]
    language = level.language(seed)
    made(folder, "--output")
    about = {"level": number, "seed": seed}
    path = folder / "synthetic.json"
    if path.exists() and json.loads(path.read_text()) != about:
        raise ConfigError(
            f"{folder} has another language ({path.read_text()}): remove it or choose another "
            "--output"
        )
    with atomic(path) as file:
        file.write(json.dumps(about).encode())
    _write_text(folder / "text", level, language, seed)
    _write_text(folder / "other", level, level.other(seed), seed)
    voice = Voice(level, len(language.phones), seed)
    for name, count in (("train", level.num_train), ("valid", level.num_valid)):
        kind = {"made_by": {"synthetic": f"level {number}, seed {seed}"}}
        with FeatureStoreWriter(folder / name, level.dim, "float32", kind) as store:
            for key, sentence, rng in _sentences(
                language, seed, name, 0 if store.complete else count
            ):
                frames, targets = voice.speak(sentence, rng)
                phones = " ".join(language.phones[i] for word in sentence for i in word)
                store.add(key, frames, targets, {"phones": phones})


def _sentences(
    language: Language, seed: int, name: str, count: int
) -> Iterator[tuple[str, Sentence, Rng]]:
    """Sentences with their keys, each by its own generator, which may draw on."""
    for i in range(count):
        rng = keyed_rng(seed, "synthetic", name, i)
        yield f"{name}-{i:05d}", language.sentence(rng), rng


def _write_text(folder: Path, level: Level, language: Language, seed: int) -> None:
    written = folder.with_name(f"{folder.name}.phones.txt")
    with atomic(written) as file:
        for _, sentence, _ in _sentences(language, seed, folder.name, level.num_text):
            words = (" ".join(language.phones[i] for i in word) for word in sentence)
            file.write(" | ".join(words).encode() + b"\n")
    parser = argparse.ArgumentParser()
    text.add_arguments(parser)
    silence = ["--silence", str(SILENCE)] if level.silences else ["--no-silence"]
    options = ["--phones", "--min-phones", "1", "--seed", str(seed), *silence]
    text.run(parser.parse_args([str(written), "--output", str(folder), *options]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised synthetic` takes."""
    add = parser.add_argument
    levels = (
        "2: a frame a phone, 10 phones; 3: words in 39 phones of 1 to 3 frames, silences; 4: of "
    )
    levels += "3 to 8 frames, for version 2"
    add("--level", type=int, required=True, choices=sorted(LEVELS), help=levels)
    add("--output", type=Path, required=True, metavar="FOLDER", help="where all of it goes")
    add("--seed", type=int, default=0, metavar="N", help="of the language and of the speech")


def run(args: argparse.Namespace) -> int:
    """Make a language, with speech as features (train, valid), other sentences as a text of phones
    (text), and a text of another language (other), which must not do. A training on it shows in
    minutes on a CPU whether all works. The speech has its phones as labels, for watching.

    example:
      w2v2dist unsupervised synthetic --level 2 --output data/synthetic_2
      w2v2dist train configs/unsupervised/synthetic_2.yaml
    """
    write_synthetic(args.output, args.level, args.seed)
    names = " ".join(f"data.{name}={args.output}/{name}" for name in ("train", "valid", "text"))
    console.print(
        f"train on it: w2v2dist train configs/unsupervised/synthetic_{args.level}.yaml {names}",
        markup=False,
    )
    return 0
