"""The model on a GPU: the CPU's numbers, half precision, BASE and LARGE at the paper's sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from w2v2dist.model import (
    Wav2Vec2Config,
    Wav2Vec2ForPretraining,
    distractor_positions,
    span_mask,
)
from w2v2dist.tasks.train import read_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

NO_DROPOUT = {
    name: 0.0
    for name in ("dropout", "attention_dropout", "input_dropout", "feature_dropout", "layer_drop")
}
SMALL = Wav2Vec2Config(
    conv_channels=32,
    num_layers=2,
    embed_dim=64,
    ffn_dim=128,
    num_heads=4,
    final_dim=32,
    num_codebook_entries=40,
    **NO_DROPOUT,
)
CONFIGS = Path(__file__).parents[2] / "configs"


def batch(config: Wav2Vec2Config, rows: int, num_samples: int, device: str) -> dict[str, Any]:
    """Noise with a mask and distractors, and Gumbel noise that does not depend on the device."""
    rng = np.random.default_rng(0)
    mask = span_mask(rng, config.num_frames(num_samples), rows, config)
    num_masked = int(mask[0].sum())
    distractors = distractor_positions(rng, num_masked, rows, config.num_distractors)
    shape = (rows, num_masked, config.num_codebooks, config.num_codebook_entries)
    arrays = {
        "waveforms": rng.standard_normal((rows, num_samples), np.float32),
        "mask": mask,
        "distractors": distractors,
        "gumbel_noise": rng.gumbel(size=shape).astype(np.float32),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def step(config: Wav2Vec2Config, device: str, dtype: torch.dtype, inputs: dict[str, Any]) -> Any:
    """Loss and gradient norm of a model with the weights of seed 0."""
    torch.manual_seed(0)
    model = Wav2Vec2ForPretraining(config).to(device, dtype)
    out = model(**inputs)
    (out.loss / out.num_masked).backward()
    norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    return out.loss.item() / out.num_masked, torch.stack(norms).norm().item()


@pytest.mark.parametrize("extractor_norm", ["group", "layer"])
def test_same_numbers_as_on_the_cpu(extractor_norm: Any) -> None:
    config = dataclasses.replace(SMALL, extractor_norm=extractor_norm)
    cpu = step(config, "cpu", torch.float32, batch(config, 2, 16_000, "cpu"))
    gpu = step(config, "cuda", torch.float32, batch(config, 2, 16_000, "cuda"))
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = batch(SMALL, 2, 16_000, "cuda")
    expected = step(SMALL, "cuda", torch.float32, inputs)
    assert step(SMALL, "cuda", dtype, inputs) == pytest.approx(expected, rel=0.1)


def test_padded_rows() -> None:
    config = dataclasses.replace(SMALL, extractor_norm="layer")
    torch.manual_seed(0)
    model = Wav2Vec2ForPretraining(config).cuda().eval()
    waveforms = torch.randn(2, 16_000, device="cuda")
    num_samples = torch.tensor([16_000, 8_000])
    padded = model(waveforms, num_samples=num_samples).features[1, : config.num_frames(8_000)]
    torch.testing.assert_close(
        padded, model(waveforms[1:, :8_000]).features[0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("name", "rows", "num_samples"),
    [("base_ls960", 5, 250_000), ("large_lv60k", 3, 320_000)],
)
def test_paper_sized_step(name: str, rows: int, num_samples: int) -> None:
    """One micro-batch in bf16 fits, and starts near the chance level of ln(101) nats."""
    config = read_config(CONFIGS / f"{name}.yaml", []).model
    loss, norm = step(config, "cuda", torch.bfloat16, batch(config, rows, num_samples, "cuda"))
    assert 3 < loss < 9
    assert np.isfinite(norm)
    assert norm > 0
