"""The wav2vec 2.0 body shared by both tasks, and the pre-training model made of it.
B batch, S samples, T frames, C conv channels, E Transformer width, M masked frames of a row,
K distractors, G codebooks, V entries."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from w2v2dist.model import losses
from w2v2dist.model.config import Wav2Vec2Config
from w2v2dist.model.context_network import ContextNetwork
from w2v2dist.model.dropout import Dropout
from w2v2dist.model.feature_encoder import FeatureEncoder, scale_gradient
from w2v2dist.model.quantizer import GumbelQuantizer, Quantized


class ModelOutput(NamedTuple):  # a tuple, because ZeRO-3's hooks look for tensors in tuples only
    """Context features (B, T or M, E), normalised conv features (B, T, C), mean square of the conv
    features, input codes where inputs are quantized, frames (B,) in host memory where rows are
    padded."""

    features: Tensor
    targets: Tensor
    feature_penalty: Tensor
    input_codes: Quantized | None
    num_frames: Tensor | None


class PretrainingOutput(NamedTuple):
    """What the pre-training model returns; losses (0-d, fp32) are weighted, summed over frames.
    features (B, T, E), or (B, M, E) of the masked frames alone · logits (B, M, 1 + K), the positive
    first · codes (B, M, G) of the targets, None where they are continuous · num_masked B * M ·
    perplexities 0-d, 0 without a quantizer. Without a mask all but the features is None or 0."""

    features: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
    feature_penalty: Tensor | None = None
    num_masked: int = 0
    num_correct: Tensor | None = None
    code_perplexity: Tensor | None = None
    prob_perplexity: Tensor | None = None
    temperature: float = 0.0
    codes: Tensor | None = None


class Wav2Vec2Model(nn.Module):
    """Feature encoder, projection (or input quantizer), masks, context network."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.feature_encoder = FeatureEncoder(config)
        self.layer_norm = nn.LayerNorm(config.conv_channels)
        quantize = config.quantize_inputs
        self.input_quantizer = GumbelQuantizer(config, config.embed_dim) if quantize else None
        projected = config.embed_dim if quantize else config.conv_channels
        self.feature_projection = nn.Linear(projected, config.embed_dim)
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.rand(config.embed_dim))
        self.context_network = ContextNetwork(config)

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor | None = None,
        masks: tuple[Tensor | None, Tensor | None] = (None, None),
        drop_layers: Sequence[bool] | None = None,
        temperature: float | None = None,
        freeze_feature_encoder: bool = False,
        frames: Tensor | None = None,
        block: int | None = None,
    ) -> ModelOutput:
        """waveforms (B, S); num_samples (B,), on the host for speed, where rows are padded; masks
        of time (B, T) and channels (B, E), True where masked; drop_layers one bool a layer, None to
        draw them in training; temperature for the input quantizer; frames (B, M, 1) int64 the only
        ones that context features are asked of, None for all; block the Transformer block (1: the
        first) whose output the context features are, without the norm after the last one, None for
        those of the whole model. Raises ValueError for waveforms shorter than a frame, masks of
        another shape or a block that is not there."""
        if waveforms.ndim != 2 or waveforms.shape[1] < self.config.receptive_field:
            raise ValueError(
                f"waveforms have shape {tuple(waveforms.shape)} but must be (batch, samples) with "
                f"at least {self.config.receptive_field} samples: leave out shorter recordings"
            )
        if block is not None and not 1 <= block <= self.config.num_layers:
            raise ValueError(
                f"block is {block} but the model has the blocks 1 to {self.config.num_layers}"
            )
        features, penalty = self._extract(waveforms, freeze_feature_encoder)
        features, quantized = self.layer_norm(features.mT), None  # (B, C, T) -> (B, T, C)
        if self.input_quantizer is None:
            x = self.input_dropout(self.feature_projection(features))
        else:
            start = self.config.temperature.start if temperature is None else temperature
            quantized = self.input_quantizer(self.input_dropout(features), start)
            x = self.feature_projection(quantized.codewords)
        time_mask, channel_mask = masks
        shapes = {"mask": x.shape[:2], "channel_mask": x.shape[::2]}
        for (name, shape), mask in zip(shapes.items(), masks, strict=True):
            if mask is not None and mask.shape != shape:
                raise ValueError(f"{name} has shape {(*mask.shape,)} but must be {(*shape,)}")
        if time_mask is not None:
            x = torch.where(time_mask.unsqueeze(2), self.mask_embedding, x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask.unsqueeze(1), 0)
        if drop_layers is None:
            drop_layers = self._draw_layer_drop()
        num_frames = on_device = None
        if num_samples is not None:
            counts = [self.config.num_frames(n) for n in num_samples.tolist()]
            if min(counts) != x.shape[1]:  # without padding, no attention mask
                num_frames = torch.tensor(counts)
                on_device = num_frames
        if num_frames is not None and x.is_cuda:  # from pinned memory the copy waits for nothing
            on_device = num_frames.pin_memory().to(x.device, non_blocking=True)
        x = self.context_network(x, on_device, drop_layers, frames, block)
        return ModelOutput(x, features, penalty, quantized, num_frames)

    def targets(self, waveforms: Tensor) -> Tensor:
        """The normalised conv features alone, without the context network: (B, S) -> (B, T, C)."""
        normalised: Tensor = self.layer_norm(self._extract(waveforms, freeze=True)[0].mT)
        return normalised

    def _extract(self, waveforms: Tensor, freeze: bool) -> tuple[Tensor, Tensor]:
        scale = 0.0 if freeze else self.config.feature_grad_mult
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            features: Tensor = self.feature_encoder(waveforms.to(self.mask_embedding.dtype))
        if features.requires_grad:
            features = scale_gradient(features, scale)
        return features, features.float().pow(2).mean()

    def _draw_layer_drop(self) -> list[bool]:
        if not self.training or self.config.layer_drop == 0:
            return [False] * self.config.num_layers
        draws = torch.rand(self.config.num_layers).tolist()
        return [draw <= self.config.layer_drop for draw in draws]


