"""Checkpoints written by a thread while the state changes, by processes that die or cannot write;
no training, but the real engine under gloo."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from w2v2dist import checkpoint
from w2v2dist.distributed import World, free_port
from w2v2dist.engine import Engine, EngineConfig, OptimizerConfig

pytestmark = pytest.mark.timeout(400)


def make_engine(rank: int, port: int, zero_stage: int) -> Engine:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(1_000, 999), nn.Linear(999, 500))
    config = EngineConfig(zero_stage=zero_stage, precision="fp32")
    return Engine(model, config, OptimizerConfig(), 1, World.from_environment(120))


def fill(engine: Engine, value: float) -> None:
    """Set every element of the optimizer's copy of the weights, as a step does: in place."""
    for fragment in checkpoint._fragments(engine):
        fragment.flat.data.fill_(value)


def begin(saver: checkpoint.Saver, step: int) -> Any:
    root = saver._root

    def commit(folder: Path) -> None:
        checkpoint.point(root, "latest", folder)
        checkpoint.prune(root, 2)

    return saver.begin(step, {}, commit, copy=True)


def save_for_ever(rank: int, port: int, zero_stage: int, root: Path) -> None:
    engine = make_engine(rank, port, zero_stage)
    saver = checkpoint.Saver(engine, root)
    for step in range(1, 10_000):
        fill(engine, step)
        written = begin(saver, step)
        fill(engine, -1)  # the next step, while the thread writes
        written.result()


@pytest.mark.parametrize(
    ("zero_stage", "moment"), [(0, ".metadata"), (1, "__1_0.distcp"), (3, "meta.json")]
)
def test_a_kill_while_a_thread_writes_leaves_a_whole_checkpoint_of_one_step(
    tmp_path: Path, zero_stage: int, moment: str
) -> None:
    root = tmp_path / "checkpoints"
    running = spawn(
        save_for_ever, (free_port(), zero_stage, root), nprocs=2, join=False, daemon=True
    )
    deadline = time.monotonic() + 300
    try:
        while not list(root.glob(f".tmp-step_*[1-9]/{moment}")) or not (root / "latest").exists():
            assert time.monotonic() < deadline
            assert all(process.is_alive() for process in running.processes)
    finally:
        for process in running.processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    assert list(root.glob(".tmp-step_*"))  # it was in the middle
    newest = checkpoint.find(tmp_path)
    steps = {float(v) for value in checkpoint.read_parameters(newest).values() for v in value[::97]}
    assert steps == {float(newest.name[5:])}


def fail_once(rank: int, port: int, root: Path) -> None:
    engine = make_engine(rank, port, 1)
    saver = checkpoint.Saver(engine, root)
    fill(engine, 1)
    begin(saver, 1).result()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:  # as a quota: its files cannot grow
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    written = begin(saver, 2)
    fill(engine, 3)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step_00000002 could not be written.*1 of 2"
    ):
        written.result()
    assert [path.name for path in checkpoint.candidates(root)] == ["step_00000001"]
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert begin(saver, 3).result() <= time.perf_counter()
    checkpoint.load(engine, root / "step_00000001")
    assert all(float(p.min()) == float(p.max()) == 1 for p in engine.module.parameters())
    # Damage is found by the process whose share it is, and told to all
    if rank == 0:
        data = root / "step_00000003" / "__1_0.distcp"
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    engine.world.barrier()
    with pytest.raises(checkpoint.CheckpointError, match=r"__1_0\.distcp is damaged"):
        checkpoint.load(engine, root / "step_00000003")
    assert all(float(p.min()) == 1 for p in engine.module.parameters())


def test_a_process_that_cannot_write_fails_the_save_of_all_and_the_next_succeeds(
    tmp_path: Path,
) -> None:
    spawn(fail_once, (free_port(), tmp_path), nprocs=2)
