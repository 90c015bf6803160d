"""wav2vec-U through the common loop: the same losses to the bit after an end at any step, the run
folder, alarms, and data that cannot be used."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch import submit
from tests.gan_data import DIM, write_features, write_gan_config, write_language, write_text
from tests.training_parts import world as world  # a fixture
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.decode.scoring import errors
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.train import open_source, read_config
from w2v2dist.tasks.unsupervised import UnsupervisedTask, unsupervised_source
from w2v2dist.training.alarms import AlarmError
from w2v2dist.training.loop import Finished, Outcome, Preempted, fit
from w2v2dist.unsupervised.feature_store import FeatureStore, FeatureStoreWriter
from w2v2dist.unsupervised.selection import phones_of
from w2v2dist.unsupervised.trained import open_trained

V2 = {
    "model": {
        "generator": {
            "kernel_size": 3,
            "stride": 2,
            "batch_norm_scale": 30,
            "residual": True,
            "dropout": 0.1,
        },
        "num_targets": 3,
        "discriminator": {"dim": 16, "kernel_size": 4},
    },
    "losses": {"auxiliary_weight": 0.5},
    "loop": {"save_every": 1, "keep_last": 10},
}
TIMES = {"seconds", "time", "data_wait_seconds", "slowest_rank_seconds", "median_rank_seconds"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_language(tmp_path_factory.mktemp("language"), num_targets=3)


def run(config: Path, world: World, flag: PreemptionFlag | None = None, **more: Any) -> Outcome:
    settings = read_config(str(config), [f"{k}={v or 'null'}" for k, v in more.items()])
    task = UnsupervisedTask(settings, unsupervised_source(settings))
    return fit(settings, task, world, flag or PreemptionFlag())


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """All that was logged but times, the last record of a step."""
    found = {}
    for record in read_jsonl(run_dir / "metrics.jsonl"):
        kind = "valid" if "valid/per" in record else "train"
        found[record["step"], kind] = {k: v for k, v in record.items() if k not in TIMES}
    return [found[key] for key in sorted(found)]


def test_an_end_at_any_step_changes_no_bit(
    data: dict[str, Any], world: World, tmp_path: Path
) -> None:
    """Both Adams, batch norm's running statistics, and all that is drawn."""
    config = write_gan_config(tmp_path, data, **V2)
    assert isinstance(run(config, world), Finished)
    whole = tmp_path / "run"
    expected = numbers(whole)
    assert len(expected) == 6 + 3
    assert {"generator_loss", "auxiliary_loss"} <= expected[0].keys()
    assert {"discriminator_loss", "gradient_penalty"} <= expected[1].keys()
    for step in range(1, 6):
        again = tmp_path / f"from_{step}" / "run"
        kept = whole / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(kept, again / "checkpoints" / kept.name)
        (again / "checkpoints" / "latest").symlink_to(kept.name)
        settings = write_gan_config(again.parent, data, **V2)
        assert isinstance(run(settings, world), Finished)
        later = [r for r in expected if r["step"] > step]
        assert numbers(again)[-len(later) :] == later
        events = {e["event"]: e for e in read_jsonl(again / "events.jsonl")}
        assert events["resumed"]["step"] == step


def test_a_signal_saves_and_the_run_goes_on(
    data: dict[str, Any], world: World, tmp_path: Path
) -> None:
    config = write_gan_config(tmp_path / "whole", data)
    run(config, world)
    other = write_gan_config(tmp_path / "cut", data)
    flag = PreemptionFlag()
    flag.set(signal.SIGTERM)
    assert isinstance(run(other, world, flag), Preempted)
    assert isinstance(run(other, world), Finished)
    assert numbers(tmp_path / "cut" / "run") == numbers(tmp_path / "whole" / "run")


