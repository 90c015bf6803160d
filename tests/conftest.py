"""Fixtures shared by all tests: made speech, the reference's numbers, and, where they are on this
machine, real speech and the sources of the numbers (W2V2DIST_SHARED names their folder)."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from shards import build
from tests.golden.make import unpack
from tests.speech import talk, write_corpora

SHARED = Path(os.environ.get("W2V2DIST_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_report_header() -> str:
    """What is not on this machine; the tests marked with it are left out."""
    absent = [name for name in ("data", "golden", "PAPER.md") if not (SHARED / name).exists()]
    return f"shared: {SHARED}" + (f", without {', '.join(absent)}" if absent else "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of what is not on this machine: others make their claims on made input."""
    absent = [
        item
        for item in items
        if not all((SHARED / mark.args[0]).exists() for mark in item.iter_markers("shared"))
    ]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in set(absent)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of tests lose more to threads waiting for each other than they gain, and sums are
    added in the same order on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


REAL = pytest.param("real", marks=pytest.mark.shared("data"))


@pytest.fixture(scope="session")
def made_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `speech_dir`, made by tests/speech.py."""
    return write_corpora(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="session", params=["made", REAL])
def speech_dir(request: pytest.FixtureRequest) -> Path:
    """Folder of speech: SET/SPLIT/SPEAKER/... in LibriSpeech and TIMIT layouts."""
    if request.param == "real":
        return SHARED / "data"
    return Path(request.getfixturevalue("made_speech"))


@pytest.fixture(scope="session")
def golden_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of numbers made by the reference implementation; of large gradients, samples."""
    folder = tmp_path_factory.mktemp("golden")
    unpack(folder)
    return folder


@pytest.fixture(scope="session")
def full_golden_dir() -> Path:
    """The folder that tests/golden was made from; tests that ask for it are marked `shared`."""
    return SHARED / "golden"


@pytest.fixture(scope="session")
def paper_path() -> Path:
    """Markdown tables of the paper's hyperparameters; tests that ask for it are marked `shared`."""
    return SHARED / "PAPER.md"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One speaker's transcribed utterances as shards (65 utterances, 3.3 minutes)."""
    return synthetic_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session", params=["made", REAL])
def spoken_shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards`, and one speaker's real utterances as shards."""
    if request.param == "made":
        return Path(request.getfixturevalue("shards"))
    return build_shards(SHARED / "data/kathleen/train", tmp_path_factory.mktemp("real"))


def build_shards(source: Path, output: Path, shard_mb: str = "1", more: Sequence[str] = ()) -> Path:
    """Run shards/build.py, without its output."""
    arguments = ["--input", str(source), "--output", str(output), "--shard-mb", shard_mb, *more]
    with contextlib.redirect_stdout(io.StringIO()):
        assert build.main([*arguments, "--workers", "1"]) == 0
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


def synthetic_shards(
    output: Path,
    text: str = "ONE TWO",
    shard_mb: str = "1",
    sound: Callable[[int, int], npt.NDArray[Any]] = talk,
) -> Path:
    """Shards of 65 utterances of 1 to 5 s by one made speaker, or of another sound: its arguments
    are the number of samples and a seed."""
    source = output.parent / f"{output.name}-wav"
    source.mkdir(parents=True)
    for i in range(65):
        num_samples = int(np.random.default_rng(i).integers(16_000, 80_000))
        soundfile.write(source / f"u{i:03d}.flac", sound(num_samples, i), 16_000)
        (source / f"u{i:03d}.txt").write_text(text, encoding="utf-8")
    return build_shards(source, output, shard_mb)
