"""A sweep: its cells, what they may be, and how they run here."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from launch import submit
from tests.gan_data import write_gan_config, write_language
from w2v2dist.config import ConfigError
from w2v2dist.jobs.cluster import ClusterConfig
from w2v2dist.jobs.sweep import fitting, make_array, missing, read_sweep
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training import lock

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_language(tmp_path_factory.mktemp("language"))


def write_sweep(folder: Path, data: dict[str, Any], **values: Any) -> Path:
    config = write_gan_config(folder, data, **values.pop("training", {}))
    grid = {"losses.penalty_weight": [1.5, 2], "losses.diversity_weight": [0, 4]}
    sweep = {"config": config.name, "run_dir": str(folder / "sweep"), "grid": grid, "seeds": [1, 2]}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**sweep, **values}, sort_keys=False))
    return path


def test_cells_are_the_grid_and_its_seeds(data: dict[str, Any], tmp_path: Path) -> None:
    sweep = read_sweep(str(write_sweep(tmp_path, data)), ["loop.max_steps=4"])
    assert len(sweep.cells) == 8
    assert sweep.cells[0].name == "penalty_weight_1.5-diversity_weight_0-seed_1"
    points = [
        (c.config.losses.penalty_weight, c.config.losses.diversity_weight, c.config.seed)
        for c in sweep.cells
    ]
    assert points == [(p, d, s) for p in (1.5, 2.0) for d in (0.0, 4.0) for s in (1, 2)]
    for cell in sweep.cells:
        assert cell.folder == tmp_path / "sweep" / cell.name
        assert cell.config.loop.max_steps == 4
        assert not cell.is_finished
    moved = read_sweep(str(tmp_path / "sweep.yaml"), [f"run_dir={tmp_path / 'elsewhere'}"])
    assert moved.folder == tmp_path / "elsewhere"


@pytest.mark.parametrize(("name", "number"), [("sweep_v1", 40), ("sweep_v2", 64)])
def test_the_papers_grids(name: str, number: int) -> None:
    sweep = read_sweep(str(CONFIGS / "unsupervised" / f"{name}.yaml"), [])
    assert len(sweep.cells) == number
    steps = {cell.config.loop.max_steps for cell in sweep.cells}
    assert steps == {150_000}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"grid": {"losses.penalty": [1]}},
            r"cell penalty_1-seed_1 .* did you mean losses.penalty_",
        ),
        ({"grid": {"losses.penalty_weight": 3}}, "losses.penalty_weight is 3 but must be a list"),
        ({"grid": {"losses.penalty_weight": []}}, r"is \[\] but must be a list of one value"),
        ({"grid": {"losses.penalty_weight": [1, 1]}}, "must not name a value twice"),
        ({"seeds": []}, r"seeds is \[\] but must be a list"),
        ({"grid": {"seed": [1, 2]}}, r"grid has seed, which it cannot vary: use seeds"),
        ({"grid": {"run_dir": ["a"]}}, "grid has run_dir, which it cannot vary"),
        ({"config": "nowhere.yaml"}, r"nowhere.yaml does not exist"),
        ({"grd": {}}, "grd is not a configuration key; did you mean grid"),
        (
            {"grid": {"losses.penalty_weight": [-1]}},
            "penalty_weight is -1.0 but must be",
        ),
        (
            {"grid": None},
            r"sweep .*sweep.yaml: grid is None but must be a mapping; a sweep has lists",
        ),
        (
            {"seeds": 0},
            r"sweep .*sweep.yaml: seeds is 0 but must be a list; a sweep has lists, as in",
        ),
        (
            {"grid": {"losses.penalty_weight": [1, 1.0]}, "seeds": [1]},
            r"cells penalty_weight_1-seed_1 and penalty_weight_1.0-seed_1 are the same training: "
            r"nothing .* depends on losses.penalty_weight \(1 or 1.0\); leave one of the values",
        ),
        ({"grid": {"data.num_workers": [0, 2]}}, r"depends on data.num_workers \(0 or 2\); leave"),
        ({"grid": {"data.text": ["a/text", "a/./text"]}}, "are the same training"),
        ({"grid": {"alarms.min_text_likeness": [0, 0.5]}}, "are the same training"),
        ({"seeds": [*range(300)]}, "has 1200 cells, more than 1000"),
    ],
)
def test_files_that_cannot_be(
    data: dict[str, Any], tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(str(write_sweep(tmp_path, data, **values)), [])


def test_other_data_and_other_rollbacks_are_other_trainings(
    data: dict[str, Any], tmp_path: Path
) -> None:
    grid = {"data.text": ["a", "b"], "alarms.rollback_steps": [5, 10]}
    path = str(write_sweep(tmp_path, data, grid=grid))
    with pytest.raises(ConfigError, match=r"depends on alarms.rollback_steps"):
        read_sweep(path, [])
    assert len(read_sweep(path, ["alarms.on_alarm=rollback"]).cells) == 8


def test_what_the_command_line_may_not_change(data: dict[str, Any], tmp_path: Path) -> None:
    path = str(write_sweep(tmp_path, data))
    for text in ("seed=3", "losses.penalty_weight=9"):
        with pytest.raises(ConfigError, match="is of the sweep's grid: change it in"):
            read_sweep(path, [text])


@pytest.mark.parametrize("where", ["--local", "--dry-run"])
@pytest.mark.parametrize("below", ["", "/x"])
def test_a_file_in_the_place_of_the_folder(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str, where: str
) -> None:
    (tmp_path / "t.txt").touch()
    sweep = write_sweep(tmp_path, data, run_dir=f"{tmp_path}/t.txt{below}")
    assert submit.main([where, "--sweep", str(sweep)]) == 2
    message = f"run_dir needs the folder {tmp_path}/t.txt{below}, but {tmp_path}/t.txt is a file"
    assert message in capsys.readouterr().err


def test_any_training_can_be_swept(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    grid = {"data.units": ["words", "characters"], "model.cutoffs": [[], [10, 20]]}
    config = str(CONFIGS / "lm" / "tiny.yaml")
    values = {"config": config, "run_dir": str(tmp_path), "grid": grid}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    sweep = read_sweep(str(path), [])
    assert [cell.config.data.units for cell in sweep.cells] == ["words"] * 2 + ["characters"] * 2
    assert [cell.config.model.cutoffs for cell in sweep.cells][:2] == [(), (10, 20)]
    assert [c.name for c in sweep.cells][1] == "units_words-cutoffs_10_20-seed_1"
    assert fitting(sweep, ClusterConfig()) == ClusterConfig()  # whole nodes


def test_an_array_of_single_processes_shares_nodes(data: dict[str, Any], tmp_path: Path) -> None:
    sweep = read_sweep(str(write_sweep(tmp_path, data)), [])
    cluster = fitting(sweep, ClusterConfig(tasks_per_node=8))
    assert cluster.num_tasks_per_node == cluster.gpus_per_node == 1
    array = make_array(sweep, cluster, "1", 90)
    script = array.script()
    assert "--dependency" not in script  # the tasks would wait for each other
    assert "--exclusive" not in script
    assert "SBATCH --mem" not in script
    assert "--requeue" in script
    assert "--gpus-per-node=1" in script


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in read_jsonl(folder / "metrics.jsonl") if "loss" in r]


def test_a_sweep_here_goes_on_where_it_was(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that cannot train does not keep the others from it, and the same command trains what
    is missing."""
    grid = {"data.batch_size": [8, 41]}
    path = str(write_sweep(tmp_path, data, grid=grid, seeds=[1]))
    assert submit.main(["--local", "--sweep", path, "--at-once", "2"]) == 1
    said = capsys.readouterr().out
    assert "batch_size_8-seed_1: finished" in said
    assert "batch_size_41-seed_1: failed (exit status 2), see" in said
    log = tmp_path / "sweep" / "batch_size_41-seed_1" / "logs" / "here.log"
    assert "has 40 usable utterances of 40 but data.batch_size is 41" in log.read_text()
    assert len(losses(tmp_path / "sweep" / "batch_size_8-seed_1")) == 6
    names = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["cells"]
    assert names == ["batch_size_8-seed_1", "batch_size_41-seed_1"]
    write_sweep(tmp_path, data, grid={"data.batch_size": [8, 16]}, seeds=[1])
    assert submit.main(["--local", "--sweep", path]) == 0
    said = capsys.readouterr().out
    assert "2 cells, 1 of them finished" in said
    assert "batch_size_8-" not in said
    assert submit.main(["--local", "--sweep", path]) == 0
    assert capsys.readouterr().out == "2 cells, 2 of them finished\n"


