"""The roofline: operators counted by hand, what a real forward pass keeps, growth with the audio,
fusion, memory by ZeRO stage, devices, and configurations that cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import roofline as printed
from w2v2dist.config import ConfigError
from w2v2dist.jobs import zero
from w2v2dist.jobs.devices import DEVICES, GIB, LINKS, check_name, of_gpu, this_cpu
from w2v2dist.jobs.fusion import fused
from w2v2dist.jobs.graph import ATTENTION, CONVOLUTIONS, FFN, POSITIONS, Graph, kept_of, trace
from w2v2dist.jobs.roofline import Prediction, predict
from w2v2dist.jobs.scaling import scaled
from w2v2dist.jobs.work import work_of
from w2v2dist.model import Wav2Vec2ForPretraining, distractor_positions, span_mask
from w2v2dist.tasks.train import read_config
from w2v2dist.training.engine import EngineConfig

ROOT = Path(__file__).parents[2]
BASE, LARGE, TINY = (
    str(ROOT / f"configs/{name}.yaml") for name in ("base_ls960", "large_lv60k", "tiny_pretrain")
)
H100 = DEVICES["h100"]
EXACT = "data.crop_multiple=1"  # slots of all the samples that they may have


def graph_of(module: Callable[[], nn.Module], *shape: int, gpu: bool = True) -> Graph:
    """Forward and backward of a module's sum."""

    def make() -> tuple[nn.Module, Callable[[], Tensor]]:
        model, x = module(), torch.empty(*shape, requires_grad=True)
        return model, lambda: model(x).sum()

    return trace(make, gpu=gpu)


