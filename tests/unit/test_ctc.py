"""The CTC model: masks, padding, freezing, weights of pre-training, and the loss by enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from w2v2dist.model import (
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPretraining,
    ctc_loss,
)

CONFIG = Wav2Vec2Config(
    conv_channels=16,
    extractor_norm="layer",  # group norm sees the padding, so rows would depend on each other
    num_layers=2,
    embed_dim=32,
    ffn_dim=48,
    num_heads=4,
    pos_conv_kernel=8,
    pos_conv_groups=4,
    layer_drop=0.0,
)


def make(config: Wav2Vec2Config = CONFIG) -> Wav2Vec2ForCTC:
    torch.manual_seed(0)
    return Wav2Vec2ForCTC(config, num_tokens=5)


def test_padding_changes_nothing() -> None:
    model = make().eval()
    short, long = torch.randn(1, 4_000), torch.randn(1, 8_000)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 4_000)), long])
    out = model(padded, num_samples=torch.tensor([4_000, 8_000]))
    assert out.num_frames.tolist() == [12, 24]
    torch.testing.assert_close(out.logits[:1, :12], model(short).logits)
    torch.testing.assert_close(out.logits[1:], model(long).logits)
    alone = model(long, num_samples=torch.tensor([8_000]))  # full rows take the path without a mask
    assert torch.equal(alone.logits, model(long).logits)
    assert alone.num_frames.tolist() == [24]


def test_masks() -> None:
    """A frame is masked by the embedding, a channel by zero: what was there does not matter."""
    model = make().eval()
    seen: list[torch.Tensor] = []
    model.encoder.context_network.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, 5:15] = True
    channels = torch.zeros(2, 32, dtype=torch.bool)
    channels[1, 3:9] = True
    model(torch.randn(2, 8_000), mask=mask, channel_mask=channels)
    x = seen[0]
    assert torch.equal(x[0, 5:15], model.encoder.mask_embedding.expand(10, -1))
    assert not x[1, :, 3:9].any()
    assert (x[0, :5] != 0).all()
    assert (x[1, 5:15, 9:] == model.encoder.mask_embedding[9:]).all()
    with pytest.raises(ValueError, match=r"channel_mask has shape \(2, 24\)"):
        model(torch.randn(2, 8_000), channel_mask=mask)


def loss_of(model: Wav2Vec2ForCTC, freeze_transformer: bool) -> torch.Tensor:
    out = model(torch.randn(1, 8_000), freeze_transformer=freeze_transformer)
    return ctc_loss(out.logits, out.num_frames, torch.tensor([[1, 2, 2]]), torch.tensor([3]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_freezing(checkpointing: bool) -> None:
    model = make(dataclasses.replace(CONFIG, activation_checkpointing=checkpointing))
    loss_of(model, freeze_transformer=True).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"token_projection.weight", "token_projection.bias"}
    loss_of(model, freeze_transformer=False).backward()
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    convolutions = {
        n for n, _ in model.named_parameters() if n.startswith("encoder.feature_encoder")
    }
    assert frozen == convolutions | {"encoder.mask_embedding"}  # no mask was given
    model.freeze_feature_encoder = False
    loss_of(model, freeze_transformer=False).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n in convolutions)


def test_weights_of_pre_training_load_by_name() -> None:
    pretrained = Wav2Vec2ForPretraining(CONFIG).eval()
    model = make().eval()
    prefix = "encoder."
    state = {n: t for n, t in pretrained.state_dict().items() if n.startswith(prefix)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("token_projection.") for name in missing)
    waveforms = torch.randn(1, 8_000)
    features = pretrained(waveforms).features
    assert torch.equal(model(waveforms).logits, model.token_projection(features))


def test_loss_is_the_sum_over_all_alignments() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3)
    texts, num_frames = [(1, 2), (2, 2)], [4, 3]
    expected = 0.0
    for row, text, frames in zip(logits, texts, num_frames, strict=True):
        log_probs = row.log_softmax(-1)
        total = 0.0
        for path in itertools.product(range(3), repeat=frames):
            collapsed = tuple(k for k, _ in itertools.groupby(path) if k != 0)
            if collapsed == text:
                total += math.exp(sum(log_probs[t, k].item() for t, k in enumerate(path)))
        expected -= math.log(total)
    loss = ctc_loss(logits, torch.tensor(num_frames), torch.tensor(texts), torch.tensor([2, 2]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_text_longer_than_its_frames_counts_nothing() -> None:
    logits = torch.randn(2, 3, 3, requires_grad=True)
    targets, lengths = torch.tensor([[1, 2, 1, 2], [1, 0, 0, 0]]), torch.tensor([4, 1])
    loss = ctc_loss(logits, torch.tensor([3, 3]), targets, lengths)
    alone = ctc_loss(logits[1:], torch.tensor([3]), targets[1:], lengths[1:])
    assert loss.item() == pytest.approx(alone.item())
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()
