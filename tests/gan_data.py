"""A made language for tests of wav2vec-U: sentences of one Markov chain, as phones and as noisy
frames of other sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from w2v2dist.lm.kneser_ney import estimate, read_corpus, write_arpa
from w2v2dist.unsupervised.feature_store import FeatureStoreWriter
from w2v2dist.unsupervised.phone_text import SPECIAL, PhoneText, write_phone_text

PHONES = ["a", "b", "d", "e", "f", "g"]
SUCCESSORS = {0: (1, 2), 1: (3, 4, 0), 2: (0, 5), 3: (5, 2), 4: (0, 3), 5: (4, 1)}
DIM = 8


def sentences(seed: int, count: int, least: int = 6, most: int = 12) -> list[list[int]]:
    """Of numbers of phones; the first successor is twice as likely as the next, and so on."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        line = [0]
        for _ in range(int(rng.integers(least, most + 1)) - 1):
            after = SUCCESSORS[line[-1]]
            weights = 0.5 ** np.arange(len(after))
            line.append(int(rng.choice(after, p=weights / weights.sum())))
        out.append(line)
    return out


def write_language(root: Path, num: int = 40, num_valid: int = 10, **more: Any) -> dict[str, Any]:
    """Write text, training and validation features; the values of `data` that name them."""
    text = write_text(root / "text", num)
    write_features(root / "train", 1, num, **more)
    write_features(root / "valid", 2, num_valid, prefix="v", **more)
    return {"text": str(text.folder), "train": str(root / "train"), "valid": str(root / "valid")}


def write_text(folder: Path, num: int, phones: list[str] = PHONES) -> PhoneText:
    """A text and its two n-grams."""
    lines = sentences(0, num)
    counts = {phone: sum(line.count(i) for line in lines) for i, phone in enumerate(phones)}
    rows = [[i + len(SPECIAL) for i in line] for line in lines]
    text = write_phone_text(folder, counts, rows, {})
    for with_silence in (True, False):
        said = [" ".join(phones[i] for i in line) for line in lines]
        said = [f"<SIL> {line} <SIL>" if with_silence else line for line in said]
        corpus = read_corpus(line.encode() for line in said)
        with text.lm_path(with_silence).open("wb") as file:
            write_arpa(file, corpus.words, estimate(corpus, 3))
    return text


def write_features(
    folder: Path,
    seed: int,
    num: int,
    *,
    prefix: str = "u",
    num_targets: int = 0,
    without_targets: int = 0,
    model: str = "made",
    dim: int = DIM,
    labels: bool = True,
    longest: int = 12,
) -> None:
    """A frame a phone, the same code of each phone in every store of a `model`. Of the first
    `without_targets` utterances there are none."""
    rng = np.random.default_rng(seed)
    codes = np.random.default_rng(len(model)).standard_normal((len(PHONES), dim))
    with FeatureStoreWriter(folder, dim, "float32", {"made_by": {"model": model}}) as store:
        for i, line in enumerate(sentences(seed, num, most=longest)):
            frames = codes[line] + 0.1 * rng.standard_normal((len(line), dim))
            targets = np.array(line) % num_targets if i >= without_targets and num_targets else None
            label = {"phones": " ".join(PHONES[j] for j in line)} if labels else None
            store.add(f"{prefix}{i:03d}", frames, targets, label)


def write_gan_config(folder: Path, data: dict[str, Any], **sections: Any) -> Path:
    """A small training of version 1, six steps unless `sections` say otherwise."""
    values: dict[str, Any] = {
        "task": "unsupervised",
        "run_dir": str(folder / "run"),
        "model": {
            "generator": {"kernel_size": 1},
            "discriminator": {"dim": 16, "kernel_size": 4},
        },
        "data": {**data, "batch_size": 8},
        "loop": {"max_steps": 6, "log_every": 1, "validate_every": 2, "save_every": 2},
    }
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **section} if both else section
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