def test_the_run_folder(data: dict[str, Any], world: World, tmp_path: Path) -> None:
    run(write_gan_config(tmp_path, data), world)
    folder = tmp_path / "run"
    phones = json.loads((folder / "phones.json").read_text())
    assert phones["symbols"][:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert json.loads((folder / "features.json").read_text()) == {"dim": 8, "model": "made"}
    meta = json.loads((folder / "checkpoints/best/meta.json").read_text())
    assert meta["phones"] == phones
    scores = [r["valid/weighted_lm_ppl"] for r in numbers(folder) if "valid/per" in r]
    assert meta["best"] == min(scores[: meta["step"] // 2])


def test_without_labels_there_is_no_error_rate(
    data: dict[str, Any], world: World, tmp_path: Path
) -> None:
    write_features(tmp_path / "valid", 2, 10, labels=False)
    run(write_gan_config(tmp_path, {**data, "valid": str(tmp_path / "valid")}), world)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert any("valid/weighted_lm_ppl" in r for r in records)
    assert not any("valid/per" in r for r in records)


def test_batches_are_pure_functions_of_the_step(data: dict[str, Any], tmp_path: Path) -> None:
    config = read_config(str(write_gan_config(tmp_path, data)), [])
    source = open_source(config)
    (whole,) = [[*source.batches(range(1, 8), [0], 1)]]
    again = [*source.batches([6, 7], [0], 1)]
    for ours, theirs in zip(again, whole[5:], strict=True):
        for name in ("features", "padding", "text", "alpha", "join_draws"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        audit = source.audit(ours.step, 0, 1)
        assert ours.used is not None
        assert audit["keys"] == ours.used["keys"]
        assert len(audit["lines"]) == 8
    epoch = [key for batch in whole[:5] for key in batch.used["keys"]]
    assert len(epoch) == len({*epoch}) == 40  # each utterance once, then anew in another order
    assert epoch[:16] != [key for batch in whole[5:] for key in batch.used["keys"]]
    other = next(source.batches([1], [0], 2))
    assert not torch.equal(other.alpha, whole[0].alpha)
    texts = torch.cat([batch.text[:, :4].flatten() for batch in whole])
    assert len(texts.unique()) == 6
    assert not torch.equal(whole[0].alpha, whole[1].alpha)


@pytest.mark.parametrize(
    ("alarm", "settings"),
    [
        ("discriminator_won", {"min_discriminator_loss": 9}),
        ("code_collapse", {"min_code_usage": 1}),
        ("no_language", {"min_text_likeness": 1}),
    ],
)
def test_alarms(
    data: dict[str, Any], world: World, tmp_path: Path, alarm: str, settings: dict[str, float]
) -> None:
    quiet = {
        "grace_steps": 2,
        "min_discriminator_loss": 0,
        "min_code_usage": 0,
        "min_text_likeness": 0,
    }
    config = write_gan_config(tmp_path, data, alarms={**quiet, **settings, "on_alarm": "stop"})
    with pytest.raises(AlarmError, match=f"alarm {alarm} at step"):
        run(config, world)
    steps = [e["step"] for e in read_jsonl(tmp_path / "run/events.jsonl") if e["event"] == "alarm"]
    assert steps == [2 if alarm != "no_language" else 3]


def test_quiet_alarms_say_nothing(data: dict[str, Any], world: World, tmp_path: Path) -> None:
    quiet = {
        "grace_steps": 1,
        "min_discriminator_loss": 0,
        "min_code_usage": 0,
        "min_text_likeness": 0,
    }
    run(write_gan_config(tmp_path, data, alarms=quiet), world)
    assert not any(e["event"] == "alarm" for e in read_jsonl(tmp_path / "run/events.jsonl"))


def test_too_few_utterances_for_a_batch(data: dict[str, Any], world: World, tmp_path: Path) -> None:
    config = write_gan_config(tmp_path, {**data})
    with pytest.raises(ConfigError, match=r"has 40 usable utterances of 40 but data.batch_size is"):
        run(config, world, **{"data.batch_size": 41})
    with pytest.raises(ConfigError, match=r"lower data.batch_size"):
        run(config, world, **{"data.min_frames": 12, "data.batch_size": 20})


def test_missing_targets_are_counted_and_left_out(
    data: dict[str, Any], world: World, tmp_path: Path
) -> None:
    write_features(tmp_path / "train", 1, 40, num_targets=3, without_targets=9)
    some = {**data, "train": str(tmp_path / "train")}
    config = write_gan_config(tmp_path, some, **V2)
    run(config, world)
    notes = [e["text"] for e in read_jsonl(tmp_path / "run/events.jsonl") if e["event"] == "note"]
    assert any(t.startswith("9 of 40 utterances of data.train are left out") for t in notes)
    source = unsupervised_source(read_config(str(config), []))
    used = {key for b in source.batches(range(1, 20), [0], 1) for key in b.used["keys"]}
    assert len(used) == 31
    write_features(tmp_path / "none", 1, 40)
    with pytest.raises(ConfigError, match=r"no utterance of data.train \(.*\) has auxiliary"):
        run(config, world, **{"data.train": str(tmp_path / "none")})
    write_features(tmp_path / "more", 1, 40, num_targets=5)
    with pytest.raises(ConfigError, match=r"auxiliary target 4 but model.num_targets is 3"):
        run(config, world, **{"data.train": str(tmp_path / "more")})


def test_features_of_two_models_are_not_mixed(
    data: dict[str, Any], world: World, tmp_path: Path
) -> None:
    for name, more in (("other", {"model": "another"}), ("wide", {"dim": 9})):
        write_features(tmp_path / name, 2, 10, **more)
        config = write_gan_config(tmp_path / "c", {**data, "valid": str(tmp_path / name)})
        with pytest.raises(ConfigError, match=r"cannot be mixed|of one kind are needed"):
            run(config, world)
    config = write_gan_config(tmp_path / "d", data)
    run(config, world, **{"loop.max_steps": 6})
    write_features(tmp_path / "train", 1, 40, model="another", num_targets=3)
    with pytest.raises(
        ConfigError, match=r"another features.json .*\(model: 'made' -> 'another'\)"
    ):
        run(config, world, **{"data.train": str(tmp_path / "train"), "data.valid": None})


def test_the_phones_of_a_run_do_not_change(
    data: dict[str, Any], world: World, tmp_path: Path
) -> None:
    config = write_gan_config(tmp_path, data)
    run(config, world)
    text = write_text(tmp_path / "text", 40, ["a", "b", "d", "e", "f", "z"])
    with pytest.raises(ConfigError, match=r"is a run with another phones.json .* only one has g z"):
        run(config, world, **{"data.text": str(text.folder)})
    text = write_text(tmp_path / "order", 40, ["b", "a", "d", "e", "f", "g"])
    with pytest.raises(ConfigError, match=r"phones.json .*\(symbols: in another order\)"):
        run(config, world, **{"data.text": str(text.folder)})
    text = write_text(tmp_path / "more", 41)
    with pytest.raises(ConfigError, match=r"was trained on data with fingerprint .* use the same"):
        run(config, world, **{"data.text": str(text.folder)})


def test_what_else_does_not_fit(data: dict[str, Any], world: World, tmp_path: Path) -> None:
    config = write_gan_config(tmp_path, data)
    with pytest.raises(ConfigError, match=r"0 usable utterances of 40 .*; 40 of 40 .* have less"):
        run(config, world, **{"data.min_frames": 99})
    for name in ("train", "text"):
        both = f"{data[name]},{data[name]}"
        with pytest.raises(ConfigError, match=f"data.{name} is .* but it must be one folder"):
            run(config, world, **{f"data.{name}": both})
    with FeatureStoreWriter(tmp_path / "fast", DIM, "float32", {}) as store:
        for i in range(8):  # MFCCs' 100 Hz
            store.add(f"u{i}", np.ones((10, DIM)), np.zeros(20, np.int64))
    targets = write_gan_config(
        tmp_path / "t",
        data,
        losses={"auxiliary_weight": 0.5},
        model={"generator": {"residual": True}},
    )
    with pytest.raises(ConfigError, match=r"u0 of .* has 20 auxiliary targets but 10 frames"):
        run(targets, world, **{"data.train": str(tmp_path / "fast"), "data.valid": None})


def test_labels_of_other_phones_are_said(data: dict[str, Any], tmp_path: Path) -> None:
    """They are for watching alone, but what is watched would mean nothing."""
    labels = [{"phones": "a b aa ae"}, {}, {"phones": "a a a a ih ih"}]
    with FeatureStoreWriter(
        tmp_path / "valid", DIM, "float32", {"made_by": {"model": "made"}}
    ) as s:
        for i, label in enumerate(labels):
            s.add(f"v{i}", np.ones((10, DIM)), None, label)
    config = read_config(
        str(write_gan_config(tmp_path, {**data, "valid": str(tmp_path / "valid")})), []
    )
    (note,) = unsupervised_source(config).notes
    assert note.startswith(
        "data.valid: 40% of the phones that the features have as labels are none"
    )
    assert "(ih aa ae)" in note
    assert not unsupervised_source(read_config(str(write_gan_config(tmp_path, data)), [])).notes


def test_what_is_not_there(data: dict[str, Any], world: World, tmp_path: Path) -> None:
    for name in ("train", "text"):
        config = write_gan_config(tmp_path / name, {**data, name: None})
        with pytest.raises(ConfigError, match=f"data.{name} is not set but must be a folder of"):
            run(config, world)
    config = write_gan_config(tmp_path / "lm", data)
    text = write_text(tmp_path / "bare", 40)
    text.lm_path(with_silence=False).unlink()
    with pytest.raises(ConfigError, match=r"gram.arpa does not exist"):
        run(config, world, **{"data.text": str(text.folder)})
    write_features(tmp_path / "short", 1, 10, longest=8)
    with pytest.raises(ConfigError, match=r"has no utterance of data.min_frames = 9"):
        run(config, world, **{"data.valid": str(tmp_path / "short"), "data.min_frames": 9})


def test_one_process_trains(data: dict[str, Any], tmp_path: Path) -> None:
    settings = read_config(str(write_gan_config(tmp_path, data)), [])
    task = UnsupervisedTask(settings, unsupervised_source(settings))
    task.check(1)
    with pytest.raises(ConfigError, match="2 processes were started, but task unsupervised"):
        task.check(2)


def test_learning_rates(data: dict[str, Any], tmp_path: Path) -> None:
    config = write_gan_config(tmp_path, data, schedule={"peak_lr": 4e-4})
    settings = read_config(str(config), ["schedule.discriminator_peak_lr=2e-4"])
    task = UnsupervisedTask(settings, unsupervised_source(settings))
    for step, (group, lr) in {1: ("generator", 4e-4), 2: ("discriminator", 2e-4)}.items():
        update = task.update(step)
        assert (update.group, update.lr) == (group, pytest.approx(lr))
    assert math.isclose(task.schedule_metrics(7)["discriminator_lr"], 2e-4)


def test_a_trained_generator_reads(data: dict[str, Any], world: World, tmp_path: Path) -> None:
    config = write_gan_config(tmp_path, data, **V2)
    run(config, world, **{"loop.validate_every": 6, "loop.keep_last": 1})
    trained = open_trained(tmp_path / "run")
    store = FeatureStore(data["valid"])
    read = trained.read(store, batch_size=3)
    truth = [store.labels[key]["phones"] for key in store.keys]
    said = [" ".join(trained.symbols[i] for i in phones_of(row, 10)) for row in read]
    counted = errors(truth, said, "word")
    per = sum(e.total for e in counted) / sum(e.num_units for e in counted)
    assert per == pytest.approx(read_jsonl(tmp_path / "run/metrics.jsonl")[-1]["valid/per"])
    assert open_trained(tmp_path / "run", trained.symbols).symbols == trained.symbols
    with pytest.raises(ConfigError, match=r"11 symbols, but 10 others are given \(only one .* g\)"):
        open_trained(tmp_path / "run", [s for s in trained.symbols if s != "g"])
    with pytest.raises(ConfigError, match="their order differs"):
        open_trained(tmp_path / "run", trained.symbols[::-1])
    write_features(tmp_path / "other", 2, 10, model="another")
    with pytest.raises(ConfigError, match=r"was trained on features with model made, but"):
        trained.read(FeatureStore(tmp_path / "other"))


def test_what_other_commands_show(
    data: dict[str, Any], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_gan_config(tmp_path, data)
    run(config, world)
    capsys.readouterr()
    folder = str(tmp_path / "run")
    assert main(["status", folder]) == 0
    shown = capsys.readouterr().out
    assert "trained on 48 utterances" in shown
    assert "valid/weighted_lm_ppl" in shown
    assert main(["report", folder, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    for title in (
        "score without labels",
        "discriminator (nats a row)",
        "phones in use",
        "nats a ph",
    ):
        assert title in page
    capsys.readouterr()
    assert main(["batches", str(config), "--step", "3"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert len(json.loads(line)["keys"]) == len(json.loads(line)["lines"]) == 8
    assert submit.main(["--dry-run", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "unsupervised, 6 steps of 8 utterances, one process" in shown
    assert "--gpus-per-node=1" in shown
