"""engine.compile: the same losses as without, and what happens where nothing can be compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.processes import event, finish, losses, start, train, write_config
from w2v2dist.config import ConfigError, from_dict
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training.engine import EngineConfig


def test_without_a_compiler_a_run_says_so_and_trains(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, "pretrain", shards, loop={"max_steps": 2})
    train(config, 1)
    plain = losses(tmp_path / "run")
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-compiler"))
    output = train(config, 2, "engine.compile=true", f"run_dir={tmp_path}/compiled")
    note = event(tmp_path / "compiled", "note")["text"]
    assert "no-such-compiler" in note
    assert "apt-get install g++" in note
    assert output.count("nothing can be compiled") == 1  # by one of the two processes
    assert "Traceback" not in output
    assert losses(tmp_path / "compiled") == pytest.approx(plain, rel=1e-5)


def test_zero_3_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero_stage 0 to 2, or compile=false"):
        from_dict(EngineConfig, {"zero_stage": 3, "compile": True})


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("task", "stage", "model"),
    [
        ("pretrain", 1, {}),
        ("pretrain", 2, {"activation_checkpointing": True, "extractor_norm": "layer"}),
        ("finetune", 0, {"norm_first": True}),
    ],
)
def test_compiled_layers_have_the_losses_of_plain_ones(
    shards: Path, tmp_path: Path, task: str, stage: int, model: dict[str, object]
) -> None:
    """With dropout and LayerDrop, over micro-batches of many shapes, and in validation."""
    config = write_config(tmp_path, task, shards, model=model, loop={"max_steps": 4})
    train(config, 1, f"engine.zero_stage={stage}")
    run = tmp_path / "compiled"
    compiled = ["engine.compile=true", f"run_dir={run}", f"engine.zero_stage={stage}"]
    codes, output = finish(start(config, 1, *compiled), timeout_s=1200)  # most of it compiles
    assert codes == [0], output[-4000:]
    assert "nothing can be compiled" not in output
    assert losses(run) == pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    assert validation(run) == pytest.approx(validation(tmp_path / "run"), rel=1e-5)


def validation(run: Path) -> float:
    (value,) = {r["valid/loss"] for r in read_jsonl(run / "metrics.jsonl") if "valid/loss" in r}
    return float(value)
