"""Writes level 5 of the made languages: from shards of TIMIT to a folder as the other levels have
it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from w2v2dist.config import ConfigError, at_least
from w2v2dist.data.index_writer import atomic
from w2v2dist.data.source import open_index
from w2v2dist.decode.phone_times import labeller
from w2v2dist.interop.open import open_model
from w2v2dist.runtime.logging import console
from w2v2dist.training.bad_samples import most_frequent
from w2v2dist.unsupervised.clustering import Clusters, fit_clusters
from w2v2dist.unsupervised.collage import STRIDE, Collage, Hear, Pieces, cut, words_of
from w2v2dist.unsupervised.feature_store import FeatureStore, FeatureStoreWriter
from w2v2dist.unsupervised.features import BlockFeatures
from w2v2dist.unsupervised.generator import GeneratorConfig
from w2v2dist.unsupervised.linear_reading import Reading, Utterance, read_linearly
from w2v2dist.unsupervised.made_language import MadeLanguage, check_about
from w2v2dist.unsupervised.phone_text import SILENCE
from w2v2dist.unsupervised.pronunciation import read_pronunciations
from w2v2dist.unsupervised.synthetic_language import WORDS, WordLanguage, invented

NUM_SENTENCES = {"train": 4000, "valid": 200}
NUM_TEXT = 20_000
NUM_TARGETS = 64
LEAST_WORDS = 30
# The versions' generators, as far as they are more than one linear map
LINEAR = {
    1: GeneratorConfig(kernel_size=4, stride=1, dropout=0.25),
    2: GeneratorConfig(kernel_size=9, stride=3, dropout=0.25),
}
PROBE = "probe.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CollageConfig:
    """Of what speech, and as what features."""

    train: str  # shards
    valid: str
    phones: str | None = None  # where the times of phones are; None: in the shards
    model: str | None = None  # None: MFCCs
    block: int = 15
    version: Literal[1, 2] = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


def write_collage(folder: Path, config: CollageConfig) -> Reading:
    """Write speech (train, valid), a text of its language (text), one of another (other), and how a
    linear classifier reads the speech (probe.json). What is there already stays."""
    hear, heard = _hearing(config)
    shards = {"--speech": config.train, "--valid": config.valid}
    indices = [open_index(folders, option) for option, folders in shards.items()]
    find = labeller(config.phones)
    about = {"level": 5, "seed": config.seed, "version": config.version, "features": heard}
    about |= {"speech": [index.fingerprint for index in indices], "times": config.phones}
    check_about(folder, about)
    if (folder / PROBE).is_file():  # what is written last
        return Reading(**json.loads((folder / PROBE).read_text()))
    pieces = {}
    for name, option, index in zip(NUM_SENTENCES, shards, indices, strict=True):
        pieces[name] = cut(index, find, hear, option)
        _tell(option, pieces[name])
    spoken = _language(config.seed, pieces, about)
    phones = spoken.language.phones
    spoken.begin(folder)
    spoken.write_texts(folder, NUM_TEXT)
    clusters = None
    if config.version == 2:
        centroids = fit_clusters(
            pieces["train"].mfccs.copy(), NUM_TARGETS, config.seed, kind="mfcc"
        )
        clusters = Clusters(centroids)
    speakers = {
        name: Collage(pieces=found, phones=phones, version=config.version, clusters=clusters)
        for name, found in pieces.items()
    }
    meta = {"made_by": {"synthetic": f"level 5, seed {config.seed}", **spoken.about}}
    for name, speaker in speakers.items():
        dim = speaker.pieces.frames.shape[1]
        store = FeatureStoreWriter(folder / name, dim, "float32", meta)
        spoken.write_speech(store, speaker, NUM_SENTENCES[name])
    return _probed(folder, phones, config)


def _hearing(config: CollageConfig) -> tuple[Hear | None, Any]:
    """What makes frames of a waveform (None: MFCCs), and what tells it from others."""
    if config.model is None:
        return None, "mfcc"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = BlockFeatures(open_model(config.model), config.block, device)
    if features.config.total_stride != STRIDE:
        raise ConfigError(
            f"{config.model} has a frame every {features.config.total_stride} samples, but level "
            f"5 cuts frames of {STRIDE}: give another --model, or none (MFCCs)"
        )
    return features, {"model": features.fingerprint, "block": config.block}


def _tell(option: str, pieces: Pieces) -> None:
    count = sum(len(spans) for spans in pieces.spans.values())
    console.print(
        f"{option}: {count:,} phones of {len(pieces.spans)} kinds in {pieces.num_utterances:,} "
        "utterances",
        markup=False,
    )
    if pieces.skipped:
        why = most_frequent(pieces.skipped)
        console.print(f"{len(pieces.skipped)} left out: {why}", style="yellow", markup=False)


def _language(seed: int, pieces: dict[str, Pieces], about: dict[str, Any]) -> MadeLanguage:
    """The English of level 3, of words whose phones there are in all of the speech. Raises
    ConfigError where few are left."""
    there = set.intersection(*(set(found.spans) for found in pieces.values()))
    if SILENCE not in there:
        raise ConfigError(
            "the speech has no silence (h#, pau or sil) in --speech or in --valid, but sentences "
            "begin and end with one: give TIMIT's own times"
        )
    everything = read_pronunciations(WORDS).phones
    words, missing = words_of(everything, there)
    lacking = ", ".join(f"{phone} ({n} words)" for phone, n in missing.most_common())
    if len(words) < LEAST_WORDS:
        raise ConfigError(
            f"{len(words)} of {len(everything)} words can be said in the phones that both --speech "
            f"and --valid have, but at least {LEAST_WORDS} are needed; there is no {lacking}: give "
            "more speech"
        )
    if missing:
        console.print(
            f"note: {len(everything) - len(words)} of {len(everything)} words are left out: there "
            f"is no {lacking} in --speech or in --valid",
            style="yellow",
            markup=False,
        )
    return MadeLanguage(
        language=WordLanguage(seed, words),
        other=invented(seed),
        seed=seed,
        silences=True,
        about=about,
    )


def _probed(folder: Path, phones: list[str], config: CollageConfig) -> Reading:
    """How a generator that is told the phones reads the folder's sentences."""
    said = {name: _utterances(FeatureStore(str(folder / name)), phones) for name in NUM_SENTENCES}
    with console.status("a generator that is told the phones"):
        found = read_linearly(
            said["train"], said["valid"], LINEAR[config.version], len(phones), config.seed
        )
    with atomic(folder / PROBE) as file:
        file.write(json.dumps(asdict(found), indent=1).encode())
    return found


def _utterances(store: FeatureStore, phones: list[str]) -> list[Utterance]:
    """What a store has, with the numbers of the phones that are its labels."""
    number = {phone: i for i, phone in enumerate(phones)}
    said = (store.labels[key]["phones"].split() for key in store.keys)
    # Not the mapped file itself, which cannot be written
    return [
        (np.array(store.frames(i)), np.array([number[phone] for phone in line]))
        for i, line in enumerate(said)
    ]
