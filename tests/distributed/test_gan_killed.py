"""A training without labels that is killed between two checkpoints, by a signal that nobody can
catch, goes on to the same numbers to the bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import event, finish, start, train
from tests.gan_data import write_gan_config, write_language
from tests.unit.test_gan_training import V2, numbers
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(300)


def test_a_killed_run_goes_on_to_the_same_losses_to_the_bit(tmp_path: Path) -> None:
    data = write_language(tmp_path / "language", num_targets=3)
    settings: dict[str, Any] = {**V2, "loop": {"max_steps": 90, "save_every": 20}}
    settings["loop"] |= {"validate_every": 45, "num_threads": 1}
    train(write_gan_config(tmp_path / "whole", data, **settings), 1)
    config = write_gan_config(tmp_path / "killed", data, **settings)
    run = tmp_path / "killed" / "run"
    (killed,) = start(config, 1)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and killed.poll() is None:
        steps = [r["step"] for r in read_jsonl(run / "metrics.jsonl")]
        saved = any(e["event"] == "saved" for e in read_jsonl(run / "events.jsonl"))
        if saved and max(steps, default=0) > 25:
            break
        time.sleep(0.01)
    killed.kill()
    finish([killed])
    assert not any(e["event"] == "finished" for e in read_jsonl(run / "events.jsonl"))
    train(config, 1)
    assert event(run, "resumed")["step"] in (20, 40, 60, 80)
    assert numbers(run) == numbers(tmp_path / "whole" / "run")
    assert len(numbers(run)) == 90 + 2
