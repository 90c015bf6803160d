"""DeepSpeed as the engine sets it up: fp32 masters, time-outs, settings, and fp16
with its loss scale on a CPU that DeepSpeed believes to have it."""

from __future__ import annotations

import ast
import datetime
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import distributed_c10d
from torch.multiprocessing import start_processes

from tests.distributed.processes import (
    ends_at_the_smallest_scale,
    event,
    fork_server,
    fp16_on_cpu,
    losses,
    train,
    write_config,
)
from w2v2dist import checkpoint
from w2v2dist.cli import main
from w2v2dist.runtime.distributed import World, free_port
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training import engine_state, loop
from w2v2dist.training.engine import Engine, EngineConfig, OptimizerConfig

pytestmark = pytest.mark.timeout(400)


def spawn(function: Callable[..., None], size: int, *arguments: Any) -> None:
    """Run it in so many processes, which get their rank and the arguments."""
    fork_server()
    values = (free_port(), size, *arguments)
    start_processes(function, values, nprocs=size, start_method="forkserver")


def joined(rank: int, port: int, size: int) -> World:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    fp16_on_cpu()
    return World.from_environment(77)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 41), nn.Tanh(), nn.Linear(41, 1))


def set_up(rank: int, port: int, size: int) -> None:
    world = joined(rank, port, size)
    for stage in range(4):
        config = EngineConfig(zero_stage=stage, precision="bf16")
        model = make_model()
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        engine = Engine(model, config, OptimizerConfig(), 2, world)
        count = 0
        for fragment in engine.fragments():  # to the bit: no rounding to 16 bits and back
            assert torch.equal(fragment.values, fragment.of(weights[fragment.name]))
            count += fragment.size
        total = sum(p.numel() for p in weights.values())
        assert world.sum([count]) == [total]
        if stage < 3:
            for name, p in engine.module.named_parameters():
                assert torch.equal(p, weights[name].to(p.dtype))
        settings = engine.deepspeed._config
        assert not engine.deepspeed.tput_timer.config.enabled
        assert engine.deepspeed.communication_data_type is torch.float32
        assert settings.zero_config.reduce_bucket_size <= 2 * total
        assert settings.zero_config.overlap_comm == (stage == 3)
        device = torch.device("cpu")
        for group in distributed_c10d._world.pg_map:
            limit = group._get_backend(device).options._timeout
            assert limit == datetime.timedelta(seconds=77)
    checkpoint.together.host_group()
    assert len(distributed_c10d._world.pg_map) > 2
    for group in distributed_c10d._world.pg_map:
        assert group._get_backend(device).options._timeout == datetime.timedelta(seconds=77)
    world.barrier()  # the other may still be joining the last group
    world.close()


def test_masters_settings_and_time_outs() -> None:
    spawn(set_up, 2)


def counted(rank: int, port: int, size: int, config: Path, out: Path) -> None:
    """Train, and write how often each step met the other processes on the host."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    met, of_steps, step = [0], list[int](), loop._step

    def meeting(method: Any) -> Any:
        def call(*args: Any) -> Any:
            met[0] += 1
            return method(*args)

        return call

    def counting(*args: Any) -> Any:
        before = met[0]
        ended = step(*args)
        of_steps.append(met[0] - before)
        return ended

    for name in ("_reduce", "gather"):
        setattr(World, name, meeting(getattr(World, name)))
    setattr(loop, "_step", counting)  # noqa: B010
    assert main(["train", str(config)]) == 0
    out.write_text(str(of_steps))


def test_processes_agree_once_a_step(shards: Path, tmp_path: Path) -> None:
    """On the host: while a GPU is idle between two steps."""
    quiet = {"log_every": 100, "save_every": 100, "max_steps": 4}
    config = write_config(tmp_path, "pretrain", shards, loop=quiet, data={"valid": None})
    spawn(counted, 1, config, tmp_path / "counts")
    assert ast.literal_eval((tmp_path / "counts").read_text())[:3] == [1, 1, 1]


def overflow(rank: int, port: int, size: int, stage: int) -> None:
    """Losses that leave fp16's range skip their update and halve the scale; the state travels."""
    world = joined(rank, port, size)
    config = EngineConfig(zero_stage=stage, precision="fp16")
    engine = Engine(make_model(), config, OptimizerConfig(), 2, world)

    def step(size_of_loss: float) -> float:
        for slot in range(2):
            torch.manual_seed(2 * world.rank + slot)
            loss = engine(torch.randn(3, 30).half()).float().mean() * size_of_loss
            engine.backward(loss)
            norm = engine.step(1e-3 if slot else None)
        assert norm is not None
        return norm

    def weights() -> list[torch.Tensor]:
        return [fragment.values.clone() for fragment in engine.fragments()]

    before = weights()
    assert engine.loss_scale == 2**16
    # Of its first two overflows DeepSpeed forgives one
    norms = [step(1e30 if world.is_main else 1.0) for _ in range(3)]
    assert norms == [math.inf] * 3
    assert engine.loss_scale == 2**14
    assert all(map(torch.equal, weights(), before))
    assert [group["num_updates"] for group in engine.optimizer.param_groups] == [0]
    assert 0 < step(1.0) < math.inf
    assert not all(map(torch.equal, weights(), before))
    assert [group["num_updates"] for group in engine.optimizer.param_groups] == [1]

    meta = {"step": 4, **engine_state.settings({"": engine})}
    other = Engine(make_model(), config, OptimizerConfig(), 2, world)
    engine_state.ranges({"": other}, for_save=False)  # creates Adam's state
    engine_state.restore({"": other}, meta)
    assert other.loss_scale == 2**14
    assert engine_state.settings({"": other}) == engine_state.settings({"": engine})
    assert meta["loss_scaler"]["last_overflow_iter"] == 2
    world.close()


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_an_overflow_in_fp16_skips_the_update(stage: int) -> None:
    spawn(overflow, 2, stage)


def test_fp16_trains_saves_and_resumes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_FP16_ON_CPU", "1")
    config = write_config(tmp_path, "pretrain", shards, engine={"precision": "fp16"})
    train(config, 2)
    run, whole = tmp_path / "run", losses(tmp_path / "run")
    assert sorted(whole) == [1, 2, 3, 4, 5, 6]
    assert all(map(math.isfinite, whole.values()))
    scales = [r["loss_scale"] for r in read_jsonl(run / "metrics.jsonl") if "loss_scale" in r]
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    train(config, 2)
    assert event(run, "resumed")["step"] == 3
    assert losses(run) == whole
    again = [r["loss_scale"] for r in read_jsonl(run / "metrics.jsonl") if "loss_scale" in r]
    assert again == [*scales, *scales[3:]]


@pytest.mark.slow
def test_an_absurd_learning_rate_in_fp16_ends_at_the_smallest_scale(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_FP16_ON_CPU", "1")
    ends_at_the_smallest_scale(shards, tmp_path)
