"""A training as it is watched: followed while it trains, killed and continued, and in TensorBoard,
where each step counts once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from tests.distributed.processes import finish, start, train, write_config
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(600)


def served(folder: Path) -> plugin_event_accumulator.EventAccumulator:
    return plugin_event_accumulator.EventAccumulator(str(folder)).Reload()


def board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0}).Reload()


def test_a_killed_and_continued_fine_tuning_shows_each_step_once(
    shards: Path, tmp_path: Path
) -> None:
    loop = {"max_steps": 8, "validate_every": 2, "save_every": 4}
    config = write_config(tmp_path, "finetune", shards, loop=loop)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "w2v2dist.cli", "status", str(run), "--follow"]
    with subprocess.Popen(
        [*command, "--interval", "0.2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as viewer:
        try:
            assert viewer.stdout is not None
            waited = viewer.stdout.readline()  # it looks before there is a run
            (killed,) = start(config, 1)
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline and killed.poll() is None:
                saved = any(e["event"] == "saved" for e in read_jsonl(run / "events.jsonl"))
                steps = [r["step"] for r in read_jsonl(run / "metrics.jsonl") if "valid/wer" in r]
                if saved and max(steps, default=0) >= 6:
                    break
                time.sleep(0.02)
            killed.kill()
            finish([killed])
            for path in run.glob("checkpoints/*"):  # as if none had been in time since then
                if path.name != "step_00000004":
                    path.unlink() if path.is_symlink() else shutil.rmtree(path)
            first = read_jsonl(run / "metrics.jsonl")
            train(config, 2)  # and on more processes
            said = waited + viewer.communicate(timeout=120)[0]
        finally:
            viewer.kill()
    assert max(r["step"] for r in first) >= 6
    check_board(run)
    assert viewer.returncode == 0
    for text in (
        "waiting for a run",
        "running (process ",
        "resumed  step 4",
        "state      finished",
    ):
        assert text in said
    assert "8 of 8 (100.0 %)" in said
    assert "1 → 2 processes" in said


def check_board(run: Path) -> None:
    """TensorBoard has of each step what metrics.jsonl has of it last."""
    folder = run / "tensorboard"
    records = read_jsonl(run / "metrics.jsonl")
    for name, tag, key in (
        ("train", "loss/loss", "loss"),
        ("train", "optim/lr", "lr"),
        ("valid", "loss/loss", "valid/loss"),
        ("valid", "errors/wer", "valid/wer"),
    ):
        last = {r["step"]: r[key] for r in records if key in r}
        assert len(last) < sum(key in r for r in records)  # some were logged twice
        found = board(folder / name).Scalars(tag)
        assert [e.step for e in found] == sorted(last)
        assert [e.value for e in found] == pytest.approx([last[s] for s in sorted(last)])
    # What the server reads with: it keeps all that is not a scalar as tensors
    tables = served(folder / "valid").Tensors("hypotheses/text_summary")
    assert [e.step for e in tables] == [2, 4, 6, 8]
    pages = [markdown_to_safe_html(e.tensor_proto.string_val[0]) for e in tables]
    rows = [[row.split("</td>")[:2] for row in page.split("<tr>")[2:]] for page in pages]
    assert 1 <= len(rows[0]) <= 8
    assert all(row == rows[0] for row in rows)  # the same utterances, on one process and on two
    assert all(" of " in page for page in pages)
    assert [e.step for e in served(folder / "train").Tensors("data/recording")] == [1, 5]
    assert [e.step for e in served(folder / "valid").Tensors("errors/wer")] == [2, 4, 6, 8]
    assert "_hparams_/session_end_info" in board(folder).summary_metadata
