"""The pre-training model's own behaviour: settings, layer drop, ablations, types, recomputation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from w2v2dist.interop import fairseq_name
from w2v2dist.model import (
    PretrainingOutput,
    Wav2Vec2Config,
    Wav2Vec2ForPretraining,
    distractor_positions,
    span_mask,
)

TINY = Wav2Vec2Config(
    conv_channels=16,
    num_layers=3,
    embed_dim=32,
    ffn_dim=48,
    num_heads=4,
    pos_conv_kernel=8,
    pos_conv_groups=4,
    final_dim=16,
    num_codebook_entries=8,
    num_distractors=10,
)
NO_DROPOUT = dataclasses.replace(
    TINY, dropout=0.0, attention_dropout=0.0, input_dropout=0.0, feature_dropout=0.0, layer_drop=0.0
)


def batch(config: Wav2Vec2Config) -> dict[str, Tensor]:
    """Two waveforms of half a second with a mask and distractors."""
    rng = np.random.default_rng(0)
    mask = span_mask(rng, config.num_frames(8_000), 2, config)
    drawn = distractor_positions(rng, int(mask[0].sum()), 2, config.num_distractors)
    waveforms = torch.randn(2, 8_000, generator=torch.Generator().manual_seed(0))
    return {
        "waveforms": waveforms,
        "mask": torch.from_numpy(mask),
        "distractors": torch.from_numpy(drawn),
    }


def make(config: Wav2Vec2Config) -> Wav2Vec2ForPretraining:
    torch.manual_seed(0)
    return Wav2Vec2ForPretraining(config)


def backward(model: Wav2Vec2ForPretraining, **kwargs: Any) -> PretrainingOutput:
    torch.manual_seed(1)  # dropout and Gumbel noise
    out: PretrainingOutput = model(**batch(model.config), **kwargs)
    assert out.loss is not None
    out.loss.backward()
    return out


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "embed_dim is 768 but must be a multiple of num_heads = 5"),
        ({"final_dim": 255}, "final_dim is 255 but must be a multiple of num_codebooks = 2"),
        ({"layer_drop": 1.0}, r"layer_drop is 1.0 but must be in \[0, 1\)"),
        ({"mask_prob": 1.5}, r"mask_prob is 1.5 but must be in \[0, 1\]"),
        ({"num_layers": 0}, "num_layers is 0 but must be at least 1"),
        ({"logit_temperature": 0.0}, "logit_temperature is 0.0 but must be positive"),
        ({"conv_strides": (5, 2)}, "conv_kernels has 7 entries and conv_strides 2"),
        (
            {"conv_strides": (0,) * 7},
            r"conv_strides \[0, 0, 0, 0, 0, 0, 0\] but all must be at least",
        ),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wav2Vec2Config(**changes)


def test_frame_arithmetic() -> None:
    config = Wav2Vec2Config()
    assert (config.total_stride, config.receptive_field) == (320, 400)
    assert [config.num_frames(n) for n in (0, 399, 400, 719, 720, 250_000)] == [0, 0, 1, 1, 2, 781]
    model = make(TINY).eval()
    for num_samples in (400, 1_999, 2_000):
        assert model(torch.zeros(1, num_samples)).features.shape[1] == config.num_frames(
            num_samples
        )


def test_inputs_that_cannot_be_used() -> None:
    model, inputs = make(TINY), batch(TINY)
    with pytest.raises(ValueError, match="at least 400 samples"):
        model(torch.zeros(1, 399))
    with pytest.raises(ValueError, match="mask and distractors together"):
        model(inputs["waveforms"], mask=inputs["mask"])
    with pytest.raises(ValueError, match=r"mask has shape \(2, 23\) but must be \(2, 24\)"):
        model(**(inputs | {"mask": inputs["mask"][:, 1:]}))
    inputs["mask"][0] = False
    with pytest.raises(ValueError, match="the same number of frames in every row"):
        model(**inputs)


def test_initial_weights_have_the_reference_distributions(golden_dir: Path) -> None:
    """Mean and spread of BASE's parameters, within 6 standard errors of two samples."""
    reference = json.loads((golden_dir / "init_stats.json").read_text())
    model = make(Wav2Vec2Config(num_layers=1))
    parameters = dict(model.named_parameters())
    compared = set()
    for name, entry in reference.items():
        parameter = parameters.get(fairseq_name(name))
        if parameter is None:
            continue  # layers from the second on, and a product of two parameters
        mean, std, largest = entry["fairseq"]
        assert parameter.numel() == np.prod(entry["shape"]), name
        error = 6 * np.sqrt(2 / parameter.numel())
        assert abs(parameter.mean().item() - mean) <= error * std + 1e-7, name
        assert abs(parameter.std(correction=0).item() - std) <= error * std + 1e-7, name
        if std and parameter.numel() > 1000:  # uniform or normal: the extremes tell them apart
            assert parameter.abs().max().item() == pytest.approx(largest, rel=0.25), name
        compared.add(fairseq_name(name))
    assert compared == set(parameters)


def test_dropped_layers_are_skipped_completely() -> None:
    model = make(NO_DROPOUT)
    layers = model.encoder.context_network.layers
    calls: list[int] = []
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    backward(model, drop_layers=[False, True, False], temperature=1.0)
    assert calls == [0, 2]
    assert all(p.grad is None for p in layers[1].parameters())
    assert all(p.grad is not None for i in (0, 2) for p in layers[i].parameters())


