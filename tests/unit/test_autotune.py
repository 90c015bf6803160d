"""launch/submit.py --autotune: what is tried, what is pruned and why, and what is written."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.submit import main
from tests.distributed.processes import MODEL
from w2v2dist.config import to_yaml
from w2v2dist.jobs import autotune, candidates
from w2v2dist.jobs.candidates import Candidate, Predicted, all_candidates, present, prune
from w2v2dist.jobs.local import EXIT_TIMEOUT, run_local
from w2v2dist.jobs.measure import measured_config, random_batch, shape
from w2v2dist.tasks.train import read_config

ROOT = Path(__file__).parents[2]
BASE, LARGE = str(ROOT / "configs/base_ls960.yaml"), str(ROOT / "configs/large_lv60k.yaml")
GIB = 2**30
SMALL = {"activation_checkpointing": False, "compile": False, "zero_stage": 1}


def tiny(folder: Path, task: str = "pretrain", **data: Any) -> Path:
    """A configuration whose steps take a fraction of a second, without shards."""
    config = read_config(BASE if task == "pretrain" else FINETUNE, [])
    model = dataclasses.replace(config.model, **MODEL)
    values = {"virtual_world_size": 2, "max_samples_per_slot": 32_000, "max_crop": 16_000}
    values |= {"min_samples": 8_000, "crop_multiple": 1, **data}
    config = dataclasses.replace(
        config,
        run_dir=str(folder / "run"),
        model=model,
        data=dataclasses.replace(config.data, **values),
        engine=dataclasses.replace(config.engine, precision="fp32"),
        loop=dataclasses.replace(config.loop, num_threads=1),
    )
    path = folder / "tiny.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


FINETUNE = str(ROOT / "configs/finetune/base_100h.yaml")


def test_candidates_of_a_new_run_and_of_one_that_has_begun() -> None:
    config = read_config(BASE, [])  # 1.4 M samples a slot, crops of 250,000
    new = all_candidates(config, 8, new_run=True)
    assert new[0] == present(config) == Candidate(**SMALL)
    assert len({*new}) == len(new)
    assert {c.split for c in new} == {1, 2, 4}
    assert {c.zero_stage for c in new} == {1, 2, 3}  # stage 0 runs as 1 in 16 bits
    assert not [c for c in new if c.compile and c.zero_stage == 3]
    assert {c.split for c in all_candidates(config, 8, new_run=False)} == {1}
    fp32 = read_config(BASE, ["engine.precision=fp32", "engine.zero_stage=2"])
    assert {c.zero_stage for c in all_candidates(fp32, 8, new_run=True)} == {0, 1, 2, 3}
    assert {c.zero_stage for c in all_candidates(fp32, 1, new_run=True)} == {0, 2}


def test_overrides_are_what_differs_and_make_the_same_audio_a_step() -> None:
    config = read_config(LARGE, [])
    assert present(config).overrides(config) == {}
    for candidate in all_candidates(config, 8, new_run=True):
        found = candidate.overrides(config)
        other = read_config(LARGE, [*autotune.words(found)])
        assert dataclasses.replace(present(other), split=candidate.split) == candidate
        audio = other.data.virtual_world_size * other.data.max_samples_per_slot
        assert audio == config.data.virtual_world_size * config.data.max_samples_per_slot
        assert other.data.max_samples_per_slot >= other.data.max_crop
        rows, samples = shape(other.data)
        assert samples <= other.data.max_crop
        assert 0.98 < rows * samples / other.data.max_samples_per_slot <= 1


def test_pruning_names_its_reasons() -> None:
    config = read_config(BASE, [])
    now = present(config)
    large = dataclasses.replace(now, zero_stage=2)  # too large
    slow = dataclasses.replace(now, activation_checkpointing=True)
    fast = dataclasses.replace(now, compile=True)
    slow_fast = dataclasses.replace(slow, compile=True)
    predicted = {
        now: Predicted(1.0, 50 * GIB),
        large: Predicted(0.5, 100 * GIB),
        slow: Predicted(1.3, 20 * GIB),
        fast: Predicted(0.4, 50 * GIB),
        slow_fast: Predicted(0.5, 20 * GIB),
    }
    kept, pruned = prune(config, predicted, 58 * GIB, 8)
    # The best compiled one does not make the others slow: what a compiler gains is uncertain
    assert kept == [now, fast, slow_fast]
    assert pruned[large] == "would need 100.0 GiB of 58.0"
    assert pruned[slow] == "predicted 30% slower than the best"
    kept, pruned = prune(config, predicted, 58 * GIB, 2)
    assert kept == [now, fast]
    assert pruned[slow_fast] == "others promise more"
    kept, _ = prune(config, predicted, 20 * GIB, 8)  # the others would need twice as much
    assert kept == [slow, slow_fast]
    with pytest.raises(ValueError, match=r"nothing fits.* has 10.0 GiB.*lower data.max_crop"):
        prune(config, predicted, 10 * GIB, 8)
    _, pruned = prune(config, predicted, 130 * GIB, 8)
    assert pruned[slow] == pruned[slow_fast] == "computes layers twice, and fits without"
    unknown = {c: Predicted(float("nan"), 0.0) for c in predicted}
    assert len(prune(config, unknown, GIB, 8)[0]) == 5


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_the_random_batch_is_full_and_usable(task: str, tmp_path: Path) -> None:
    config = measured_config(read_config(str(tiny(tmp_path, task)), []))
    batch = random_batch(config, 0)
    assert not batch.bad
    assert tuple(batch.waveforms.shape) == shape(config.data) == (2, 16_000)
    assert batch.num_targets > 0
    assert (batch.num_samples is None) == (task == "pretrain")
    assert config.model.layer_drop == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(ROOT / "configs/lm/tiny.yaml")], "--autotune measures trainings on audio"),
        ([str(ROOT / "configs/unsupervised/v1.yaml")], "task is unsupervised, but --autotune"),
        ([BASE, "--autotune-minutes", "0"], "--autotune-minutes is 0"),
        ([BASE, "--autotune-minutes", "nan"], "--autotune-minutes is nan but must be above 0"),
        ([BASE, "--autotune-minutes", "inf"], "--autotune-minutes is inf but must be above 0"),
        ([BASE, "--output", str(ROOT)], "is a folder: name a file in it"),
        ([BASE, "--output", f"{__file__}/found.yaml"], "is no folder: name another place"),
        ([BASE, f"run_dir={__file__}/run"], f"{__file__} is a file: choose another run_dir"),
        ([BASE, "--processes", "0"], "--processes is 0 but this machine has"),
        ([BASE, "--processes", "10000"], "--processes is 10000 but this machine has"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--autotune", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output=found.yaml", "--autotune-minutes=3"])
def test_options_of_a_search_without_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, BASE, "--dry-run"])
    assert f"{option.split('=')[0]} is of --autotune, which is not given" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--local", BASE, f"run_dir={__file__}/run"]) == 2
    assert f"but {__file__} is a file: choose another run_dir" in capsys.readouterr().err


def test_what_is_found_does_not_replace_what_it_was_read_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that was found before, and one whose base it is, are tuned again: a file that
    is its own base could not be read any more."""
    before = tiny(tmp_path)
    found = tmp_path / "run/autotune.yaml"
    found.parent.mkdir()
    found.write_text(text := f"base: {before}\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("base: run/autotune.yaml\n", encoding="utf-8")
    for given in (found, tmp_path / "other.yaml"):
        assert main(["--autotune", str(given)]) == 2
        printed = capsys.readouterr().err
        assert f"would be written over {found}, which the configuration is read from" in printed
    assert main(["--autotune", str(before), "--output", str(before)]) == 2
    assert "give another file with --output" in capsys.readouterr().err
    assert found.read_text() == text


def test_a_measurement_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    config, output = tiny(tmp_path), tmp_path / "logs" / "measured.json"
    arguments = [str(config), "--output", str(output)]
    begin = time.monotonic()
    code = run_local(
        arguments, tmp_path / "logs", 2, module="w2v2dist.jobs.measure", quiet=True, timeout_s=0.5
    )
    assert code == EXIT_TIMEOUT
    assert time.monotonic() - begin < 60
    assert not output.exists()


def test_out_of_memory_is_a_result(tmp_path: Path) -> None:
    """A micro-batch of 8 GB of audio in a process that may have 3 GiB."""
    config = tiny(tmp_path, max_samples_per_slot=2_000_000_000, max_crop=2_000_000_000)
    logs = tmp_path / "logs"
    arguments = [str(config), "--output", str(logs / "m.json"), "--memory", str(3 * GIB)]
    code = run_local(arguments, logs, 1, module="w2v2dist.jobs.measure", quiet=True)
    assert code == errno.ENOMEM, (logs / "rank_0.log").read_text()
    assert (logs / "m.oom").exists()
    assert not (logs / "m.json").exists()


def two_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present settings and a split in two, instead of all: each takes seconds to start."""

    def two(config: Any, num_processes: int, *, new_run: bool) -> list[Candidate]:
        now = present(config)
        return [now, dataclasses.replace(now, split=2)] if new_run else [now]

    monkeypatch.setattr(autotune, "all_candidates", two)
    monkeypatch.setattr(candidates, "SLACK", 100.0)  # whatever is predicted, both are measured


def test_what_is_concluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The faster by the median and by the fastest step wins; what had no time is said."""

    def three(config: Any, num_processes: int, *, new_run: bool) -> list[Candidate]:
        now = present(config)
        return [now, *(dataclasses.replace(now, split=2, compile=c) for c in (False, True))]

    monkeypatch.setattr(autotune, "all_candidates", three)
    monkeypatch.setattr(candidates, "SLACK", 100.0)
    path = tiny(tmp_path, max_samples_per_slot=64_000)
    search = autotune._Search(autotune.Tuning(config_path=str(path)))
    search.kept = [*search.results]
    now, by_median, by_both = (search.results[c] for c in search.kept)
    now.step_seconds = [0.8, 1.0, 1.0]
    by_median.step_seconds = [0.79, 0.79, 0.79]
    by_both.problem = autotune.NO_TIME
    assert search.conclude(False) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 candidates were not measured: give more --autotune-minutes" in printed
    assert "nothing surely beats the present settings by more than 3%, by its median" in printed
    assert not (tmp_path / "run/autotune.yaml").exists()
    by_both.step_seconds, by_both.problem = [0.7, 0.85, 0.85], ""
    assert search.conclude(False) == 0
    printed = capsys.readouterr().out
    assert "1.14 x as fast as the present settings" in printed
    assert "not measured" not in printed
    assert read_config(str(tmp_path / "run/autotune.yaml"), []).engine.compile
    for result in (now, by_median, by_both):
        result.step_seconds, result.problem = [], "failed: RuntimeError: of no time"
    assert search.conclude(False) == 1
    assert "nothing could be measured: the table says why" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_real_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("w2v2dist.jobs.roofline")
    two_candidates(monkeypatch)
    monkeypatch.setattr(autotune, "NOISE", 0.0)  # whichever is faster is written
    config = tiny(tmp_path, max_samples_per_slot=64_000)
    arguments = ["--autotune", "--autotune-minutes", "20", str(config), "loop.max_steps=7"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "holds for this CPU" in printed
    assert "as it is" in printed
    assert "micro-batches / 2" in printed
    assert not (tmp_path / "run" / "config.yaml").exists()
    written = tmp_path / "run" / "autotune.yaml"
    logs = sorted((tmp_path / "run/logs/autotune").glob("*/measured.json"))
    assert len(logs) == 2
    for log in logs:
        measured = json.loads(log.read_text())
        assert len(measured["step_seconds"]) == autotune.FIRST_STEPS
        assert min(measured["step_seconds"]) > 0
        assert measured["memory_bytes"] > 100 * 2**20
    if "nothing surely beats" in printed:
        assert not written.exists()
        return
    config_found = read_config(str(written), [])
    assert config_found.loop.max_steps == 7
    assert config_found.data.virtual_world_size == 4
    assert "submit.py in place of CONFIG" in printed


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("w2v2dist.jobs.roofline")
    command = [sys.executable, "launch/submit.py", "--autotune", str(tiny(tmp_path))]
    search = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "run/logs/autotune/as-it-is/rank_0.log"
    while not log.exists():
        assert search.poll() is None
        time.sleep(0.2)
    search.send_signal(signal.SIGINT)
    printed = search.communicate(timeout=120)[0]
    assert search.returncode == autotune.EXIT_INTERRUPTED
    assert "interrupted before anything was measured" in printed
    named = str(tmp_path).encode()
    left = [
        p.name
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and named in _command(p) and int(p.name) != os.getpid()
    ]
    assert left == []


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
