"""Small shards of real speech for runs of a few seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shards(speech_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One speaker's transcribed utterances as shards (65 utterances, 3.4 minutes)."""
    output = tmp_path_factory.mktemp("shards")
    script = Path(__file__).parents[2] / "shards" / "build.py"
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
