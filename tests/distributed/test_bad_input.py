"""What a user gets wrong, or a disk does: an error that names the thing and the remedy, and nothing
is lost."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import replace_audio, synthetic_shards
from tests.distributed.processes import (
    Process,
    event,
    finish,
    losses,
    samples,
    start,
    train,
    write_config,
)
from w2v2dist.cli import main
from w2v2dist.data.audio import to_flac
from w2v2dist.data.index import ShardIndex
from w2v2dist.reporting.status import read_status
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def fail(config: Path, *overrides: str) -> str:
    """Run a training that must stop with an error; returns what it printed."""
    codes, output = finish(start(config, 1, *overrides))
    assert codes[0] not in (0, 75), output[-3000:]
    return output


def test_a_missing_shard_is_named_by_every_rank(own_shards: Path, tmp_path: Path) -> None:
    shard = ShardIndex.load(own_shards).shard_path(0)
    shard.unlink()
    codes, output = finish(start(write_config(tmp_path, "pretrain", own_shards), 2, fresh=True))
    assert codes == [2, 2], output[-3000:]
    assert output.count(f"shard {shard} is missing: copy it again") == 2
    assert not (tmp_path / "run").exists()


def overwrite(shards: Path, row: int) -> None:
    """Damage the audio of one utterance in its shard; sizes stay the same."""
    index = ShardIndex.load(shards)
    with index.shard_paths[int(index.shard[row])].open("r+b") as file:
        file.seek(int(index.offset[row]) + 200)
        file.write(os.urandom(int(index.size[row]) - 400))


def planned(config: Path, capsys: pytest.CaptureFixture[str]) -> dict[tuple[int, int], Any]:
    """(step, slot) -> what `w2v2dist batches` says a run without faults uses in its 16 steps."""
    for step in range(1, 17):
        assert main(["batches", str(config), "--step", str(step)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {(r["step"], r["slot"]): r for r in records}


def by_first_use(used: dict[tuple[int, int], Any], index: ShardIndex) -> list[Path]:
    """The shards, first the one that one of two processes opens latest: its loss will be noticed
    (files that are open can be read on)."""
    shard_of = dict(zip(index.keys(), index.shard.tolist(), strict=True))
    first: dict[tuple[int, int], int] = {}  # shard, process -> step
    for (step, slot), record in used.items():
        for key in record["keys"]:
            place = shard_of[key], slot % 2
            first[place] = min(step, first.get(place, step))
    latest = {k: max(first.get((k, r), 0) for r in range(2)) for k in set(shard_of.values())}
    order = sorted(latest, key=lambda k: -latest[k])
    assert latest[order[1]] > 8
    return [index.shard_paths[k] for k in order]


def train_while(
    damage: Callable[[], None], config: Path, *overrides: str
) -> tuple[list[int | None], str]:
    """Exit codes and output of two processes; `damage` is done after their first step."""
    processes = start(config, 2, *overrides)
    metrics = config.parent / "run" / "metrics.jsonl"
    try:
        while not read_jsonl(metrics) and processes[0].poll() is None:
            time.sleep(0.01)
        damage()
    finally:
        codes, output = finish(processes)
    return codes, output


def test_every_kind_of_fault_is_skipped_and_logged_and_changes_no_other_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three shards fail while two processes train: one is deleted, one is cut, and reads of one
    never return. In another an utterance is corrupt, one is silent, and one has NaN."""
    folder = synthetic_shards(tmp_path / "shards", shard_mb="0.3")
    config = write_config(
        tmp_path,
        "pretrain",
        folder,
        model={"num_layers": 1},
        loop={"max_steps": 16, "save_every": 100},
        data={
            "valid": None,
            "prefetch": 1,
            "max_bad_samples": 100,
            "read_retries": 1,
            "read_timeout_s": 3,
        },
    )
    used, index = planned(config, capsys), ShardIndex.load(folder)
    deleted, stalled, cut, other, *_ = by_first_use(used, index)
    row = int(index.shard_first[index.shard_paths.index(other)])
    sizes = index.num_samples[row : row + 3]
    assert int(index.shard[row + 2]) == int(index.shard[row])
    overwrite(folder, row)
    replace_audio(folder, row + 1, to_flac(np.zeros(int(sizes[1]), np.float32)))
    wav = io.BytesIO()  # FLAC has no NaN
    soundfile.write(wav, np.full(int(sizes[2]), np.nan), 16_000, "FLOAT", format="WAV")
    replace_audio(folder, row + 2, wav.getvalue())

    def damage() -> None:
        deleted.unlink()
        os.truncate(cut, cut.stat().st_size // 3)
        os.mkfifo(folder / "fifo")  # opening it waits for a writer that never comes
        (folder / "fifo").replace(stalled)

    codes, output = train_while(damage, config)
    run = tmp_path / "run"
    assert codes == [0, 0], output[-3000:]

    skipped = [r for log in run.glob("logs/skipped-*.jsonl") for r in read_jsonl(log)]
    faults = {(Path(r["shard"]).name, re.sub(r"\d+", "N", r["reason"])) for r in skipped}
    expected = {
        (deleted.name, "cannot be read: No such file or directory"),
        (cut.name, "cannot be read: the shard ends N bytes before the end of the sample"),
        (stalled.name, "cannot be read: no answer within N s"),
        (other.name, "is silent: all N samples that are used are the same"),
        (other.name, "contains NaN or infinite samples"),
    }
    assert expected <= faults
    assert any("audio cannot be decoded" in r or "audio ends" in r for _, r in faults - expected)
    assert {name for name, _ in faults} == {p.name for p in (deleted, cut, stalled, other)}
    # What is left is exactly the run without faults, minus what the log names
    mine = samples(run)
    for (step, slot), whole in used.items():
        bad = {r["key"] for r in skipped if (r["step"], r["slot"]) == (step, slot)}
        kept = [i for i, key in enumerate(whole["keys"]) if key not in bad]
        if not kept:
            assert (step, slot) not in mine
            continue
        for column in ("keys", "starts", "num_samples", "speeds"):
            assert mine[step, slot][column] == [whole[column][i] for i in kept]
    status = read_status(run)
    assert status["skipped_utterances"] == len({r["key"] for r in skipped})
    assert status["slowest_rank"]["ratio"] >= 1
    assert status["step"] == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.on_read_error=stop"], "No such file or directory, and data.on_read_error is stop"),
        (
            ["data.max_bad_samples=3"],
            "the most frequent reason is 'cannot be read: No such file or directory' (",
        ),
    ],
)
def test_shards_lost_while_training_stop_all_processes_with_the_reason(
    own_shards: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    config = write_config(tmp_path, "pretrain", own_shards, loop={"max_steps": 1_000})

    def damage() -> None:
        for path in own_shards.glob("*.tar"):
            path.unlink()

    codes, output = train_while(damage, config, "data.read_retries=1", *overrides)
    assert codes == [2, 2], output[-3000:]
    assert output.count(message) == 2, output[-3000:]
    assert ".tar" in output


def test_what_validation_skips_is_logged_once(
    shards: Path, own_shards: Path, tmp_path: Path
) -> None:
    overwrite(own_shards, 0)
    loop = {"max_steps": 2, "validate_every": 1}
    train(write_config(tmp_path, "pretrain", shards, data={"valid": str(own_shards)}, loop=loop), 1)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert sum("valid/loss" in r for r in records) == 2
    skipped = read_jsonl(tmp_path / "run" / "logs" / "skipped-00000.jsonl")
    assert [r["key"] for r in skipped] == [ShardIndex.load(shards).key(0)]
    assert event(tmp_path / "run", "sample_skipped")["total"] == 1


def test_more_corrupt_utterances_than_allowed_stop_the_run(
    own_shards: Path, tmp_path: Path
) -> None:
    for row in range(0, 60, 2):
        overwrite(own_shards, row)
    output = fail(write_config(tmp_path, "pretrain", own_shards, data={"max_bad_samples": 2}))
    assert "more than data.max_bad_samples = 2" in output
    assert "shards/verify.py" in output


def test_a_shard_cut_short_and_a_foreign_index_are_refused(
    own_shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "pretrain", own_shards)
    tar = sorted(own_shards.glob("*.tar"))[0]
    os.truncate(tar, tar.stat().st_size // 2)
    assert tar.name in (output := fail(config))
    assert "shards/" in output  # the remedy
    tar.unlink()
    assert tar.name in fail(config)
    index = own_shards / "index.json"  # of another build: its shards have other sizes
    index.write_text(index.read_text().replace('"bytes": ', '"bytes": 1'))
    assert ".tar" in fail(config)


def test_fine_tuning_names_utterances_without_text(
    made_speech: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from shards.build import main as build

    output = tmp_path / "unlabelled"
    source = made_speech / "librispeech" / "unlabelled"
    assert build(["--input", str(source), "--output", str(output), "--workers", "1"]) == 0
    config = write_config(
        tmp_path,
        "finetune",
        output,
        data={"max_crop": 400_000, "max_samples_per_slot": 400_000, "max_bad_samples": 3},
    )
    assert "more than data.max_bad_samples = 3" in fail(config)
    reasons = {s["reason"] for s in read_jsonl(tmp_path / "run" / "logs" / "skipped-00000.jsonl")}
    assert reasons == {next(iter(reasons))}
    assert "has no 'text' label" in reasons.pop()


def test_labels_outside_the_alphabet_are_named(shards: Path, tmp_path: Path) -> None:
    labels = synthetic_shards(tmp_path / "labels", text="ÄRGER 42")
    config = write_config(tmp_path, "finetune", labels, data={"max_bad_samples": 3})
    assert "more than data.max_bad_samples = 3" in fail(config, "data.valid=null")
    reasons = [s["reason"] for s in read_jsonl(tmp_path / "run" / "logs" / "skipped-00000.jsonl")]
    assert all("'Ä' (U+00C4 LATIN CAPITAL" in reason for reason in reasons)
    assert reasons
    overrides = [f"data.train={shards}", "loop.validate_every=1"]
    assert "no utterance of data.valid has a usable label" in fail(
        config, *overrides, "data.max_bad_samples=100", f"run_dir={tmp_path / 'other'}"
    )


def test_validation_data_are_checked_before_the_training(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "pretrain", shards, data={"valid": str(tmp_path / "nowhere")})
    assert "nowhere" in fail(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_changed_configuration_and_other_shards_are_refused(
    shards: Path, own_shards: Path, tmp_path: Path, made_speech: Path
) -> None:
    config = write_config(tmp_path, "pretrain", shards, loop={"max_steps": 2})
    train(config, 1)
    output = fail(config, "schedule.peak_lr=1", "loop.max_steps=4")
    assert "schedule.peak_lr: 0.001 -> 1.0" in output
    assert "loop.max_steps: 2 -> 4" in output
    # a key that an older version did not have is no change
    resolved = tmp_path / "run" / "config.yaml"
    kept = [x for x in resolved.read_text().splitlines() if "stall_timeout_s" not in x]
    resolved.write_text("\n".join(x for x in kept if "layer_drop" not in x))
    assert "model.layer_drop: 0.05 -> 0.3" in fail(config)  # the default was in force
    resolved.write_text("\n".join(kept))
    # a moved copy is the same data
    train(config, 1, "loop.save_every=7", f"data.train={own_shards}")
    from shards.build import main as build

    other = tmp_path / "other"
    source = made_speech / "kathleen" / "valid"
    assert build(["--input", str(source), "--output", str(other), "--workers", "1"]) == 0
    assert "fingerprint" in fail(config, f"data.train={other}")


def test_two_trainings_cannot_share_a_run_folder(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "pretrain", shards, loop={"max_steps": 10_000})
    events = tmp_path / "run" / "events.jsonl"

    def wait_for_start(process: Process, num_events: int) -> None:
        for _ in range(600):
            if len(read_jsonl(events)) >= num_events or process.poll() is not None:
                break
            time.sleep(0.1)
        assert len(read_jsonl(events)) >= num_events
        assert process.poll() is None

    first = start(config, 1)[0]
    try:
        wait_for_start(first, 1)
        assert f"in use by process {first.pid} on {platform.node()}" in fail(config)
        assert first.poll() is None
        assert read_status(tmp_path / "run")["state"] == "running"
        count = len(read_jsonl(events))
        first.kill()  # leaves nothing behind that a person has to clean up
        finish([first])
        assert read_status(tmp_path / "run")["state"] == "stopped"
        third = start(config, 1)[0]
        try:
            wait_for_start(third, count + 1)
        finally:
            third.kill()
            finish([third])
    finally:
        first.kill()


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "pretrain", shards)
    train(config, 1)
    expected, root = losses(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    data = max((root / "step_00000006").glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    train(config, 1)
    damaged = event(tmp_path / "run", "checkpoint_damaged")
    assert damaged["path"].endswith("step_00000006")
    assert data.name in damaged["reason"]
    assert event(tmp_path / "run", "resumed")["step"] == 3
    assert losses(tmp_path / "run") == expected
    for path in root.glob("step_*/.metadata"):
        path.unlink()
    assert "none of the 2 checkpoints" in fail(config)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 9 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=20).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


@pytest.mark.slow
def test_no_space_left_while_saving_keeps_the_older_checkpoint(
    shards: Path, tmp_path: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    config = write_config(
        tmp_path,
        "pretrain",
        shards,
        run_dir=str(run),
        loop={"save_every": 1, "max_steps": 9, "keep_last": 100},
    )
    output = fail(config)
    assert "no space left on the device" in output, output[-3000:]
    assert "free space" in output
    steps = sorted(p.name for p in (run / "checkpoints").glob("step_*"))
    assert steps
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert (run / "checkpoints" / "latest").resolve().name == steps[-1]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True, timeout=20)
    train(config, 1)
    assert event(run, "resumed")["step"] == int(steps[-1][5:])


def test_a_save_that_found_no_space_is_tried_again(
    shards: Path, tmp_path: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    # The first validation is the best so far: saved at step 7, tried again 6 steps later
    loop = {"save_every": 60, "validate_every": 7, "max_steps": 14}
    config = write_config(tmp_path, "pretrain", shards, run_dir=str(run), loop=loop)
    (small_disk / "filler").write_bytes(bytes(8_000_000))
    process = start(config, 1)[0]
    try:
        while process.poll() is None and not any(
            e["event"] == "save_failed" for e in read_jsonl(run / "events.jsonl")
        ):
            time.sleep(0.05)
        (small_disk / "filler").unlink()
    finally:
        codes, output = finish([process])
    assert codes == [0], output[-3000:]
    failed = event(run, "save_failed")
    assert failed["step"] == 7
    assert "no space left on the device" in failed["reason"]
    saved = [e["step"] for e in read_jsonl(run / "events.jsonl") if e["event"] == "saved"]
    assert saved == [13, 14]
    assert (run / "checkpoints" / "latest").resolve().name == "step_00000014"


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(shards: Path, tmp_path: Path) -> None:
    other = write_config(tmp_path, "pretrain", shards, run_dir=str(tmp_path / "other"))
    train(other, 1, "seed=2", "model.num_layers=2", "loop.max_steps=1")
    config = write_config(tmp_path, "pretrain", shards)
    train(config, 1, "loop.save_every=1")
    name = "checkpoints/step_00000001"
    shutil.copytree(tmp_path / "other" / name, tmp_path / "run" / "checkpoints" / "step_00000009")
    output = fail(config)
    assert "step_00000009 is a checkpoint of another configuration" in output
    assert "seed: 2 -> 1" in output
    assert "model.num_layers: 2 -> 3" in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.num_layers=3", "modle is not a configuration key; did you mean model?"),
        (
            "model.num_layer=3",
            "model.num_layer is not a configuration key; did you mean model.num_layers?",
        ),
        ("model.num_layers=many", "model.num_layers is 'many' but must be a whole number"),
        (
            "engine.precision=fp64",
            "engine.precision is 'fp64' but must be one of 'fp32', 'bf16', 'fp16'",
        ),
        ("pretrained=x", "pretrained is not a configuration key"),
        ("data.train=null", "data.train is not set: build shards with shards/build.py"),
        ("data.train=/nowhere", "/nowhere"),
        ("engine.precision=fp16", "engine.precision is fp16, which DeepSpeed runs on GPUs only"),
        ("data.min_samples=4000", "data.min_samples is 4000"),
        ("data.num_workers=-1", "num_workers (-1)"),
        ("model.mask_prob=0", "model.mask_prob is 0"),
    ],
)
def test_mistakes_in_a_configuration(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    import torch

    if "fp16" in message and torch.cuda.is_available():
        pytest.skip("fp16 is no mistake on a GPU")
    config = write_config(tmp_path, "pretrain", shards)
    assert main(["train", str(config), override]) == 2
    assert message in capsys.readouterr().err
