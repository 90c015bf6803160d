"""Checkpoints written by a thread while the state changes, by processes that die or cannot write;
no training, but the real engine under gloo."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from tests.distributed.processes import fork_server
from w2v2dist import checkpoint
from w2v2dist.runtime.distributed import World, free_port
from w2v2dist.training import engine_state
from w2v2dist.training.engine import Engine, EngineConfig, OptimizerConfig

pytestmark = pytest.mark.timeout(400)


def spawn(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run it in two processes, which get their rank and the arguments."""
    fork_server()
    start_processes(function, arguments, nprocs=2, start_method="forkserver")


def make_engine(rank: int, port: int, zero_stage: int) -> Engine:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(1_000, 999), nn.Linear(999, 500))
    config = EngineConfig(zero_stage=zero_stage, precision="fp32")
    return Engine(model, config, OptimizerConfig(), 1, World.from_environment(120))


def fill(engine: Engine, value: float) -> None:
    """Set every element of the optimizer's copy of the weights, as a step does: in place."""
    for fragment in engine.fragments():
        fragment.flat.data.fill_(value)


def begin(writer: checkpoint.Writer, engine: Engine, step: int) -> Any:
    meta = {"step": step, **engine_state.settings({"": engine})}
    state = engine_state.ranges({"": engine}, for_save=True)
    return writer.begin(meta, state, checkpoint.Retention(("latest",), 2), copy=True)


def load(engine: Engine, folder: Path) -> None:
    state = engine_state.ranges({"": engine}, for_save=False)
    engine_state.restore({"": engine}, checkpoint.load(folder, engine.world, state))


def save_and_die(rank: int, port: int, zero_stage: int, moment: str, who: int, root: Path) -> None:
    """Save three times; the third time process `who` is killed where it would call `moment`."""
    engine = make_engine(rank, port, zero_stage)
    writer = checkpoint.Writer(root, engine.world)
    for step in (1, 2, 3):
        if step == 3 and rank == who:
            setattr(checkpoint.write, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        fill(engine, step)
        written = begin(writer, engine, step)
        fill(engine, -1)  # the next step, while the thread writes
        written.result()


@pytest.mark.parametrize(
    ("zero_stage", "moment", "who", "left"),
    [(0, "sha256", 1, [2, 1]), (1, "write_sums", 0, [2, 1]), (3, "point", 0, [3, 2, 1])],
)
def test_a_kill_while_a_thread_writes_leaves_whole_checkpoints_of_one_step_each(
    tmp_path: Path, zero_stage: int, moment: str, who: int, left: list[int]
) -> None:
    root = tmp_path / "checkpoints"
    arguments = (free_port(), zero_stage, moment, who, root)
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        spawn(save_and_die, arguments)
    assert [int(path.name[5:]) for path in checkpoint.candidates(root)] == left
    assert checkpoint.find(tmp_path).name == "step_00000002"
    for folder in checkpoint.candidates(root):
        values = checkpoint.read_parameters(folder).values()
        assert {float(v) for value in values for v in value[::97]} == {float(folder.name[5:])}


def fail_once(rank: int, port: int, root: Path) -> None:
    engine = make_engine(rank, port, 1)
    writer = checkpoint.Writer(root, engine.world)
    fill(engine, 1)
    begin(writer, engine, 1).result()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:  # as a quota: its files cannot grow
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    written = begin(writer, engine, 2)
    fill(engine, 3)
    with pytest.raises(checkpoint.CheckpointError, match=r"step_00000002 could not be written"):
        written.result()
    assert [path.name for path in checkpoint.candidates(root)] == ["step_00000001"]
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert begin(writer, engine, 3).result() <= time.perf_counter()
    load(engine, root / "step_00000001")
    assert all(float(p.min()) == float(p.max()) == 1 for p in engine.module.parameters())
    # Damage is found by the process whose share it is, and told to all
    if rank == 0:
        data = root / "step_00000003" / "__1_0.distcp"
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    engine.world.barrier()
    with pytest.raises(checkpoint.CheckpointError, match=r"__1_0\.distcp is damaged"):
        load(engine, root / "step_00000003")
    assert all(float(p.min()) == 1 for p in engine.module.parameters())


def test_a_process_that_cannot_write_fails_the_save_of_all_and_the_next_succeeds(
    tmp_path: Path,
) -> None:
    spawn(fail_once, (free_port(), tmp_path))


def look_past_padding(rank: int, port: int) -> None:
    engine = make_engine(
        rank, port, 3
    )  # 999 elements of a bias: the second half has one more place
    bias: Any = dict(engine.module.named_parameters())["0.bias"]
    if rank == 1:
        bias.ds_tensor[-1] = float("nan")
    assert engine.has_finite_weights()
    if rank == 1:
        bias.ds_tensor[-2] = float("nan")
    assert not engine.has_finite_weights()


def test_padding_is_no_weight() -> None:
    """What ZeRO 3 appends to a parameter's last part is uninitialised memory."""
    spawn(look_past_padding, (free_port(),))