def test_a_signal_lets_cells_save(data: dict[str, Any], tmp_path: Path) -> None:
    training = {"loop": {"max_steps": 200_000, "validate_every": 200_000, "save_every": 100_000}}
    path = write_sweep(tmp_path, data, grid={}, seeds=[1, 2], training=training)
    command = [sys.executable, "launch/submit.py", "--local", "--sweep", str(path)]
    root = Path(__file__).parents[2]
    cell = tmp_path / "sweep" / "seed_1"
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not losses(cell) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "seed_1: saved on a signal" in said
    assert "seed_2" not in said
    events = [e["event"] for e in read_jsonl(cell / "events.jsonl")]
    assert "preempted" in events
    assert list((cell / "checkpoints").glob("step_*"))


def test_a_signal_while_a_cell_is_being_started(data: dict[str, Any], tmp_path: Path) -> None:
    """It has nothing to save yet, and has not failed."""
    path = write_sweep(tmp_path, data, grid={}, seeds=[1, 2])
    command = [sys.executable, "launch/submit.py", "--local", "--sweep", str(path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "2 cells, 0 of them finished\n"
        assert process.stdout.readline() == "seed_1: begins\n"
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said == "seed_1: ended by the signal before it began\n"


@pytest.mark.parametrize("squeue", ["", "exit 1", "echo 77_2\\|RUNNING\\|None"])
def test_cells_are_not_submitted_twice(
    squeue: str,
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where Slurm cannot say which of them wait or run: then none is."""
    path = write_sweep(tmp_path, data)
    names = [cell.name for cell in read_sweep(str(path), []).cells]
    log = tmp_path / "sweep" / "logs" / "submitted.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"job": "77", "cells": names}) + "\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    # Slurm's commands are stand-ins; sbatch takes nothing
    for name, command in {"sbatch": "exit 1", **({"squeue": squeue} if squeue else {})}.items():
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin" if squeue else str(tools))
    before = log.read_text()
    if squeue.startswith("echo"):
        left = missing(read_sweep(str(path), []))
        assert [cell.name for cell in left.cells] == [n for n in names if n != names[2]]
        assert (left.num_finished, left.num_queued) == (0, 1)
    else:
        assert submit.main(["--sweep", str(path)]) == 2
        assert "squeue does not answer here" in capsys.readouterr().err
        assert not (tmp_path / "sweep" / "sweep.json").exists()
    assert log.read_text() == before


@pytest.mark.parametrize("where", [[], ["--local"]], ids=["slurm", "here"])
def test_two_submitters_at_once(
    where: list[str],
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second one would find the same cells missing as the first, which has not said yet what it
    submits."""
    path, tools = write_sweep(tmp_path, data), tmp_path / "bin"
    tools.mkdir()
    called = tmp_path / "called"
    (tools / "sbatch").write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin")
    hold = "import sys, time; from w2v2dist.training.lock import locked; from pathlib import Path\n"
    hold += f"with locked(Path({str(tmp_path / 'sweep')!r})): print('held', flush=True); "
    hold += "time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    clock = SimpleNamespace(monotonic=itertools.count(0, 200).__next__, sleep=lambda seconds: None)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with monkeypatch.context() as patch:
            patch.setattr(lock, "time", clock)  # nobody waits
            assert submit.main([*where, "--sweep", str(path)]) == 1
        said = capsys.readouterr()
        assert f"is in use by process {process.pid} on" in said.err
        assert said.out == ""
        assert [p.name for p in (tmp_path / "sweep").iterdir()] == ["lock"]
        assert not called.exists()
    finally:
        process.kill()
        process.wait()
    if not where:  # then it is the next one's turn
        assert submit.main(["--sweep", str(path)]) == 1
        assert "sbatch refused the array" in capsys.readouterr().err
        assert called.exists()


def test_options_that_do_not_go_together(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_sweep(tmp_path, data))
    for options, message in (
        (["--autotune"], "--sweep and --autotune cannot be given together"),
        (["--local", "--at-once", "0"], "--at-once is 0 but must be at least 1"),
        (["--local", "--processes", "2"], "data.virtual_world_size is 1"),
    ):
        assert submit.main(["--sweep", path, *options]) == 2
        assert message in capsys.readouterr().err
    assert submit.main(["--sweep", path, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "8, 0 finished, 48 steps in all" in out
    assert not (tmp_path / "sweep").exists()
