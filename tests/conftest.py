"""Fixtures shared by all tests: where real speech and golden numbers are, if they are on this
machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

SHARED = Path(os.environ.get("W2V2DIST_SHARED", Path(__file__).parents[2] / "shared"))


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(
            f"{name} is not on this machine (set W2V2DIST_SHARED to the folder that holds it)"
        )
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of tests lose more to threads waiting for each other than they gain, and sums are
    added in the same order on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    """Folder of real speech: SET/SPLIT/SPEAKER/... in LibriSpeech and TIMIT layouts."""
    return _shared("data")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of numbers made by the reference implementation."""
    return _shared("golden")


@pytest.fixture(scope="session")
def paper_path() -> Path:
    """Markdown tables of the paper's hyperparameters."""
    return _shared("PAPER.md")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One speaker's transcribed utterances as shards (65 utterances, 3.4 minutes); where there is
    no real speech, as many synthetic ones."""
    output = tmp_path_factory.mktemp("shards")
    source = SHARED / "data" / "kathleen" / "train"
    return build_shards(source, output) if source.exists() else synthetic_shards(output)


def build_shards(source: Path, output: Path, shard_mb: str = "1") -> Path:
    """Run shards/build.py as a user does."""
    script = Path(__file__).parents[1] / "shards" / "build.py"
    command = [sys.executable, str(script), "--input", str(source), "--output", str(output)]
    subprocess.run([*command, "--shard-mb", shard_mb, "--workers", "1"], check=True, timeout=120)
    return output


def replace_audio(shards: Path, row: int, content: bytes) -> None:
    """Let the index name other audio for an utterance: `content`, which is put behind its shard."""
    index = json.loads((shards / "index.json").read_text())
    columns = {c: np.load(shards / f"index.{c}.npy") for c in ("shard", "offset", "size")}
    shard = index["shards"][int(columns["shard"][row])]
    columns["offset"][row], columns["size"][row] = shard["bytes"], len(content)
    with (shards / shard["path"]).open("ab") as file:
        file.write(content)
    shard["bytes"] += len(content)
    (shards / "index.json").write_text(json.dumps(index))
    for column, values in columns.items():
        np.save(shards / f"index.{column}.npy", values)


def synthetic_shards(output: Path, text: str = "ONE TWO", shard_mb: str = "1") -> Path:
    """Shards of 65 utterances of 1 to 5 s: noise whose loudness changes like syllables."""
    source = output.parent / f"{output.name}-wav"
    source.mkdir(parents=True)
    for i in range(65):
        rng = np.random.default_rng(i)
        num_samples = int(rng.integers(16_000, 80_000))
        loudness = np.repeat(rng.random(-(-num_samples // 1_600)), 1_600)[:num_samples]
        noise = np.convolve(rng.standard_normal(num_samples), rng.standard_normal(32), "same")
        soundfile.write(source / f"u{i:03d}.flac", 0.02 * loudness * noise, 16_000)
        (source / f"u{i:03d}.txt").write_text(text, encoding="utf-8")
    return build_shards(source, output, shard_mb)
