"""make gpu: stages that leave JSON, are skipped where they have it, and fail by themselves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu_page import BODIES, page
from benchmarks.gpu_stages import STAGES, Kit
from benchmarks.machine import ROOT


def records(folder: Path) -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}


def test_a_stage_with_a_result_is_skipped_and_one_that_overran_is_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["machine", "--tiny", "--output", str(out)]
    assert gpu.main([*arguments, "--limit", "0.2"]) == 1
    failed = records(out)["machine"]
    assert (failed["status"], failed["reason"]) == ("failed", "it took more than 0.2 s")
    assert "failed: it took more than 0.2 s" in page(out)
    assert gpu.main(arguments) == 0  # a failure is no result
    done = records(out)["machine"]
    assert done["status"] == "done"
    assert done["result"]["cores"] >= 1
    assert gpu.main(arguments) == 0
    assert "has a result" in capfd.readouterr().out
    assert records(out)["machine"] == done
    assert gpu.main([*arguments, "--again", "--limit", "0.2"]) == 1  # a failure replaces no result
    assert "keeps the result before" in capfd.readouterr().out
    assert records(out)["machine"] == done
    assert records(out)["machine.failed"]["reason"] == "it took more than 0.2 s"
    text = page(out)
    assert done["machine"]["commit"] in text
    for stage in set(STAGES) - {"machine"}:  # what is missing, and what brings it
        assert f"| {stage} | not run | `python benchmarks/gpu.py {stage} --output out` |" in text
    assert not list(out.glob("*.part"))


def test_a_stage_that_raises_leaves_the_reason_and_the_end_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "input"
    broken.mkdir()  # without recordings
    out = tmp_path / "out"
    assert gpu.main(["loader", "--tiny", "--output", str(out), "--input", str(broken)]) == 1
    found = records(out)["loader"]
    assert found["status"] == "failed"
    assert "no shards could be made of" in found["reason"]
    assert "Traceback" in found["output_end"]
    assert f"--input {broken}" in found["command"]


def test_unknown_stages_and_empty_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["step_huge"])
    assert "no stage is called step_huge: choose from machine" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no result: run make gpu"):
        page(tmp_path)
    (tmp_path / "machine.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        page(tmp_path)
    assert not gpu.has_result(tmp_path / "machine.json", False)
    for text in ("{}", "[]", "1", '{"status": "done"}'):
        (tmp_path / "machine.json").write_text(text)
        with pytest.raises(ValueError, match=r"machine\.json is no stage's record .*--again"):
            page(tmp_path)
        assert not gpu.has_result(tmp_path / "machine.json", False)
    with pytest.raises(ValueError, match="is a file: give the folder"):
        page(tmp_path / "machine.json")
    assert set(BODIES) == set(STAGES)


def test_a_rehearsal_is_no_result_and_replaces_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "machine.json"
    path.write_text('{"status": "done", "tiny": true}')
    assert gpu.has_result(path, True)
    assert not gpu.has_result(path, False)
    path.write_text(real := '{"status": "done", "tiny": false}')
    assert gpu.main(["machine", "--tiny", "--again", "--output", str(tmp_path)]) == 1
    assert "give another --output" in capsys.readouterr().out
    assert path.read_text() == real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit is 0 but must be above 0"),
        (["--limit", "nan"], "--limit is nan but must be above 0"),
        (["--output", "file"], "file is no folder: name another place"),
        (["--output", "file/below"], "file is no folder: name another place"),
        (["--input", "missing"], "--input missing does not exist: name a folder of recordings"),
    ],
)
def test_options_that_would_fail_later_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        gpu.main(["machine", "--tiny", *arguments])
    assert message in capsys.readouterr().err


def test_recordings_are_those_of_the_callers_folder_and_others_are_other_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {Kit(output=tmp_path, tiny=True).shards_folder}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        args = gpu.parse_args(["loader", "--input", name])
        assert args.input == tmp_path / name  # a stage works in another folder
        folders.add(Kit(output=tmp_path, tiny=True, input=args.input).shards_folder)
    assert len(folders) == 3


def test_a_signal_ends_the_stage_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kit = subprocess.Popen(
        [sys.executable, "benchmarks/gpu.py", "machine", "--tiny", "--output", out],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    children = Path(f"/proc/{kit.pid}/task/{kit.pid}/children")
    while not (out / "machine.log").exists() or not (stage := children.read_text().strip()):
        assert kit.poll() is None
        time.sleep(0.05)
    kit.send_signal(signal.SIGTERM)
    assert "the same command goes on" in kit.communicate(timeout=60)[1]
    assert kit.returncode == 130
    assert not any(Path(f"/proc/{number}").exists() for number in stage.split())
    assert not (out / "machine.json").exists()


def test_a_page_of_another_stages_record_is_refused(tmp_path: Path) -> None:
    about = {"gpu": None, "date": "", "commit": "", "cpu": "", "cores": 1, "memory_gib": 1}
    about |= {"torch": "", "python": ""}
    record = {"status": "done", "tiny": True, "seconds": 1, "command": "", "notes": []}
    record |= {"machine": about, "result": {"cores": 1}}
    (tmp_path / "machine.json").write_text(json.dumps(record))
    assert "| cores | 1 |" in page(tmp_path)
    for stage in set(STAGES) - {"machine"}:
        (tmp_path / f"{stage}.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=rf"{stage}\.json lacks .*: run the stage again"):
            page(tmp_path)
        (tmp_path / f"{stage}.json").unlink()


@pytest.mark.slow
def test_the_rehearsal_and_its_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stages = ["machine", "tests", "decode", "loader", "profile"]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *stages, "--tiny", "--output", out],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert {r["status"] for r in records(out).values()} == {"done"}
    shown = subprocess.run(
        [sys.executable, "benchmarks/gpu_page.py", out],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "# A rehearsal of the GPU kit" in shown
    for heading in stages:
        assert f"## {heading}\n" in shown
    assert "| beam 50 with a small Transformer |" in shown
    assert "| train | not run |" in shown
