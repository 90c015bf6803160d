"""Layers that compute what torch's would, in another way: against torch's, values and gradients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v2dist.model import (
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPretraining,
    ctc_loss,
    winograd_conv,
)
from w2v2dist.model import attention as attention_module
from w2v2dist.model.attention import dropped_attention
from w2v2dist.model.context_network import TransformerLayer
from w2v2dist.model.dropout import Dropout, kept, noise, noises
from w2v2dist.model.feature_encoder import ChannelGroupNorm, FeatureEncoder, WaveformConv
from w2v2dist.model.fourier_convolution import fourier_convolution
from w2v2dist.model.strided_conv import StridedConv
from w2v2dist.model.wav2vec2 import Wav2Vec2Model

TINY = Wav2Vec2Config(
    conv_channels=16,
    num_layers=3,
    embed_dim=32,
    ffn_dim=64,
    num_heads=4,
    pos_conv_kernel=8,
    pos_conv_groups=4,
    final_dim=16,
    num_codebook_entries=20,
    num_distractors=5,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    feature_dropout=0.0,
    layer_drop=0.0,
)


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert (our - their).abs().max() <= tolerance * their.abs().max()


@pytest.mark.parametrize("num_frames", [50, 51, 53])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "bias"),
    [
        ((1, 8), 10, 5, True),
        ((8, 16), 3, 2, False),
        ((8, 16), 2, 2, True),
        ((4, 6), 3, 3, False),
        ((4, 6), 4, 1, True),
        ((4, 6), 2, 3, True),  # samples that nothing sees
        ((1, 4), 40, 10, False),
    ],
)
def test_a_strided_convolution(
    channels: tuple[int, int], kernel: int, stride: int, bias: bool, num_frames: int
) -> None:
    torch.manual_seed(0)
    conv = StridedConv(*channels, kernel, stride, bias=bias).double()
    x = torch.randn(3, num_frames, channels[0], dtype=torch.double, requires_grad=True)
    given = F.gelu(x) if channels[0] > 1 else x
    theirs = F.conv1d(given.mT, conv.weight, conv.bias, stride=stride).mT
    ours, grad = conv(x), torch.randn_like(theirs)
    inputs = (x, *conv.parameters())
    close((ours,), (theirs,), 1e-12)
    close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), 1e-12)


@pytest.mark.parametrize("num_frames", [3, 4, 5, 6, 7, 41, 42, 43, 44])  # 1 to 21 are made
@pytest.mark.parametrize("bias", [False, True])
def test_a_strided_convolution_in_pairs(
    num_frames: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd_conv, "WIDE", 4)
    monkeypatch.setattr(winograd_conv, "CACHED", 4 * 6)  # four pairs at a time
    pieces = []

    def counted(weight: Tensor, y: Tensor) -> list[slice]:
        pieces.append([*as_written(weight, y)])
        return pieces[-1]

    as_written = winograd_conv._pieces
    monkeypatch.setattr(winograd_conv, "_pieces", counted)
    test_a_strided_convolution((4, 6), 3, 2, bias, num_frames)
    made = (num_frames - 1) // 2
    rows, ways = 3, 3
    assert [len(p) for p in pieces] == [-(-(made // 2) // 4)] * rows * ways * (made > 1)


def test_a_strided_convolution_in_16_bits_is_rounded_once() -> None:
    torch.manual_seed(0)
    conv = StridedConv(16, 32, 3, 2, bias=False).bfloat16()
    x = torch.randn(2, 101, 16).bfloat16()
    exact = F.conv1d(F.gelu(x).float().mT, conv.weight.float(), stride=2).mT
    off = (conv(x).float() - exact).abs()
    assert (off <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_first_norm_without_the_convolution_that_it_normalises(offset: float) -> None:
    torch.manual_seed(0)
    conv, norm = WaveformConv(1, 32, 10, 5, bias=True), ChannelGroupNorm(32)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    waveforms = torch.randn(2, 4_000) + offset
    inputs = (conv.weight, norm.weight, norm.bias)
    ours = norm(conv(waveforms.unsqueeze(2)))
    given = F.conv1d(waveforms.double().unsqueeze(1), conv.weight.double(), stride=5)
    weight, bias = norm.weight.double(), norm.bias.double()
    theirs = F.group_norm(given, 32, weight, bias, norm.eps).mT
    grad = torch.randn_like(ours)
    close((ours,), (theirs,), 1e-6)
    wanted = torch.autograd.grad(theirs, inputs, grad.double())
    close(torch.autograd.grad(ours, inputs, grad, retain_graph=True), wanted, 2e-6)
    (of_bias,) = torch.autograd.grad(ours, conv.bias, grad)
    assert not of_bias.any()  # the norm takes it away


@pytest.mark.parametrize(
    ("num_frames", "width", "groups", "kernel"),
    [(300, 32, 4, 128), (5, 32, 16, 128), (129, 16, 4, 128), (7, 32, 16, 3), (1, 8, 2, 16)],
)
def test_a_convolution_by_fourier_transforms(
    num_frames: int, width: int, groups: int, kernel: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, num_frames, width, requires_grad=True)
    weight = torch.randn(width, width // groups, kernel, requires_grad=True)
    theirs = F.conv1d(x.double().mT, weight.double(), padding=kernel // 2, groups=groups)
    theirs = theirs[:, :, :num_frames].mT
    ours, grad = fourier_convolution(x, weight, groups), torch.randn(2, num_frames, width)
    close((ours,), (theirs,), 1e-6)
    wanted = torch.autograd.grad(theirs, (x, weight), grad.double())
    close(torch.autograd.grad(ours, (x, weight), grad), wanted, 1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("num_asked", [40, 11])
def test_attention_with_dropout(
    padded: bool, num_asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, num_asked, 8, requires_grad=True)
    k, v = (torch.randn(2, 4, 40, 8, requires_grad=True) for _ in range(2))
    mask = (torch.arange(40) < torch.tensor([[40], [25]]))[:, None, None] if padded else None
    draws = []

    def kept_noises(shapes: list[torch.Size], p: float) -> list[Tensor]:
        draws.extend(noises(shapes, p))
        return draws

    monkeypatch.setattr(attention_module, "noises", kept_noises)
    monkeypatch.setattr(attention_module, "CACHED", 3 * 40 * num_asked)  # in three parts
    ours, grad = dropped_attention(q, k, v, mask, 0.25), torch.randn(2, 4, num_asked, 8)
    assert [len(d) for d in draws] == [3, 3, 2]
    scores = q @ k.mT / math.sqrt(8)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    dropped = (torch.cat(draws) < 0).view_as(scores)
    theirs = scores.softmax(-1).masked_fill(dropped, 0) / kept(0.25) @ v
    close((ours,), (theirs,), 1e-6)
    wanted = torch.autograd.grad(theirs, (q, k, v), grad)
    close(torch.autograd.grad(ours, (q, k, v), grad), wanted, 2e-6)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_dropout_drops_so_many_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1_001, 997, requires_grad=True)  # no multiple of 4 elements
    y = Dropout(p)(x)
    assert float((y == 0).double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p / x.numel()))
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / kept(p)))
    assert kept(p) == pytest.approx(1 - p, abs=2**-17)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(Dropout(p)(x), y)  # the seed says which
    assert torch.equal(Dropout(p).eval()(x), x)


def test_draws_are_the_same_with_any_number_of_threads() -> None:
    shapes = [torch.Size(s) for s in ((3, 50), (7,), (0, 4), (2, 3, 5))]
    before, drawn = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            torch.manual_seed(0)
            drawn.append([*noises(shapes, 0.1)])
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(0)
    for one_by_one, *together in zip([noise(s, 0.1) for s in shapes], *drawn, strict=True):
        assert all(torch.equal(one_by_one, t) for t in together)


def test_dropout_in_16_bits_is_not_biased() -> None:
    torch.manual_seed(0)
    y = Dropout(0.1)(torch.ones(10, dtype=torch.bfloat16))
    assert set(y.tolist()) <= {0.0, float(torch.tensor(1 / kept(0.1)).bfloat16())}


def slot(config: Wav2Vec2Config, num_masked: int) -> tuple[Tensor, Tensor, Tensor]:
    """Waveforms (2, 8,000), masks and distractors of so many frames in each row."""
    mask = torch.zeros(2, config.num_frames(8_000), dtype=torch.bool)
    mask[:, :num_masked] = True
    most = max(1, num_masked)
    return torch.randn(2, 8_000), mask, torch.randint(0, most, (2, num_masked, 5))


@pytest.mark.parametrize("all_features", [False, True])
def test_no_frame_is_masked(all_features: bool) -> None:
    config = dataclasses.replace(TINY, dropout=0.1, attention_dropout=0.1, feature_dropout=0.1)
    model = Wav2Vec2ForPretraining(config)
    out = model(*slot(config, 0), all_features=all_features)
    out.loss.backward()
    assert float(out.loss.detach()) == 0


def test_one_channel_is_no_waveform() -> None:
    """Its GELU is not left out."""
    encoder = FeatureEncoder(dataclasses.replace(TINY, conv_channels=1, extractor_norm="layer"))
    waveforms = torch.randn(2, 4_000)
    x = waveforms.unsqueeze(1)
    for layer in encoder.layers:
        x = F.conv1d(x, layer[0].weight, layer[0].bias, stride=layer[0].stride)
        x = F.gelu(F.layer_norm(x.mT, (1,), layer[1].weight, layer[1].bias).mT)
    torch.testing.assert_close(encoder(waveforms), x)


def test_a_padded_row_of_less_than_a_frame_has_finite_gradients() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(dataclasses.replace(TINY, attention_dropout=0.1), 30).train()
    out = model(torch.randn(2, 8_000), torch.tensor([8_000, 300]))
    ctc_loss(out.logits, out.num_frames, torch.tensor([3, 4]), torch.tensor([2, 0])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("module", ["encoder", "layer"])
def test_torch_compile_takes_the_same_way(module: str) -> None:
    """Also with dropout, whose draws would be others."""
    config = dataclasses.replace(TINY, dropout=0.1, attention_dropout=0.1)
    model = FeatureEncoder(config) if module == "encoder" else TransformerLayer(config)
    given = (torch.randn(2, 4_000),) if module == "encoder" else (torch.randn(2, 30, 32), None)
    torch.manual_seed(0)
    plain = model(*given)
    torch.manual_seed(0)
    compiled = torch.compile(model.forward, backend="eager", dynamic=True)(*given)
    torch.testing.assert_close(compiled, plain)


class Features(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.encoder(waveforms).features  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("extractor_norm", ["group", "layer"])
def test_other_ways_to_run_a_model(extractor_norm: Any) -> None:
    """In fp64, under autocast, exported and traced."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, extractor_norm=extractor_norm, attention_dropout=0.1)
    encoder, waveforms = Wav2Vec2Model(config).eval(), torch.randn(2, 8_000)
    expected = encoder(waveforms).features
    exported = torch.export.export(encoder, (waveforms,)).module()(waveforms)
    torch.testing.assert_close(exported[0], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        traced = torch.jit.trace(Features(encoder), (waveforms,))
    torch.testing.assert_close(traced(waveforms), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        near = encoder(waveforms).features
        Wav2Vec2ForPretraining(config)(*slot(config, 10)).loss.backward()
    assert torch.cosine_similarity(near.float().flatten(), expected.flatten(), dim=0) > 0.99
    exact = encoder.double()(waveforms.double()).features
    torch.testing.assert_close(exact.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("drop", [[False, False, True], [True, True, True], [False] * 3])
def test_the_last_layer_may_be_asked_for_masked_frames_alone(
    norm_first: bool, drop: list[bool]
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, norm_first=norm_first, activation_checkpointing=drop[2])
    model = Wav2Vec2ForPretraining(config)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 3:13], mask[1, 10:20] = True, True
    given = (torch.randn(2, 8_000), mask, torch.randint(0, 10, (2, 10, 5)))
    noise_ = torch.rand(2, 10, 2, 20)
    gradients, losses, features = [], [], []
    for all_features in (True, False):
        model.zero_grad()
        out = model(*given, gumbel_noise=noise_, drop_layers=drop, all_features=all_features)
        out.loss.backward()
        losses.append(out.loss.detach())
        features.append(out.features)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert features[0].shape == (2, 24, 32)
    torch.testing.assert_close(features[1].flatten(0, 1), features[0][mask], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        off = (gradients[1][name] - gradient).abs().max()
        assert off < 2e-5 * gradient.abs().max() + 1e-8, name  # zero of the keys' biases
