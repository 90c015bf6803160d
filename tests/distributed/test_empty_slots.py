"""Slots without usable utterances: every rank has the same set of gradients at every ZeRO stage, or
buckets of different sizes are exchanged, which gloo aborts and NCCL may sum to garbage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import build_shards
from tests.distributed.processes import losses, train, write_config
from tests.speech import talk
from w2v2dist.runtime.logging import read_jsonl

CASES = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]
OFTEN = [(2, "fp32"), (0, "bf16")]  # the others are slow


@pytest.fixture(scope="module")
def half_usable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 40 utterances of 2 s, one to a slot; every other label is in no alphabet."""
    folder = tmp_path_factory.mktemp("half")
    source = folder / "wav"
    source.mkdir()
    for i in range(40):
        num_samples = int(np.random.default_rng(i).integers(30_000, 34_000))
        soundfile.write(source / f"u{i:02d}.flac", talk(num_samples, i), 16_000)
        (source / f"u{i:02d}.txt").write_text("ONE TWO" if i % 2 else "42")
    return build_shards(source, folder / "shards")


@pytest.mark.parametrize("task", ["finetune", "pretrain"])
@pytest.mark.parametrize(
    ("stage", "precision"),
    [pytest.param(*c, marks=[] if c in OFTEN else pytest.mark.slow) for c in CASES],
)
def test_empty_and_rejected_slots(
    half_usable: Path, tmp_path: Path, task: str, stage: int, precision: str
) -> None:
    """Four slots on three processes, two of them with an empty second round, past the freezing of
    the Transformer, with slots whose only utterance was rejected: the losses of one process."""
    data = {
        "max_samples_per_slot": 40_000,
        "max_crop": 34_000,
        "min_samples": 16_000,
        "valid": None,
    }
    config = write_config(
        tmp_path,
        task,
        half_usable,
        data=data,
        engine={"zero_stage": stage, "precision": precision},
        loop={"max_steps": 5, "save_every": 100},
    )
    for processes in (1, 3):
        train(config, processes, f"run_dir={tmp_path / str(processes)}")
    one, three = (losses(tmp_path / str(n)) for n in (1, 3))
    assert one == pytest.approx(three, rel=2e-5 if precision == "fp32" else 2e-2)
    if task == "finetune":
        skipped = [
            (r["step"], r["slot"])
            for log in (tmp_path / "3" / "logs").glob("skipped-*.jsonl")
            for r in read_jsonl(log)
        ]
        assert skipped
        assert len({*skipped}) == len(skipped)  # one a slot: the whole slot was rejected
        assert max(step for step, _ in skipped) > 2  # after freeze_steps
