"""Fixtures shared by all tests: where real speech and golden numbers are, if they are on this
machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("W2V2DIST_SHARED", Path(__file__).parents[2] / "shared"))


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(
            f"{name} is not on this machine (set W2V2DIST_SHARED to the folder that holds it)"
        )
    return path


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
def shards(speech_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One speaker's transcribed utterances as shards (65 utterances, 3.4 minutes)."""
    output = tmp_path_factory.mktemp("shards")
    script = Path(__file__).parents[1] / "shards" / "build.py"
    command = [
        sys.executable,
        str(script),
        "--input",
        str(speech_dir / "kathleen" / "train"),
        "--output",
        str(output),
    ]
    subprocess.run([*command, "--shard-mb", "1"], check=True, timeout=120)
    return output