class Wav2Vec2ForPretraining(nn.Module):
    """The body, the target quantizer and the two projections that are compared (section 3.2).
    `temperature` (a plain attribute) is the Gumbel temperature of calls that do not give one."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.temperature = config.temperature.start
        self.encoder = Wav2Vec2Model(config)
        quantize = config.quantize_targets
        self.quantizer = GumbelQuantizer(config, config.final_dim) if quantize else None
        width = config.final_dim if quantize else config.conv_channels
        self.feature_dropout = Dropout(config.feature_dropout)
        self.target_projection = nn.Linear(width, config.final_dim)
        self.context_projection = nn.Linear(config.embed_dim, config.final_dim)

    def forward(
        self,
        waveforms: Tensor,
        mask: Tensor | None = None,
        distractors: Tensor | None = None,
        num_samples: Tensor | None = None,
        gumbel_noise: Tensor | None = None,
        temperature: float | None = None,
        drop_layers: Sequence[bool] | None = None,
        all_features: bool = True,
    ) -> PretrainingOutput:
        """waveforms (B, S); mask (B, T) bool with M True in every row; distractors (B, M, K) int64
        positions among the row's masked frames; num_samples (B,) where rows are padded;
        gumbel_noise (B, M, G, V). Without a mask only features are computed. Without
        `all_features` the last layer computes those of masked frames alone: the same losses in less
        time, but for dropout, which draws for these alone. Raises ValueError where shapes or counts
        do not fit."""
        if (mask is None) != (distractors is None):
            raise ValueError("give mask and distractors together, or neither for features alone")
        temperature = self.temperature if temperature is None else temperature
        frames = None  # (B, M, 1)
        if mask is not None and distractors is not None and not all_features:
            frames = masked_positions(mask, distractors.shape[1])
        body: ModelOutput = self.encoder(
            waveforms, num_samples, (mask, None), drop_layers, temperature, frames=frames
        )
        if mask is None or distractors is None:
            return PretrainingOutput(features=body.features, temperature=temperature)
        if frames is None:
            frames = masked_positions(mask, distractors.shape[1])
        targets = self.feature_dropout(body.targets.take_along_dim(frames, 1))
        quantized = body.input_codes
        if self.quantizer is None:
            ids = losses.vector_ids(targets)
        else:
            quantized = self.quantizer(targets, temperature, gumbel_noise)
            targets = quantized.codewords
            ids = losses.code_ids(quantized.codes, self.config.num_codebook_entries)
        context = body.features.take_along_dim(frames, 1) if all_features else body.features
        context = self.context_projection(context)
        targets, scale = self.target_projection(targets), self.config.logit_temperature
        logits = losses.contrastive_logits(context, targets, ids, distractors, scale)
        return self._with_losses(body, logits, quantized)._replace(temperature=temperature)

    @torch.no_grad()
    def codes(self, waveforms: Tensor) -> Tensor:
        """The targets' codes of every frame, the largest logits without noise, as in evaluation:
        (B, S) -> (B, T, G) int64. Raises ValueError where targets are not quantized."""
        if self.quantizer is None:
            raise ValueError(
                "its targets are continuous (model.quantize_targets is false): it has no codes"
            )
        return self.quantizer.logits(self.encoder.targets(waveforms)).argmax(-1)

    def _with_losses(
        self, body: ModelOutput, logits: Tensor, quantized: Quantized | None
    ) -> PretrainingOutput:
        num_masked = logits.shape[0] * logits.shape[1]
        contrastive, num_correct = losses.contrastive_loss(logits)
        diversity = code_perplexity = prob_perplexity = logits.new_zeros(())
        if quantized is not None and num_masked:
            code_perplexity, prob_perplexity = quantized.code_perplexity, quantized.prob_perplexity
            num_entries = self.config.num_codebooks * self.config.num_codebook_entries
            diversity = losses.diversity_loss(prob_perplexity, num_entries)
            diversity = diversity * (self.config.diversity_weight * num_masked)
        penalty = body.feature_penalty * (self.config.feature_penalty_weight * num_masked)
        return PretrainingOutput(
            features=body.features,
            logits=logits,
            loss=contrastive + diversity + penalty,
            contrastive_loss=contrastive,
            diversity_loss=diversity,
            feature_penalty=penalty,
            num_masked=num_masked,
            num_correct=num_correct,
            code_perplexity=code_perplexity.detach(),
            prob_perplexity=prob_perplexity.detach(),
            codes=quantized.codes if quantized is not None and self.quantizer is not None else None,
        )


def masked_positions(mask: Tensor, num_masked: int) -> Tensor:
    """Frames (B, M, 1) where `mask` (B, T) is True, in order; ValueError where a row has not M. A
    stable sort, not `nonzero`, whose unknown size would make the host wait for the GPU; for the
    same reason counts are checked on the CPU only."""
    if not mask.is_cuda and bool((mask.sum(1) != num_masked).any()):
        raise ValueError(
            f"mask has {mask.sum(1).tolist()} True frames per row but distractors are for "
            f"{num_masked}: mask the same number of frames in every row (span_mask does)"
        )
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order[:, :num_masked].unsqueeze(2)
