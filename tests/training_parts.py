"""What tests of a single part of a training need around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from w2v2dist.runtime.distributed import World
from w2v2dist.tasks.pretrain import PretrainConfig
from w2v2dist.training.run_folder import Run, opened
from w2v2dist.training.schedules import LoopConfig


@contextlib.contextmanager
def make_run(folder: Path, monkeypatch: pytest.MonkeyPatch, **loop: Any) -> Iterator[Run]:
    """A run in `folder`, opened by the only process of a world under gloo."""
    for name in "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT DS_ACCELERATOR".split():
        monkeypatch.setenv(name, "")  # what joining the world sets is undone afterwards
        monkeypatch.delenv(name)
    world = World.from_environment()
    config = PretrainConfig(run_dir=str(folder), loop=LoopConfig(**loop))
    try:
        with opened(config, "fingerprint", world) as run:
            yield run
    finally:
        world.close()
