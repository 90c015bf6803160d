"""Logs on a disk that is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2v2dist.runtime.logging import RunLogger


def test_a_full_disk_loses_lines_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(tmp_path)
    for name in ("metrics", "events"):
        (tmp_path / f"{name}.jsonl").symlink_to("/dev/full")
    logger.metrics({"step": 1, "loss": 2.0})
    logger.event("saved", step=1)
    for name in ("metrics", "events"):
        (tmp_path / f"{name}.jsonl").unlink()
        (tmp_path / f"{name}.jsonl").mkdir()  # not for lack of space: somebody has to look
    with pytest.raises(IsADirectoryError):
        logger.event("saved", step=2)
    with pytest.raises(IsADirectoryError):
        logger.metrics({"step": 2, "loss": 2.0})
    logger.close()
    printed = capsys.readouterr().out
    assert "No space left on device: lost in metrics.jsonl: {'step': 1, 'loss': 2.0" in printed
    assert "No space left on device: lost in events.jsonl" in printed
