"""What of a folder of runs cannot be read, has vanished or is there twice hides nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report_runs import evaluation, finetuning
from tests.run_logs import append, make_run
from w2v2dist.cli import main
from w2v2dist.reporting import runs, status
from w2v2dist.reporting.follow import Watch
from w2v2dist.reporting.report import write_report
from w2v2dist.tasks import pretrain as pretrain  # now: later nobody imports it

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may enter."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Modes say nothing to root."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(own)


@contextlib.contextmanager
def locked_away(path: Path) -> Iterator[None]:
    """As another user meets what its owner alone may read."""
    mode = path.stat().st_mode
    path.chmod(0o000)
    try:
        with as_nobody():
            yield
    finally:
        path.chmod(mode)


@pytest.mark.parametrize("part", ["", "metrics.jsonl", "config.yaml", "checkpoints"])
def test_a_run_that_cannot_be_read_hides_no_other(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    (make_run(folder / "a", host="another") / "checkpoints").mkdir()
    make_run(folder / "b", host="another")
    watch = Watch(folder)
    with locked_away(folder / "a" / part):
        assert main(["status", str(folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [s["run"] for s in found] == [str(folder / "a"), str(folder / "b")]
        assert "Permission denied" in found[0]["problem"]
        assert [s["problem"] for s in found[1:]] == [None]
        assert [s["step"] for s in found][1] == 30
        expected = "running" if part == "config.yaml" else "unreadable"
        assert [s["state"] for s in watch.update()] == [expected, "running"]
        assert main(["status", str(folder)]) == 0
        _, first, second = capsys.readouterr().out.splitlines()
        assert re.match(rf"a +{expected} ", first)
        assert "6.000 bits" in second
        assert ("Permission denied" in first) == (expected == "unreadable")
        assert main(["status", str(folder / "a")]) == 0
        assert "problem " in capsys.readouterr().out
    assert [(s["state"], s["step"]) for s in watch.update()] == [("running", 30)] * 2
    with locked_away(folder / "a" / part):  # what is known stays
        assert [s["step"] for s in watch.update()] == [30, 30]


@pytest.mark.parametrize("part", ["", "metrics.jsonl", "config.yaml", "checkpoints"])
def test_a_report_shows_the_others_and_says_why_not_all(folder: Path, part: str) -> None:
    (make_run(folder / "a") / "checkpoints").mkdir()
    make_run(folder / "b")
    output = folder / "out" / "report.html"
    output.parent.mkdir(mode=0o777)
    output.parent.chmod(0o777)
    with locked_away(folder / "a" / part):
        found, _ = runs.find_runs([folder])
        page = write_report(found, output).read_text()
    assert ">a</bdi>" in page
    assert ">b</bdi>" in page
    assert ("cannot be read: [Errno 13]" in page) == (part != "checkpoints")


def test_evaluations_whose_files_cannot_be_read(
    folder: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetuning(folder / "run", [0.5])
    made = evaluation(run / "evaluations" / "greedy", shards, wrong=2)
    (folder / "shards").mkdir()
    about = json.loads((made / "evaluation.json").read_text())
    output = folder / "report.html"
    folder.chmod(0o777)
    for data in (str(folder / "shards" / "dev"), "x" * 300):  # no file has so long a name
        (made / "evaluation.json").write_text(json.dumps({**about, "data": data}))
        with locked_away(folder / "shards"):
            page = write_report([run], output).read_text()
        assert "Utterances with the most errors (10)" in page
    with locked_away(made / "hypotheses.jsonl"):
        page = write_report([run], output).read_text()
    assert "hypotheses.jsonl cannot be read: [Errno 13] Permission denied" in page
    assert "Utterances with the most errors" not in page


def test_steps_without_an_end_end_no_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (make_run(tmp_path / "a") / "config.yaml").write_text("loop: {max_steps: .inf}\n")
    assert main(["status", str(tmp_path)]) == 0
    assert "a    " in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_run_that_vanishes_ends_its_view(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", host="another")
    command = [sys.executable, "-m", "w2v2dist.cli", "status", str(run), "--follow", *options]
    with subprocess.Popen([*command, "--interval", "0.1"], stdout=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout is not None
            it.stdout.readline()
            shutil.rmtree(run)
            rest, _ = it.communicate(timeout=120)
        finally:
            it.kill()
    assert it.returncode == 0
    assert ("is gone" in rest) == (not options)
    assert "new" not in rest


def test_of_several_runs_one_that_vanishes_is_dropped(tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name, host="another")
    watch = Watch(tmp_path)
    assert len(watch.update()) == 2
    shutil.rmtree(tmp_path / "a")
    assert [s["run"] for s in watch.update()] == [str(tmp_path / "b")]
    assert not watch.gone
    shutil.rmtree(tmp_path / "b")
    assert watch.update() == []
    assert "holds no run yet" in watch.waiting()


def test_links_multiply_no_run(tmp_path: Path) -> None:
    inside = [make_run(tmp_path / name) for name in ("base", "more/tuned")]
    for run in inside:
        append(run, "events", {"event": "note"})
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "a_latest").symlink_to("more/tuned")
    (tmp_path / "more" / "back").symlink_to("..")
    (tmp_path / "itself").symlink_to("itself")
    assert status.find_runs(tmp_path) == inside
    found, left_out = runs.find_runs([tmp_path, tmp_path / "a_latest", inside[0]])
    assert (sorted(found), left_out) == (inside, 0)
    outside = tmp_path / "by_hand"
    outside.mkdir()
    (outside / "best").symlink_to(inside[0])
    assert status.find_runs(outside) == [outside / "best"]  # a link alone counts
