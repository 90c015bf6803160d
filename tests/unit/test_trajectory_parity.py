"""Fifty updates of a small model on real speech follow the reference implementation's, from the
same weights and batches (dropout, LayerDrop and Gumbel noise off)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.make import VARIANTS
from tests.unit.test_model_parity import golden_config, read
from w2v2dist.interop import fairseq_name, load_fairseq
from w2v2dist.model import Wav2Vec2ForPretraining
from w2v2dist.model.config import temperature
from w2v2dist.training.engine import Adam, OptimizerConfig

# Relative. Measured, largest of all updates and both variants: losses 8e-7, gradient norm 1e-5,
# perplexity of the probabilities 2e-5 (codes: 0), norms of the final parameters 7e-7.
LOSS, GRAD_NORM, PERPLEXITY, FINAL_NORM = 5e-6, 1e-4, 1e-4, 5e-6


def follow(
    golden: dict[str, Tensor], info: dict[str, Any], optimizer: OptimizerConfig
) -> tuple[Wav2Vec2ForPretraining, list[dict[str, float]]]:
    """Our model after the golden batches, and one record an update with the golden one's names."""
    config = golden_config(info["geom"])
    initial = {
        name.removeprefix("initial."): tensor
        for name, tensor in golden.items()
        if name.startswith("initial.")
    }
    model = load_fairseq(initial, config).train()
    adam = Adam(model.parameters(), optimizer)
    adam.param_groups[0]["lr"] = 5e-4
    waveforms = golden["waveforms_int16"].float() / 32_768  # (updates, B, S)
    records = []
    for update, mask in enumerate(golden["masks"]):
        batch, num_masked = len(mask), int(mask[0].sum())
        offsets = torch.arange(batch)[:, None, None] * num_masked  # golden rows count through B
        out = model(
            waveforms[update],
            mask=mask,
            distractors=golden[f"negatives.{update:02d}"].view(batch, num_masked, -1) - offsets,
            gumbel_noise=torch.zeros(
                batch, num_masked, config.num_codebooks, config.num_codebook_entries
            ),
            temperature=temperature(config.temperature, update),
        )
        adam.zero_grad()
        (out.loss / out.num_masked).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        adam.step()
        records.append(
            {
                "loss_total": out.loss.item() / out.num_masked,
                "loss_contrastive": out.contrastive_loss.item() / out.num_masked,
                "sample_size": out.num_masked,
                "grad_norm": torch.nn.utils.get_total_norm(gradients).item(),
                "temp": out.temperature,
                "code_perplexity": out.code_perplexity.item(),
                "prob_perplexity": out.prob_perplexity.item(),
                "correct": out.num_correct.item(),
            }
        )
    return model, records


def deviations(
    records: list[dict[str, float]], history: list[dict[str, float]]
) -> dict[str, float]:
    """Largest deviation of every number over the updates, relative to the golden one; the
    contrastive loss relative to the total, because it is 0 where the codes have collapsed."""
    largest: dict[str, float] = {}
    for ours, theirs in zip(records, history, strict=True):
        for name, value in ours.items():
            scale = theirs["loss_total"] if name == "loss_contrastive" else theirs[name]
            error = abs(value - theirs[name]) / scale
            largest[name] = max(largest.get(name, 0.0), error)
    return largest


@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_updates(golden_dir: Path, variant: str) -> None:
    golden, info = read(golden_dir / f"{variant}_trajectory.safetensors")
    model, records = follow(golden, info, OptimizerConfig())
    assert len(records) == 50
    worst = deviations(records, info["history"])
    assert worst["loss_total"] <= LOSS
    assert worst["loss_contrastive"] <= LOSS
    assert worst["grad_norm"] <= GRAD_NORM
    assert worst["prob_perplexity"] <= PERPLEXITY
    assert worst["code_perplexity"] <= 1e-6  # the same hard choices
    assert worst["temp"] <= 1e-9
    assert worst["sample_size"] == worst["correct"] == 0
    norms = {name: p.norm().item() for name, p in model.named_parameters()}
    for name, norm in golden.items():
        if name.startswith("finalnorm."):
            ours = norms.pop(fairseq_name(name.removeprefix("finalnorm.")))
            assert ours == pytest.approx(norm.item(), rel=FINAL_NORM), name
    assert norms == {}


@pytest.mark.parametrize("change", [{"eps": 1e-5}, {"betas": (0.9, 0.999)}, {"weight_decay": 0}])
def test_another_adam_leaves_the_trajectory(golden_dir: Path, change: dict[str, Any]) -> None:
    """The comparison sees what a slightly different optimizer does to the losses."""
    golden, info = read(golden_dir / f"{VARIANTS[0]}_trajectory.safetensors")
    records = follow(golden, info, OptimizerConfig(**change))[1]
    assert deviations(records, info["history"])["loss_total"] > 10 * LOSS
