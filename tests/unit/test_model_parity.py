"""The model against numbers that the reference implementation computed with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.golden.make import NUM_SAMPLES, RUNS, VARIANTS, sample
from w2v2dist.interop import fairseq_name, load_fairseq
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining
from w2v2dist.model.config import TemperatureConfig, temperature

NO_DROPOUT = {
    name: 0.0
    for name in (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "input_dropout",
        "feature_dropout",
        "layer_drop",
    )
}


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}, json.loads(
            file.metadata()["json"]
        )


def golden_config(geometry: dict[str, Any], **changes: Any) -> Wav2Vec2Config:
    layers = geometry["conv_layers"]
    layer_norm = geometry["extractor_mode"] == "layer_norm"
    start, floor, decay = geometry["latent_temp"]
    values: dict[str, Any] = {
        "conv_channels": layers[0][0],
        "conv_kernels": tuple(kernel for _, kernel, _ in layers),
        "conv_strides": tuple(stride for _, _, stride in layers),
        "conv_bias": geometry["conv_bias"],
        "extractor_norm": "layer" if layer_norm else "group",
        "feature_grad_mult": geometry["feature_grad_mult"],
        "num_layers": geometry["layers"],
        "embed_dim": geometry["dim"],
        "ffn_dim": geometry["ffn"],
        "num_heads": geometry["heads"],
        "norm_first": geometry["layer_norm_first"],
        "final_dim": geometry["final_dim"],
        "num_codebooks": geometry["latent_groups"],
        "num_codebook_entries": geometry["latent_vars"],
        "temperature": TemperatureConfig(start=start, floor=floor, decay=decay),
        **NO_DROPOUT,
    }
    return Wav2Vec2Config(**(values | changes))


def run(
    folder: Path, name: str, **changes: Any
) -> tuple[Wav2Vec2ForPretraining, Any, dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The model with the golden weights, its output after backward, the outputs of three of its
    parts, and the golden numbers."""
    variant = next(v for v in VARIANTS if name.startswith(v))
    state, info = read(folder / f"{variant}_state_fairseq.safetensors")
    golden, scalars = read(folder / f"{name}.safetensors")
    config = golden_config(info["geom"], **changes)
    model = load_fairseq(state, config).train(scalars["mode"] == "train")
    batch, num_masked = golden["quantized"].shape[:2]
    offsets = (
        torch.arange(batch)[:, None, None] * num_masked
    )  # golden indices count through the batch
    noise = golden.get("gumbel_noise")
    parts: dict[str, Any] = {}
    for part in ("encoder.feature_encoder", "quantizer", "target_projection"):
        model.get_submodule(part).register_forward_hook(
            lambda *call, part=part: parts.update({part: call[2]})
        )
    out = model(
        golden["waveform"],
        mask=golden["mask_indices"].bool(),
        distractors=golden["negative_indices"].view(batch, num_masked, -1) - offsets,
        num_samples=torch.tensor(scalars["lengths"]),
        gumbel_noise=None
        if noise is None
        else noise.view(batch, num_masked, config.num_codebooks, -1),
        temperature=temperature(config.temperature, scalars["num_updates"]),
    )
    out.loss.backward()
    return model, out, parts, golden, scalars


def assert_close(
    ours: Tensor, reference: Tensor, tolerance: float, name: str, largest: Tensor | None = None
) -> None:
    """Largest difference relative to the largest value of the reference."""
    finite = torch.isfinite(reference)
    torch.testing.assert_close(torch.isfinite(ours), finite, msg=f"{name}: infinities differ")
    largest = reference[finite].abs().max() if largest is None else largest
    error = (ours[finite] - reference[finite]).abs().max() / largest
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance}"


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [(name, False) for name in RUNS] + [(f"{v}_pad_train", True) for v in VARIANTS],
)
def test_outputs_losses_and_gradients(golden_dir: Path, name: str, checkpointing: bool) -> None:
    compare(golden_dir, name, checkpointing)


@pytest.mark.shared("golden")
@pytest.mark.parametrize("name", RUNS)
def test_every_element_of_the_gradients(full_golden_dir: Path, name: str) -> None:
    assert compare(full_golden_dir, name, False) > 0


def compare(folder: Path, name: str, checkpointing: bool) -> int:
    """Compare a run with ours; returns how many gradients of over NUM_SAMPLES elements were
    compared as a whole."""
    model, out, parts, golden, scalars = run(folder, name, activation_checkpointing=checkpointing)
    valid = torch.ones(golden["mask_indices"].shape, dtype=torch.bool)
    for row, frames in enumerate(scalars["frame_lengths"]):
        valid[row, frames:] = False
    assert_close(out.features[valid], golden["transformer_features"][valid], 1e-5, "features")
    features = parts["encoder.feature_encoder"]
    assert_close(features, golden["extractor_features"], 1e-5, "features of the convolutions")
    assert_close(parts["quantizer"].codewords, golden["quantized"], 1e-5, "quantized targets")
    assert_close(parts["target_projection"], golden["projected_targets"], 1e-5, "targets")
    assert_close(out.logits, golden["logits"].permute(1, 2, 0), 1e-5, "logits")
    for field, key in (
        ("loss", "loss_total"),
        ("contrastive_loss", "loss_0"),
        ("diversity_loss", "loss_1_diversity"),
        ("feature_penalty", "loss_2_features_pen"),
        ("code_perplexity", "code_perplexity"),
        ("prob_perplexity", "prob_perplexity"),
    ):
        key = key if key in scalars else key[:6]
        assert getattr(out, field).item() == pytest.approx(scalars[key], rel=1e-5), field
    assert out.num_masked == scalars["sample_size"]
    assert out.num_correct.item() == scalars["correct"]
    assert torch.isinf(out.logits).sum().item() == scalars["neg_is_pos"]
    assert out.temperature == pytest.approx(scalars["temp"], rel=1e-6)
    parameters = dict(model.named_parameters())
    compared = whole = 0
    for key, norm in golden.items():
        if not key.startswith("gradnorm.") or key.endswith("k_proj.bias"):
            continue  # the true gradient of a bias of all keys is 0
        name = key.removeprefix("gradnorm.")
        gradient = parameters[fairseq_name(name)].grad
        gradient = torch.zeros(()) if gradient is None else gradient
        assert gradient.norm().item() == pytest.approx(norm.item(), rel=1e-4, abs=1e-9), name
        if (reference := golden.get(f"grad.{name}")) is not None:
            assert_close(gradient.reshape(reference.shape), reference, 1e-3, name)
            whole += reference.numel() > NUM_SAMPLES
        else:
            reference, largest = golden[f"gradsample.{name}"], golden[f"gradmax.{name}"]
            assert_close(sample(gradient), reference, 1e-3, name, largest)
        compared += 1
    assert compared >= len(parameters) - model.config.num_layers - 3
    return whole
