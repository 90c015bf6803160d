"""The logs of a run: on a disk that is full, and as TensorBoard's own reader sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams import metadata

from w2v2dist.runtime.board import LONGEST_S, markdown_table
from w2v2dist.runtime.logging import RunLogger, read_jsonl

ALL = {"scalars": 0, "tensors": 0, "audio": 0}  # keep every point


def read_board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), ALL).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read_board(folder).Scalars(tag)]


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[RunLogger]:
    logger = RunLogger(tmp_path)
    yield logger
    logger.close()


def test_a_full_disk_loses_lines_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(tmp_path)
    logger.begin(0, {})
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_loses_tensorboard_until_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], logger: RunLogger
) -> None:
    logger.begin(0, {})
    logger.metrics({"step": 1, "loss": 2.0})
    (file,) = (tmp_path / "tensorboard" / "train").iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    for step in (2, 3):
        logger.metrics({"step": step, "loss": 2.0})
        logger.listen(step, torch.zeros(100))
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    lost = "No space left on device: lost in tensorboard/, until the next start"
    assert capsys.readouterr().out.count(lost) == 1
    file.unlink()
    logger.begin(3, {})
    logger.metrics({"step": 4, "loss": 1.0})
    assert points(tmp_path / "tensorboard" / "train", "loss/loss") == [(4, 1.0)]


def test_no_room_for_tensorboard_at_the_start(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    logger: RunLogger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.compat.tensorflow_stub.io.gfile.makedirs", full)
    logger.begin(0, {"seed": 1})
    logger.metrics({"step": 1, "loss": 2.0})
    assert "lost in tensorboard/, until the next start" in capsys.readouterr().out
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_training_and_validation_share_a_chart(tmp_path: Path, logger: RunLogger) -> None:
    logger.begin(0, {})
    training: dict[str, Any] = {"contrastive_loss": 6.5, "lr": 1e-4, "slowest_host": "node1"}
    training |= {"audio_hours": 0.5, "seconds": 20.0, "data_wait_seconds": 1.0, "world_size": 2}
    logger.metrics({"step": 10, **training})
    logger.metrics({"step": 10, "valid/contrastive_loss": 6.25, "valid/wer": 0.5})
    logger.metrics({"step": 30, **training, "new_number": 3})
    board = tmp_path / "tensorboard"
    assert points(board / "train", "loss/contrastive_loss") == [(10, 6.5), (30, 6.5)]
    assert points(board / "valid", "loss/contrastive_loss") == [(10, 6.25)]
    assert points(board / "valid", "errors/wer") == [(10, 0.5)]
    assert points(board / "train", "speed/seconds_per_step") == [(10, 2.0), (30, 1.0)]
    assert points(board / "train", "data/wait_fraction")[0][1] == pytest.approx(0.05)
    assert points(board / "train", "speed/audio_hours_per_second")[0][1] == pytest.approx(0.025)
    assert points(board / "train", "other/new_number") == [(30, 3.0)]
    (first, _) = read_board(board / "train").Scalars("optim/lr")
    logged = read_jsonl(tmp_path / "metrics.jsonl")
    assert first.wall_time == pytest.approx(logged[0]["time"], abs=1e-3)
    assert [*logged[1]] == ["step", "valid/contrastive_loss", "valid/wer", "time"]


def test_what_an_attempt_logged_after_its_checkpoint_is_taken_back(
    tmp_path: Path, logger: RunLogger
) -> None:
    """Also where the next attempt ends before it logs anything, and for validation."""
    for after, steps in ((0, (10, 20, 30)), (20, ()), (10, (20, 30, 40))):
        logger.begin(after, {})
        for step in steps:
            logger.metrics({"step": step, "loss": float(100 * after + step)})
            logger.metrics({"step": step, "valid/loss": float(100 * after + step)})
    for name in ("train", "valid"):
        expected = [(10, 10.0), (20, 1020.0), (30, 1030.0), (40, 1040.0)]
        assert points(tmp_path / "tensorboard" / name, "loss/loss") == expected


def test_a_validation_that_is_owed_is_shown_once(tmp_path: Path, logger: RunLogger) -> None:
    """A signal came in the second set, after the first one's table; the first repetition was lost
    too, since a kill came before the next save."""
    logger.begin(0, {})
    logger.metrics({"step": 10, "loss": 1.0})
    logger.table("first", "hypotheses", 10, [["utterance"], ["signalled"]])
    for attempt in ("killed", "last"):
        logger.begin(10, {}, owed=True)
        for name in ("first", "second"):
            logger.table(name, "hypotheses", 10, [["utterance"], [attempt]])
        logger.metrics({"step": 10, "first/loss": 1.0, "second/loss": 2.0})
    logger.begin(10, {})
    board = tmp_path / "tensorboard"
    for name, loss in (("train", 1.0), ("first", 1.0), ("second", 2.0)):
        assert points(board / name, "loss/loss") == [(10, loss)]
    for name in ("first", "second"):
        served = plugin_event_accumulator.EventAccumulator(str(board / name)).Reload()
        (table,) = served.Tensors("hypotheses/text_summary")
        assert b"last" in table.tensor_proto.string_val[0]


def test_a_recording_is_heard_once_a_start(tmp_path: Path, logger: RunLogger) -> None:
    assert not logger.listens
    logger.begin(0, {})
    logger.listen(1, None)  # an empty slot: the next one
    assert logger.listens
    logger.listen(2, 3 * torch.sin(torch.arange(160_000) / 10))
    assert not logger.listens
    logger.listen(3, torch.zeros(100))
    (clip,) = read_board(tmp_path / "tensorboard" / "train").Audio("data/recording")
    assert (clip.step, clip.sample_rate) == (2, 16_000)
    assert clip.length_frames == LONGEST_S * 16_000
    assert len(clip.encoded_audio_string) < 170_000


def test_a_table_says_what_the_texts_say(tmp_path: Path, logger: RunLogger) -> None:
    logger.begin(0, {})
    odd = "a|b *c* <script>x</script> `d` [e](f) & # \\| g\nh"
    rows = [("reference", "hypothesis"), (odd, "w" * 1000), ("", "_x_")]
    logger.table("valid", "hypotheses", 5, rows)
    summary = "hypotheses/text_summary"
    (event,) = read_board(tmp_path / "tensorboard" / "valid").Tensors(summary)
    assert event.step == 5
    page = markdown_to_safe_html(event.tensor_proto.string_val[0])
    assert "<td>a|b *c* &lt;script&gt;x&lt;/script&gt; `d` [e](f) &amp; # \\| g h</td>" in page
    assert f"<td>{'w' * 300}…</td>" in page
    assert page.count("<td>") == 4
    assert page.count("<th>") == 2
    assert markdown_table([("a", "b", "c")]).splitlines()[1] == "|-|-|-|"


def test_hyperparameters_are_of_the_run_itself(tmp_path: Path, logger: RunLogger) -> None:
    values = {"seed": 1, "schedule.name": "linear", "data.valid": None, "model.x": [0.9, 1.0]}
    logger.begin(0, values | {"model.norm_first": True})
    logger.finished(7)
    contents = read_board(tmp_path / "tensorboard").summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        contents[metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert start.hparams["seed"].number_value == 1
    assert start.hparams["schedule.name"].string_value == "linear"
    assert start.hparams["data.valid"].string_value == "None"
    assert start.hparams["model.x"].string_value == "[0.9, 1.0]"
    assert metadata.SESSION_END_INFO_TAG in contents
    assert metadata.EXPERIMENT_TAG not in contents  # it would hide other runs' columns
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["event"] == "finished"
