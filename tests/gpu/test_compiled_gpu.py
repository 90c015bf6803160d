"""engine.compile on one GPU: Triton's kernels train as the plain layers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.processes import finish, losses, start, train, write_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_train_as_plain_ones(
    shards: Path, tmp_path: Path, checkpointing: bool, precision: str
) -> None:
    """Without dropout, whose masks are drawn by other numbers inside fused kernels."""
    names = ("dropout", "attention_dropout", "input_dropout", "feature_dropout")
    model = {name: 0.0 for name in names} | {"activation_checkpointing": checkpointing}
    engine = {"precision": precision}
    config = write_config(tmp_path, "pretrain", shards, model=model, engine=engine)
    train(config, 1)
    run = tmp_path / "compiled"
    compiled = ["engine.compile=true", f"run_dir={run}"]
    codes, output = finish(start(config, 1, *compiled), timeout_s=800)
    assert codes == [0], output[-4000:]
    assert "nothing can be compiled" not in output
    rel = 1e-4 if precision == "fp32" else 2e-2
    assert losses(run) == pytest.approx(losses(tmp_path / "run"), rel=rel)