class Attention(nn.Module):
    def __init__(self, causal: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.causal, self.dtype = causal, dtype

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return F.scaled_dot_product_attention(x, x, x, is_causal=self.causal)


def test_flops_by_hand() -> None:
    # Forward, the input's gradient and the weight's: three times 2 x rows x in x out
    assert graph_of(lambda: nn.Linear(5, 7), 11, 5).flops == 3 * 2 * 11 * 5 * 7
    conv = graph_of(lambda: nn.Conv1d(8, 6, 3, bias=False), 2, 8, 12)
    assert conv.flops == 3 * 2 * (2 * 10) * 6 * 8 * 3
    # Groups: each output sees a group's inputs alone, in the weight's gradient too
    grouped = graph_of(lambda: nn.Conv1d(8, 8, 3, groups=4, bias=False), 2, 8, 12)
    assert grouped.flops == 3 * 2 * (2 * 10) * 8 * 2 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flops_of_attention(dtype: torch.dtype) -> None:
    # Two products of 2 x B x H x T x T x D; backward four, and the scores anew
    whole = 7 * 2 * (2 * 3) * 16 * 16 * 8
    assert graph_of(lambda: Attention(False, dtype), 2, 3, 16, 8).flops == whole
    assert graph_of(lambda: Attention(True, dtype), 2, 3, 16, 8).flops == whole / 2
    assert graph_of(lambda: Attention(False, dtype), 2, 3, 16, 8, gpu=False).flops == whole


def test_bytes_by_hand() -> None:
    (linear, *_) = graph_of(lambda: nn.Linear(5, 7), 11, 5).operators
    assert linear.bytes == 4 * (11 * 5 + 5 * 7 + 7 + 11 * 7)


def test_parts_have_the_operators_of_their_modules() -> None:
    config = read_config(LARGE, [EXACT])
    found = predict(config, H100)
    model, frames = config.model, 4 * config.model.num_frames(300_000)
    rounds = config.data.virtual_world_size
    per_layer = 3 * 2 * frames * model.embed_dim
    ffn = found.parts[FFN].flops / rounds
    # The last layer's FFN and half of its attention are of the masked frames alone
    whole = model.num_layers * per_layer * 2 * model.ffn_dim
    assert (1 - 0.6 / model.num_layers) * whole < ffn < (1 - 0.4 / model.num_layers) * whole
    scores = 7 * 2 * frames * model.num_frames(300_000) * model.embed_dim
    attention = model.num_layers * (4 * per_layer * model.embed_dim + scores)
    assert found.parts[ATTENTION].flops / rounds == pytest.approx(attention, rel=0.03)
    taps = model.pos_conv_kernel * model.embed_dim // model.pos_conv_groups
    assert found.parts[POSITIONS].flops / rounds == pytest.approx(per_layer * taps, rel=0.01)
    convolutions, samples, channels = 0.0, 300_000, 1
    for kernel, stride in zip(model.conv_kernels, model.conv_strides, strict=True):
        samples = (samples - kernel) // stride + 1
        passes = 3 if channels > 1 else 2  # nobody asks for the waveform's gradient
        convolutions += passes * 2 * 4 * samples * kernel * channels * model.conv_channels
        channels = model.conv_channels
    # Matrix products in place of convolutions may multiply a few frames more
    assert found.parts[CONVOLUTIONS].flops / rounds == pytest.approx(convolutions, rel=0.05)


def test_flops_of_base_are_those_measured() -> None:
    # Forward and backward of 2 x 250,000 samples: 1,441 GFLOP
    found = predict(read_config(BASE, [EXACT, "data.max_samples_per_slot=500_000"]), H100, 64)
    stays = 1 - 0.05
    in_layers = sum(found.parts[name].flops for name in (ATTENTION, FFN))
    assert found.model_flops + in_layers * (1 / stays - 1) == pytest.approx(1.441e12, rel=0.03)


def test_large_as_counted_by_another_script() -> None:
    """9.3 TFLOP, 4.73 GiB kept, 1,226 kernels, 61 GB moved (43 without detours in the encoder);
    a leaner model may need less of the last three."""
    work = work_of(read_config(LARGE, [EXACT]), gpu=True)
    assert work.amount == 4 * 300_000
    assert work.graph.flops == pytest.approx(9.3e12, rel=0.05)
    assert 2.5 < work.graph.kept_bytes / GIB < 5.2
    assert 600 < len(work.kernels) < 1_500


def kept_in_truth(overrides: list[str]) -> float:
    """Bytes that a real forward pass of the tiny model saves, for 2 rows of 24,000 samples."""
    config = read_config(TINY, overrides).model
    torch.manual_seed(0)
    model = Wav2Vec2ForPretraining(config)
    rng, frames = np.random.default_rng(0), config.num_frames(24_000)
    mask = span_mask(rng, frames, 2, config)
    drawn = distractor_positions(rng, int(mask[0].sum()), 2, config.num_distractors)
    inputs = [torch.randn(2, 24_000), torch.from_numpy(mask), torch.from_numpy(drawn)]
    kept, _ = kept_of(model, lambda: model(*inputs, drop_layers=[False] * 4).loss)
    return kept


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.extractor_norm=layer"], ["model.dropout=0.1", "model.attention_dropout=0.1"]],
)
def test_kept_bytes_are_those_of_a_real_forward_pass(overrides: list[str]) -> None:
    data = ["data.max_samples_per_slot=48_000", "data.max_crop=24_000"]
    work = work_of(read_config(TINY, [*overrides, *data]), gpu=False)
    assert work.graph.kept_bytes == pytest.approx(kept_in_truth(overrides), rel=0.15)


def test_cost_grows_linearly_with_audio() -> None:
    found = [
        predict(read_config(TINY, [f"data.max_samples_per_slot={192_000 * n}"]), H100)
        for n in (1, 2, 4)
    ]
    values: list[Callable[[Prediction], float]] = [
        lambda p: p.flops,
        lambda p: p.kept_bytes,
        lambda p: p.compute_seconds,
        lambda p: sum(part.bytes for part in p.parts.values()),
    ]
    for value in values:
        one, two, four = map(value, found)
        assert four - two == pytest.approx(2 * (two - one), rel=0.04)  # masks are drawn
        assert two > one
    assert found[0].kernels == found[2].kernels


def test_checkpointing_trades_memory_for_time() -> None:
    plain, saving = (
        predict(read_config(LARGE, [f"model.activation_checkpointing={flag}"]), H100, 128, 16)
        for flag in (False, True)
    )
    assert saving.kept_bytes < 0.7 * plain.kept_bytes
    assert saving.memory_bytes < plain.memory_bytes
    assert saving.flops > 1.15 * plain.flops
    assert saving.model_flops == pytest.approx(plain.model_flops)
    assert saving.mfu < plain.mfu


