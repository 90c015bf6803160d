"""A probe changes nothing of a training, and is the same on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import build_shards
from tests.distributed.processes import MODEL, finish, losses, start, train, write_config
from tests.speech import write_librispeech
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of a few words to train a probe on, and others by another speaker."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, speakers in (("train", {"1": 12}), ("valid", {"2": 4})):
        write_librispeech(folder / name, speakers, 4)
    train_, valid = (build_shards(folder / n, folder / f"{n}_shards") for n in ("train", "valid"))
    return train_, valid


def probe(labelled: tuple[Path, Path], **more: Any) -> dict[str, Any]:
    return {"every": 4, "data": str(labelled[0]), "valid": str(labelled[1]), "steps": 20, **more}


def probed(run: Path) -> dict[int, dict[str, float]]:
    """Step -> letter errors by layer."""
    rows = [r for r in read_jsonl(run / "metrics.jsonl") if "probe/seconds" in r]
    return {r["step"]: {k: v for k, v in r.items() if k.endswith("/cer")} for r in rows}


@pytest.mark.parametrize(
    ("world_size", "zero_stage"),
    [(1, 1), (2, 3), pytest.param(2, 1, marks=pytest.mark.slow),
     pytest.param(3, 0, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_losses_are_the_same_to_the_bit(
    shards: Path, labelled: tuple[Path, Path], tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    runs = {}
    for name, every in (("without", 0), ("with", 4)):
        (tmp_path / name).mkdir()
        settings = probe(labelled, every=every, layers=[0, 2, 3])
        engine = {"zero_stage": zero_stage}
        config = write_config(
            tmp_path / name, "pretrain", shards, engine=engine, probe=settings,
            model={**MODEL, "dropout": 0.1},
        )  # fmt: skip
        train(config, world_size)
        runs[name] = tmp_path / name / "run"
    assert losses(runs["with"]) == losses(runs["without"])
    assert probed(runs["without"]) == {}
    found = probed(runs["with"])
    assert list(found) == [4, 6]  # every four steps, and the last
    assert list(found[6]) == [f"probe/layer_{k:02d}/cer" for k in (0, 2, 3)]
    assert all(0 < error < 3 for row in found.values() for error in row.values())


def test_numbers_do_not_depend_on_the_processes(
    shards: Path, labelled: tuple[Path, Path], tmp_path: Path
) -> None:
    found = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        config = write_config(
            folder, "pretrain", shards, probe=probe(labelled), loop={"max_steps": 1},
            schedule={"peak_lr": 1e-12},
        )  # fmt: skip
        train(config, world_size)
        found.append(probed(folder / "run"))
    assert found[0] == found[1]
    assert len(found[0][1]) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers": [7]}, "probe.layers has 7 but the model has 3 layers"),
        ({"data": None}, "every is 4 but data or valid is not set"),
        ({"valid": "nowhere"}, "holds no shard index"),
        ({"minutes": 0}, "minutes is 0"),
    ],
)
def test_wrong_settings_are_refused(
    shards: Path,
    labelled: tuple[Path, Path],
    tmp_path: Path,
    changed: dict[str, Any],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from w2v2dist.cli import main

    config = write_config(tmp_path, "pretrain", shards, probe=probe(labelled, **changed))
    assert main(["train", str(config)]) == 2
    assert message in capfd.readouterr().err


def test_shards_without_labels_are_refused_by_all(
    shards: Path, labelled: tuple[Path, Path], tmp_path: Path
) -> None:
    write_librispeech(tmp_path / "mute", {"5": 2}, 4, text=False)
    mute = build_shards(tmp_path / "mute", tmp_path / "mute_shards")
    config = write_config(tmp_path, "pretrain", shards, probe=probe(labelled, valid=str(mute)))
    codes, output = finish(start(config, 2))
    assert codes == [2, 2]
    assert "no utterance of probe.valid has a usable label" in output