def test_layer_drop_is_drawn_in_training_only() -> None:
    model = make(dataclasses.replace(TINY, num_layers=20, layer_drop=0.3))
    calls = [0]
    for layer in model.encoder.context_network.layers:
        layer.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    waveforms = torch.zeros(1, 400)
    for _ in range(20):
        model(waveforms)
    assert abs(calls[0] / 400 - 0.7) < 5 * np.sqrt(0.3 * 0.7 / 400)
    calls[0] = 0
    model.eval()(waveforms)
    assert calls[0] == 20


def test_recomputation_changes_nothing() -> None:
    """Activation checkpointing with every dropout on: the same loss and gradients, to the bit."""
    config = dataclasses.replace(TINY, activation_dropout=0.1)
    plain, recomputed = (
        make(config),
        make(dataclasses.replace(config, activation_checkpointing=True)),
    )
    calls = [0]
    layer = recomputed.encoder.context_network.layers[0]
    layer.attention.q_proj.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    drop = [False, False, True]
    losses = [backward(model, drop_layers=drop).loss for model in (plain, recomputed)]
    assert calls[0] == 2
    assert losses[0].item() == losses[1].item()
    expected = gradients(plain)
    for name, gradient in gradients(recomputed).items():
        assert torch.equal(gradient, expected.pop(name)), name
    assert not expected


@pytest.mark.parametrize("quantize_inputs", [False, True])
@pytest.mark.parametrize("quantize_targets", [False, True])
def test_ablations(quantize_inputs: bool, quantize_targets: bool) -> None:
    config = dataclasses.replace(
        NO_DROPOUT, quantize_inputs=quantize_inputs, quantize_targets=quantize_targets
    )
    model = make(config)
    out = backward(model, temperature=1.0)
    assert torch.isfinite(out.loss)
    total = out.contrastive_loss + out.diversity_loss + out.feature_penalty
    assert out.loss.item() == pytest.approx(total.item())
    missing = set(dict(model.named_parameters())) - set(gradients(model))
    assert not missing
    assert (model.quantizer is not None) == quantize_targets == (out.codes is not None)
    assert (model.encoder.input_quantizer is not None) == quantize_inputs
    quantized = quantize_inputs or quantize_targets
    assert (out.diversity_loss.item() > 0) == (out.prob_perplexity.item() > 0) == quantized
    assert model.target_projection.in_features == (16 if quantize_targets else config.conv_channels)
    width = config.embed_dim if quantize_inputs else config.conv_channels
    assert model.encoder.feature_projection.in_features == width


def test_identical_frames_are_no_distractors_of_continuous_targets() -> None:
    """Frames of digital silence are equal, so telling them apart is not asked for."""
    model = make(dataclasses.replace(NO_DROPOUT, quantize_targets=False))
    inputs = batch(model.config)
    inputs["waveforms"][:, 2_000:] = 0
    logits = model(**inputs).logits
    assert 0 < torch.isinf(logits).sum() < logits.numel() / 2


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_gradient_multiplier(scale: float) -> None:
    config = dataclasses.replace(NO_DROPOUT, extractor_norm="layer", conv_bias=True)
    reference, model = (
        make(dataclasses.replace(config, feature_grad_mult=s)) for s in (1.0, scale)
    )
    for m in (reference, model):
        backward(m)
    expected, ours = gradients(reference), gradients(model)
    for name, gradient in expected.items():
        inside = "feature_encoder" in name
        if inside and scale == 0:
            assert name not in ours
        else:
            torch.testing.assert_close(ours[name], gradient * (scale if inside else 1.0))


@pytest.mark.parametrize(("norm", "norm_first"), [("group", False), ("layer", True)])
def test_bfloat16(norm: Any, norm_first: bool) -> None:
    """A model cast as a whole runs; its loss is fp32 and near that of the same weights in fp32."""
    config = dataclasses.replace(NO_DROPOUT, extractor_norm=norm, norm_first=norm_first)
    model = make(config).to(torch.bfloat16)
    widened = make(config)
    widened.load_state_dict(model.state_dict())
    noise = {"gumbel_noise": torch.zeros(2, int(batch(config)["mask"][0].sum()), 2, 8)}
    out, expected = backward(model, **noise), backward(widened, **noise)
    assert out.loss.dtype == out.logits.dtype == torch.float32
    assert out.features.dtype == torch.bfloat16
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)
    flat = [
        torch.cat([g.double().flatten() for g in gradients(m).values()]) for m in (model, widened)
    ]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99
    assert flat[0].norm() == pytest.approx(flat[1].norm().item(), rel=0.02)


def test_features_alone() -> None:
    model, inputs = make(NO_DROPOUT).eval(), batch(NO_DROPOUT)
    out = model(inputs["waveforms"])
    assert out.features.shape == (2, 24, 32)
    assert out.loss is None
    assert out.num_masked == 0
    assert not torch.equal(out.features, model(**inputs).features)


def test_temperature_attribute_is_the_default() -> None:
    model = make(NO_DROPOUT)
    assert model(**batch(NO_DROPOUT)).temperature == 2.0
    model.temperature = 0.7
    assert model(**batch(NO_DROPOUT)).temperature == 0.7
    assert model(**batch(NO_DROPOUT), temperature=0.9).temperature == 0.9
