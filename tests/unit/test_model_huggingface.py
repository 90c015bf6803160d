"""The model against Hugging Face's with the same random weights, nothing downloaded."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining

transformers = pytest.importorskip("transformers")

NAMES = (
    (
        r"^wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.conv\.",
        r"encoder.feature_encoder.layers.\1.0.",
    ),
    (
        r"^wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.layer_norm\.",
        r"encoder.feature_encoder.layers.\1.1.",
    ),
    (r"^wav2vec2\.feature_projection\.layer_norm\.", "encoder.layer_norm."),
    (r"^wav2vec2\.feature_projection\.projection\.", "encoder.feature_projection."),
    (r"^wav2vec2\.masked_spec_embed$", "encoder.mask_embedding"),
    (r"^wav2vec2\.encoder\.pos_conv_embed\.conv\.", "encoder.context_network.positions."),
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
    (r"^wav2vec2\.encoder\.layer_norm\.", "encoder.context_network.norm."),
    (r"^wav2vec2\.encoder\.layers\.", "encoder.context_network.layers."),
    (r"(layers\.\d+)\.layer_norm\.", r"\1.attention_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".ffn_in."),
    (r"\.feed_forward\.output_dense\.", ".ffn_out."),
    (r"\.final_layer_norm\.", ".final_norm."),
    (r"^quantizer\.codevectors$", "quantizer.codebooks"),
    (r"^quantizer\.weight_proj\.", "quantizer.projection."),
    (r"^project_q\.", "target_projection."),
    (r"^project_hid\.", "context_projection."),
)


def our_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def pair(layer_norm: bool) -> tuple[torch.nn.Module, Wav2Vec2ForPretraining]:
    """Their model and ours with one set of random weights, in evaluation mode."""
    torch.manual_seed(3)
    theirs = transformers.Wav2Vec2ForPreTraining(
        transformers.Wav2Vec2Config(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            feat_extract_norm="layer" if layer_norm else "group",
            do_stable_layer_norm=layer_norm,
            conv_bias=layer_norm,
            conv_dim=(24,) * 7,
            num_codevectors_per_group=16,
            codevector_dim=32,
            proj_codevector_dim=32,
            diversity_loss_weight=0.1,
        )
    ).eval()
    with torch.no_grad():  # so that norms and biases count
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ours = Wav2Vec2ForPretraining(
        Wav2Vec2Config(
            conv_channels=24,
            conv_bias=layer_norm,
            extractor_norm="layer" if layer_norm else "group",
            norm_first=layer_norm,
            num_layers=3,
            embed_dim=48,
            ffn_dim=96,
            num_heads=4,
            num_codebook_entries=16,
            final_dim=32,
        )
    ).eval()
    state = {our_name(name): tensor for name, tensor in theirs.state_dict().items()}
    state["quantizer.codebooks"] = state["quantizer.codebooks"].view(2, 16, -1)
    ours.load_state_dict(state)
    return theirs, ours


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Waveforms (2, 12000), lengths, a mask (2, 37) with 8 True a row, distractors (2, 8, 5)."""
    torch.manual_seed(4)
    mask = torch.zeros(2, 37, dtype=torch.bool)
    mask[0, [2, 3, 4, 5, 20, 21, 22, 23]] = True
    mask[1, 10:18] = True
    distractors = (torch.arange(8)[None, :, None] + torch.randint(1, 8, (2, 8, 5))) % 8
    return torch.randn(2, 12_000), torch.tensor([12_000, 9_000]), mask, distractors


@pytest.mark.parametrize("layer_norm", [False, True])
def test_features_targets_and_loss(layer_norm: bool) -> None:
    theirs, ours = pair(layer_norm)
    waveforms, num_samples, mask, distractors = batch()
    attention_mask = (torch.arange(12_000) < num_samples[:, None]).long()
    positions = torch.stack([row.nonzero().flatten() for row in mask])  # (B, M)
    flat = torch.zeros(2, 37, 5, dtype=torch.int64)  # theirs counts frames through the whole batch
    for row in range(2):
        flat[row, positions[row]] = row * 37 + positions[row][distractors[row]]
    with torch.no_grad():
        reference = theirs(
            waveforms,
            attention_mask=attention_mask,
            mask_time_indices=mask,
            sampled_negative_indices=flat,
            output_hidden_states=True,
        )
        out = ours(waveforms, mask, distractors, num_samples)
        projected = ours.context_projection(out.features)
    valid = torch.arange(37) < torch.tensor([37, ours.config.num_frames(9_000)])[:, None]
    torch.testing.assert_close(
        projected[valid], reference.projected_states[valid], rtol=1e-5, atol=1e-5
    )
    assert out.contrastive_loss.item() == pytest.approx(reference.contrastive_loss.item(), rel=1e-5)
    assert out.code_perplexity.item() == pytest.approx(
        reference.codevector_perplexity.item(), rel=1e-4
    )
    # theirs measures diversity on hard codes in evaluation, the paper and ours on probabilities
    assert reference.diversity_loss.item() == pytest.approx(
        (32 - out.code_perplexity.item()) / 32 * out.num_masked, rel=1e-4
    )


def test_features_without_mask_or_padding() -> None:
    theirs, ours = pair(layer_norm=True)
    waveforms = batch()[0]
    with torch.no_grad():
        reference = theirs.wav2vec2(waveforms).last_hidden_state
        torch.testing.assert_close(ours(waveforms).features, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_samples", [400, 719, 720, 12_345, 250_000])
def test_num_frames(num_samples: int) -> None:
    theirs = pair(layer_norm=False)[0].wav2vec2
    expected = int(theirs._get_feat_extract_output_lengths(torch.tensor(num_samples)))
    assert Wav2Vec2Config().num_frames(num_samples) == expected
