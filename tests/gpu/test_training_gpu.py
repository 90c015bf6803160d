"""Training over NCCL on one GPU: every precision and ZeRO stage trains, saves and resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.distributed.processes import (
    ends_at_the_smallest_scale,
    event,
    losses,
    train,
    write_config,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_trains_saves_and_resumes(
    shards: Path, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    engine = {"zero_stage": zero_stage, "precision": precision}
    config = write_config(tmp_path, "pretrain", shards, engine=engine)
    train(config, 1)
    run, whole = tmp_path / "run", losses(tmp_path / "run")
    assert sorted(whole) == [1, 2, 3, 4, 5, 6]
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    train(config, 1)
    assert event(run, "resumed")["step"] == 3
    # Sums on a GPU may be taken in another order
    assert losses(run) == pytest.approx(whole, rel=1e-5 if precision == "fp32" else 2e-2)


def test_an_absurd_learning_rate_in_fp16_ends_at_the_smallest_scale(
    shards: Path, tmp_path: Path
) -> None:
    ends_at_the_smallest_scale(shards, tmp_path)
