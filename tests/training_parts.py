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


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A world of this process under gloo."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT DS_ACCELERATOR".split():
            monkeypatch.setenv(name, "")  # what joining the world sets is undone afterwards
            monkeypatch.delenv(name)
        world = World.from_environment()
        yield world
        world.close()


@contextlib.contextmanager
def make_run(folder: Path, world: World, **loop: Any) -> Iterator[Run]:
    """A run in `folder`, opened by this process alone."""
    config = PretrainConfig(run_dir=str(folder), loop=LoopConfig(**loop))
    with opened(config, "fingerprint", {}, world) as run:
        yield run