def test_layer_drop_saves_its_share() -> None:
    overrides = ["model.layer_drop=0.25"]
    all_of_them = predict(read_config(LARGE, []), H100)
    some = predict(read_config(LARGE, overrides), H100)
    assert some.parts[FFN].seconds == pytest.approx(0.75 * all_of_them.parts[FFN].seconds)
    assert some.parts[POSITIONS] == all_of_them.parts[POSITIONS]
    assert some.kept_bytes == all_of_them.kept_bytes  # a step may drop none


class Chain(nn.Module):
    """Two passes over x that a compiler makes one, a product, and a sum that waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        y = (x.detach() * 2).tanh()
        return y + y.detach() @ self.weight.detach()


def test_fusion_by_hand() -> None:
    def make() -> tuple[nn.Module, Callable[[], Tensor]]:
        model, x = Chain(), torch.empty(64, 64)
        return model, lambda: model(x).sum() + model.weight.sum() * 0

    names = [op.name for op in fused(trace(make, gpu=True).operators)]
    # The product needs the chain, so that what needs the product is another one
    assert names[:3] == ["mul+tanh", "mm", "add+sum"]
    kernels = fused(trace(make, gpu=True).operators)
    assert kernels[0].bytes == 2 * 4 * 64 * 64


def test_fusion_moves_less_and_computes_the_same() -> None:
    config = read_config(BASE, [])
    plain, joined = (predict(config, H100, 64, 8, compiled=flag) for flag in (False, True))
    assert joined.flops == plain.flops
    assert joined.kernels < 0.95 * plain.kernels
    assert joined.compute_seconds < plain.compute_seconds
    for name, part in joined.parts.items():
        assert part.bytes <= plain.parts[name].bytes
    assert not predict(config, H100, 64, 8).fused or getattr(config.engine, "compile", False)


@pytest.mark.parametrize(
    ("precision", "stage", "state"),
    [
        # Bytes a parameter: whole on every process, and of what is split over 8
        ("fp32", 0, (16, 0)),
        ("fp32", 1, (8, 12)),
        ("bf16", 0, (8, 12)),
        ("bf16", 1, (8, 12)),
        ("fp16", 1, (6, 12)),
        ("bf16", 2, (2, 16)),
        ("bf16", 3, (2, 18)),
    ],
)
def test_state_by_stage(precision: Any, stage: int, state: tuple[int, int]) -> None:
    engine = EngineConfig(precision=precision, zero_stage=stage)
    graph = Graph(operators=[], kept_bytes=0, peak_bytes=0, sizes=(800,))
    held = zero.memory(engine, graph.sizes, graph, H100, 8)
    assert held.state == 800 * (state[0] + state[1] / 8)


def test_what_does_not_fit_says_what_helps() -> None:
    small = dataclasses.replace(H100, memory_bytes=6 * GIB)
    found = predict(read_config(LARGE, []), small, 128, 16)
    assert not found.fits
    for part in ("GiB of 6.0", "activation_checkpointing=true", "max_samples_per_slot", "zero"):
        assert part in found.remedy
    assert predict(read_config(LARGE, []), H100, 128, 16).remedy == ""


def test_configurations_that_cannot_be() -> None:
    short = ["data.max_crop=500", "data.min_samples=400", "data.max_samples_per_slot=1000"]
    config = read_config(str(ROOT / "configs/finetune/base_10m.yaml"), short)
    with pytest.raises(ConfigError, match=r"max_crop is 500 .* has 1 frames, and two are needed"):
        work_of(config, gpu=True)
    with pytest.raises(ValueError, match="virtual_world_size is 128 but the job has 129"):
        predict(read_config(LARGE, []), H100, 129)


def test_devices() -> None:
    with pytest.raises(ValueError, match=r"must be one of a100, .*did you mean h100\?"):
        check_name("h10")
    assert of_gpu("NVIDIA H100 80GB HBM3", 85e9) == dataclasses.replace(H100, memory_bytes=85e9)
    assert of_gpu("NVIDIA H200", 150e9).name == "h200"
    assert of_gpu("NVIDIA A100-SXM4-40GB", 42e9).name == "a100-40gb"
    with pytest.raises(ValueError, match=r"'Tesla V100', .*add its rates to DEVICES"):
        of_gpu("Tesla V100", 16e9)
    cpu = this_cpu()
    assert cpu is this_cpu()  # measured once
    assert cpu.fp32_flops > 1e9
    assert cpu.bandwidth > 1e8
    for device in DEVICES.values():
        assert device.fp32_flops < device.matrix_flops < device.peak_flops


@pytest.mark.parametrize("path", ["finetune/large_100h", "lm/transformer_librispeech", "lm/tiny"])
def test_other_trainings(path: str) -> None:
    config = read_config(str(ROOT / f"configs/{path}.yaml"), [])
    found = predict(config, H100, config.data.virtual_world_size, 8)
    assert found.fits
    assert 0 < found.mfu < 1
    assert found.step_seconds > found.exposed_seconds
    # A frozen encoder goes forward alone
    convolutions = found.parts[CONVOLUTIONS]
    if found.parts[POSITIONS].flops:
        whole = predict(dataclasses.replace(config, freeze_feature_encoder=False), H100, 20, 3)
        assert convolutions.flops < 0.4 * whole.parts[CONVOLUTIONS].flops


def test_exchange_and_efficiency() -> None:
    sizes = [200_000, 50_000]
    steps = [zero.exchange(EngineConfig(zero_stage=s), sizes, 3) for s in (1, 2, 3)]
    sent = [sum(c.sent_bytes(8) for c in step) for step in steps]
    share, total = 7 / 8, sum(sizes)
    assert sent[0] == pytest.approx(share * (2 * 4 + 2) * total)
    assert sent[1] == pytest.approx(share * (3 * 2 * 4 + 2) * total)
    assert sent[2] == pytest.approx(share * (3 * 4 * total + 3 * 2 * sizes[0] + 2 * sizes[1]))
    assert all(c.seconds(H100, LINKS["8x400"], 1, 1) == 0 for c in steps[1])
    (gradients, weights) = steps[0]
    large = dataclasses.replace(gradients, tail=0.25)
    # Behind the last backward pass, but for the piece that its end completes
    assert [large.exposed(8.0, backward, 3) for backward in (100.0, 2.0)] == [2.0, 6.0]
    assert weights.exposed(8.0, 100.0, 3) == 8.0
    assert steps[1][0].exposed(8.0, 100.0, 3) == 8.0
    assert steps[2][0].exposed(8.0, 2.0, 3) == 2.0
    found = list(scaled(read_config(LARGE, ["engine.zero_stage=1"]), H100))
    fast, slow = found[:4], found[4:]
    for group in (fast, slow):
        efficiency = [one.efficiency for one in group]
        assert efficiency == sorted(efficiency, reverse=True)
        assert [one.num_slots for one in group] == [128, 128, 128, 512]
        assert all(0 < value <= 1.001 for value in efficiency)
    assert all(a.efficiency > b.efficiency for a, b in zip(fast[1:], slow[1:], strict=True))
    assert fast[0].efficiency == slow[0].efficiency  # one node


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # its own configurations are found from everywhere
    assert printed.main(["engine.zero_stage=9"]) == 2
    assert "zero_stage is 9 but must be 0, 1, 2 or 3" in capsys.readouterr().err
    command = [TINY, "--gpu", "h100", "--operators", "3", "--scaling", "engine.precision=bf16"]
    assert printed.main(command) == 0
    text = capsys.readouterr().out
    for part in ("| h100, fused |", "| FFN |", "Operators, h100", "| 512 | 512 |", "kept "):
        assert part in text
    assert printed.main([TINY, "--gpu", "v100"]) == 2
    assert "gpu is 'v100'" in capsys.readouterr().err
    folder = str(ROOT / "configs")
    assert printed.main([folder]) == 2
    assert f"{folder} cannot be read (Is a directory)" in capsys.readouterr().err
    for option, value in (("--world-size", "0"), ("--world-size", "-2"), ("--operators", "-3")):
        with pytest.raises(SystemExit):
            printed.main([TINY, option, value])
        assert f"{option} is {value} but must" in capsys.readouterr().err
