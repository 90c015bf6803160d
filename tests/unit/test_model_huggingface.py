"""The model against Hugging Face's with the same random weights, nothing downloaded."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tests.unit.test_model_parity import NO_DROPOUT
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
    """Their model and ours with one set of random weights, in evaluation mode, without dropout."""
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
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            feat_quantizer_dropout=0.0,
            layerdrop=0.0,
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
            # theirs has neither of them
            feature_grad_mult=1.0,
            feature_penalty_weight=0.0,
            **NO_DROPOUT,
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


def their_batch(num_samples: Tensor, mask: Tensor, distractors: Tensor) -> dict[str, Tensor]:
    """The same batch as their arguments: distractors count frames through the whole batch."""
    positions = torch.stack([row.nonzero().flatten() for row in mask])  # (B, M)
    flat = torch.zeros(*mask.shape, distractors.shape[2], dtype=torch.int64)
    for row in range(len(mask)):
        flat[row, positions[row]] = row * mask.shape[1] + positions[row][distractors[row]]
    return {
        "attention_mask": (torch.arange(12_000) < num_samples[:, None]).long(),
        "mask_time_indices": mask,
        "sampled_negative_indices": flat,
    }


@pytest.mark.parametrize("layer_norm", [False, True])
def test_features_targets_and_loss(layer_norm: bool) -> None:
    theirs, ours = pair(layer_norm)
    waveforms, num_samples, mask, distractors = batch()
    theirs_in = their_batch(num_samples, mask, distractors)
    targets = []
    ours.target_projection.register_forward_hook(lambda *call: targets.append(call[2]))
    with torch.no_grad():
        reference = theirs(waveforms, **theirs_in)
        out = ours(waveforms, mask, distractors, num_samples)
        projected = ours.context_projection(out.features)
    valid = torch.arange(37) < torch.tensor([37, ours.config.num_frames(9_000)])[:, None]
    torch.testing.assert_close(
        projected[valid], reference.projected_states[valid], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        targets[0].flatten(0, 1), reference.projected_quantized_states[mask], rtol=1e-5, atol=1e-5
    )
    # (1 + K, B, T), the positive first: theirs computes them for every frame
    quantized = reference.projected_quantized_states
    negatives = quantized.flatten(0, 1)[theirs_in["sampled_negative_indices"]].permute(2, 0, 1, 3)
    logits = theirs.compute_contrastive_logits(
        quantized[None],
        negatives,
        reference.projected_states,
        theirs.config.contrastive_logits_temperature,
    )
    logits = logits.permute(1, 2, 0)[mask].view_as(out.logits)
    finite = torch.isfinite(out.logits)  # a distractor equal to the positive is masked later
    torch.testing.assert_close(out.logits[finite], logits[finite], rtol=1e-5, atol=1e-4)
    assert out.contrastive_loss.item() == pytest.approx(reference.contrastive_loss.item(), rel=1e-5)
    assert out.code_perplexity.item() == pytest.approx(
        reference.codevector_perplexity.item(), rel=1e-4
    )
    # theirs measures diversity on hard codes in evaluation, the paper and ours on probabilities
    assert reference.diversity_loss.item() == pytest.approx(
        (32 - out.code_perplexity.item()) / 32 * out.num_masked, rel=1e-4
    )


@pytest.mark.parametrize("layer_norm", [False, True])
def test_training_losses_and_gradients(layer_norm: bool) -> None:
    """With the same Gumbel noise: contrastive, diversity and total loss, every gradient's norm."""
    theirs, ours = pair(layer_norm)
    waveforms, num_samples, mask, distractors = batch()
    # theirs draws noise for every frame: the seed set just before it gives the same draw here
    theirs.quantizer.register_forward_pre_hook(lambda *_: torch.manual_seed(7) and None)
    torch.manual_seed(7)
    noise = -torch.empty(*mask.shape, 2, 16).exponential_().log()
    ours_in = {"gumbel_noise": noise[mask].view(2, 8, 2, 16), "temperature": 1.5}
    with torch.no_grad():
        codes = ours.train()(waveforms, mask, distractors, num_samples, **ours_in).codes
    # Distractors of other codes than the positive's: theirs compares codewords as floats, which
    # its straight-through sum leaves unequal in the last bit
    others = (codes[:, :, None] != codes[:, None]).any(-1).flatten(0, 1)  # (B * M, M)
    distractors = torch.multinomial(others.float(), 5, replacement=True).view(2, 8, 5)
    theirs.set_gumbel_temperature(1.5)
    reference = theirs.train()(waveforms, **their_batch(num_samples, mask, distractors))
    reference.loss.backward()
    out = ours(waveforms, mask, distractors, num_samples, **ours_in)
    out.loss.backward()
    assert out.contrastive_loss.item() == pytest.approx(reference.contrastive_loss.item(), rel=1e-5)
    assert out.diversity_loss.item() == pytest.approx(
        0.1 * reference.diversity_loss.item(), rel=1e-5
    )
    assert out.prob_perplexity.item() == pytest.approx(
        reference.codevector_perplexity.item(), rel=1e-5
    )
    assert out.loss.item() == pytest.approx(reference.loss.item(), rel=1e-5)
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        ours_grad = gradients.pop(our_name(name)).grad
        if name.endswith("k_proj.bias"):
            continue  # the true gradient of a bias of all keys is 0
        norm = parameter.grad.norm().item()
        assert norm > 0, name
        assert ours_grad.norm().item() == pytest.approx(norm, rel=1e-4), name
        error = (ours_grad.view_as(parameter) - parameter.grad).norm().item()
        assert error <= 1e-3 * norm, name
    assert gradients == {}


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


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_output_of_a_block(layer_norm: bool) -> None:
    """Their hidden_states[n], after block n, without the norm behind the last one."""
    theirs, ours = pair(layer_norm)
    waveforms = batch()[0]
    with torch.no_grad():
        states = theirs(waveforms, output_hidden_states=True).hidden_states
        found = [ours.encoder(waveforms, block=n).features for n in (1, 2, 3)]
        whole = ours.encoder(waveforms).features
    for features, state in zip(found, states[1:], strict=True):
        torch.testing.assert_close(features, state, rtol=1e-5, atol=1e-5)
    norm = ours.encoder.context_network.norm if layer_norm else torch.nn.Identity()
    assert torch.equal(norm(found[2]), whole)
    for n in (0, 4, -1):
        with pytest.raises(ValueError, match=f"block is {n} but the model has the blocks 1 to 3"):
            ours.encoder(waveforms, block=n)


def test_a_block_does_not_wait_for_those_after_it() -> None:
    _, ours = pair(True)
    for layer in ours.encoder.context_network.layers[1:]:
        layer.forward = None  # type: ignore[assignment]
    assert ours.encoder(batch()[0], block=1).features.shape == (2, 37, 48)
