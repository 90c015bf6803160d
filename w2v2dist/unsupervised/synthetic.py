"""`w2v2dist unsupervised synthetic`: made languages, on which a training shows whether it works."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from w2v2dist.config import ConfigError
from w2v2dist.data.index_writer import check_place
from w2v2dist.decode.phone_times import FORMS
from w2v2dist.interop.open import MODEL
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised.collage_folder import CollageConfig, write_collage
from w2v2dist.unsupervised.feature_store import FeatureStoreWriter
from w2v2dist.unsupervised.made_language import MadeLanguage, with_silences
from w2v2dist.unsupervised.synthetic_language import (
    Language,
    MarkovLanguage,
    Rng,
    Sentence,
    english,
    invented,
)

Floats = NDArray[np.float32]
REAL = ("speech", "valid", "phones", "version", "model", "block")  # options of level 5
NUM_TARGETS = 64
FEW_PHONES = 12  # of level 4: with twice as many the game takes hours of a CPU
SPREAD = 1.6, 0.5  # of the features' directions, the widest and the narrowest
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
        language=partial(english, num_phones=FEW_PHONES),
        other=partial(invented, num_phones=FEW_PHONES),
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
            self._shape = np.geomspace(*SPREAD, level.dim)[:, None] * turned
            self._mean = 3 * rng.standard_normal(level.dim)
        self._targets = rng.integers(NUM_TARGETS, size=(num_phones + 1, 2))

    def speak(self, sentence: Sentence, rng: Rng) -> tuple[Floats, NDArray[np.int64] | None]:
        """Frames (T, C), and an auxiliary target for each where the level has them."""
        level = self.level
        silence = len(self._codes) - 1
        if level.silences:
            said = with_silences(sentence, silence, rng)
        else:
            said = np.array([phone for word in sentence for phone in word])
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
    spoken = MadeLanguage(
        language=level.language(seed),
        other=level.other(seed),
        seed=seed,
        silences=level.silences,
        about={"level": number, "seed": seed},
    )
    spoken.begin(folder)
    spoken.write_texts(folder, level.num_text)
    voice = Voice(level, len(spoken.language.phones), seed)
    kind = {"made_by": {"synthetic": f"level {number}, seed {seed}"}}
    for name, count in (("train", level.num_train), ("valid", level.num_valid)):
        store = FeatureStoreWriter(folder / name, level.dim, "float32", kind)
        spoken.write_speech(store, voice, count)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised synthetic` takes."""
    add = parser.add_argument
    levels = (
        "2: a frame a phone, 10 phones; 3: words in 39 phones of 1 to 3 frames, silences; 4: of "
    )
    levels += "3 to 8 frames, for version 2; 5: words in frames of real speech"
    add("--level", type=int, required=True, choices=[*LEVELS, 5], help=levels)
    add("--output", type=Path, required=True, metavar="FOLDER", help="where all of it goes")
    add("--seed", type=int, default=0, metavar="N", help="of the language and of the speech")
    real = parser.add_argument_group("level 5")
    add = real.add_argument
    add("--speech", metavar="SHARDS", help="shards of TIMIT, of which the training's phones are")
    add("--valid", metavar="SHARDS", help="shards of TIMIT's other speakers")
    times = f"times of the phones, in TIMIT's symbols (default: the shards' own): {FORMS}"
    add("--phones", metavar="TIMES", help=times)
    version = "1 (default): segments, as level 3 has; 2: frames every 20 ms and targets, as level 4"
    add("--version", type=int, choices=(1, 2), help=version)
    add("--model", metavar="MODEL", help=f"{MODEL}, whose features are taken (default: MFCCs)")
    add("--block", type=int, metavar="N", help="Transformer block of --model (default: 15)")


def run(args: argparse.Namespace) -> int:
    """Make a language, with speech as features (train, valid), other sentences as a text of phones
    (text), and a text of another language (other), which must not do. A training on it shows in
    minutes on a CPU whether all works. The speech has its phones as labels, for watching. Level 5
    says each phone in frames of real speech, and how a generator reads them that is told.

    example:
      w2v2dist unsupervised synthetic --level 2 --output data/synthetic_2
      w2v2dist train configs/unsupervised/synthetic_2.yaml
      w2v2dist unsupervised synthetic --level 5 --speech data/timit_train --valid data/timit_dev \\
        --output data/synthetic_5
    """
    config = f"configs/unsupervised/synthetic_{args.level}.yaml"
    check_place(args.output, "--output")
    if args.level == 5:
        real = _collage(args)
        found = write_collage(args.output, real)
        if real.version == 2:
            config = f"{config[:-6]}4.yaml run_dir=runs/unsupervised/synthetic_5"
        console.print(
            f"a linear generator that is told the phones of train reads them with "
            f"{found.of_training:.1%} errors, and those of valid with {found.of_others:.1%}: about "
            "the best that one which is not told can reach",
            markup=False,
        )
    elif given := [f"--{name}" for name in REAL if getattr(args, name) is not None]:
        raise ConfigError(
            f"level {args.level} takes no {' and no '.join(given)}, which say what real speech "
            "level 5 is made of: leave them out, or give --level 5"
        )
    else:
        write_synthetic(args.output, args.level, args.seed)
    names = " ".join(f"data.{name}={args.output}/{name}" for name in ("train", "valid", "text"))
    console.print(f"train on it: w2v2dist train {config} {names}", markup=False, soft_wrap=True)
    return 0


def _collage(args: argparse.Namespace) -> CollageConfig:
    """What level 5 is made of. Raises ConfigError where it is not said."""
    if missing := [f"--{name}" for name in ("speech", "valid") if not getattr(args, name)]:
        raise ConfigError(
            f"level 5 is made of real speech, but there is no {' and no '.join(missing)}: "
            "give shards of TIMIT with the times of its phones (docs/timit.md), --speech "
            "data/timit_train --valid data/timit_dev; levels 2 to 4 need no speech"
        )
    if args.block is not None and args.model is None:
        raise ConfigError("--block is of a --model: name one, or leave it out (MFCCs)")
    given = {
        name: getattr(args, name)
        for name in ("phones", "model", "block", "version")
        if getattr(args, name) is not None
    }
    return CollageConfig(train=args.speech, valid=args.valid, seed=args.seed, **given)
