"""What a user gets wrong, or a disk does: an error that names the thing and the remedy, and nothing
is lost."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.processes import event, finish, losses, samples, start, train, write_config
from w2v2dist.cli import main
from w2v2dist.data.index import ShardIndex
from w2v2dist.logging import read_jsonl
from w2v2dist.status import read_status

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
    codes, output = finish(start(write_config(tmp_path, "pretrain", own_shards), 2))
    assert codes == [2, 2], output[-3000:]
    assert output.count(f"shard {shard} is missing: copy it again") == 2
    assert not (tmp_path / "run").exists()


def overwrite(shards: Path, row: int) -> None:
    """Damage the audio of one utterance in its shard; sizes stay the same."""
    index = ShardIndex.load(shards)
    with index.shard_paths[int(index.shard[row])].open("r+b") as file:
        file.seek(int(index.offset[row]) + 200)
        file.write(os.urandom(int(index.size[row]) - 400))


def test_a_corrupt_utterance_is_skipped_logged_and_changes_no_other_sample(
    shards: Path, own_shards: Path, tmp_path: Path
) -> None:
    whole = write_config(tmp_path, "pretrain", shards, run_dir=str(tmp_path / "whole"))
    train(whole, 1)
    used = samples(tmp_path / "whole")
    (step, slot), record = next((k, r) for k, r in used.items() if len(r["keys"]) > 1)
    bad = record["keys"][0]
    overwrite(own_shards, list(ShardIndex.load(own_shards).keys()).index(bad))
    train(write_config(tmp_path, "pretrain", own_shards), 1)
    skipped = read_jsonl(tmp_path / "run" / "logs" / "skipped-00000.jsonl")
    assert {s["key"] for s in skipped} == {bad}
    assert event(tmp_path / "run", "sample_skipped")["new"] >= 1
    for key, mine in samples(tmp_path / "run").items():
        other = used[key]
        kept = [i for i, k in enumerate(other["keys"]) if k != bad]
        assert mine["keys"] == [other["keys"][i] for i in kept]
        assert mine["starts"] == [other["starts"][i] for i in kept]
    assert (step, slot) in samples(tmp_path / "run")


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
    speech_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from shards.build import main as build

    output = tmp_path / "unlabelled"
    source = speech_dir / "librispeech" / "unlabelled"
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


def test_labels_outside_the_alphabet_are_named(tmp_path: Path) -> None:
    from tests.conftest import synthetic_shards

    shards = synthetic_shards(tmp_path / "labels", text="ÄRGER 42")
    config = write_config(tmp_path, "finetune", shards, data={"max_bad_samples": 3})
    assert "more than data.max_bad_samples = 3" in fail(config)
    reasons = [s["reason"] for s in read_jsonl(tmp_path / "run" / "logs" / "skipped-00000.jsonl")]
    assert all("'Ä', which is not in the alphabet" in reason for reason in reasons)
    assert reasons
    overrides = [f"data.train={synthetic_shards(tmp_path / 'good')}", "loop.validate_every=1"]
    assert "no utterance of data.valid has a usable label" in fail(
        config, *overrides, "data.max_bad_samples=100", f"run_dir={tmp_path / 'other'}"
    )


def test_validation_data_are_checked_before_the_training(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "pretrain", shards, data={"valid": str(tmp_path / "nowhere")})
    assert "nowhere" in fail(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_changed_configuration_and_other_shards_are_refused(
    shards: Path, own_shards: Path, tmp_path: Path, speech_dir: Path
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
    source = speech_dir / "kathleen" / "valid"
    assert build(["--input", str(source), "--output", str(other), "--workers", "1"]) == 0
    assert "fingerprint" in fail(config, f"data.train={other}")


def test_two_trainings_cannot_share_a_run_folder(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "pretrain", shards, loop={"max_steps": 10_000})
    events = tmp_path / "run" / "events.jsonl"

    def wait_for_start(process: subprocess.Popen[str], num_events: int) -> None:
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
    os.truncate(data, data.stat().st_size // 2)
    train(config, 1)
    assert event(tmp_path / "run", "checkpoint_damaged")["path"].endswith("step_00000006")
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
