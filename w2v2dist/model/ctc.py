"""Fine-tuning: the pre-trained body and one linear layer, trained with CTC (section 3.3).
B batch, S samples, T frames, E Transformer width."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v2dist.model.config import Wav2Vec2Config
from w2v2dist.model.wav2vec2 import ModelOutput, Wav2Vec2Model


class CTCOutput(NamedTuple):
    """logits (B, T, num_tokens) and the frames of each row that are not padding, (B,) int64 in host
    memory, where the loss wants them: on a GPU it would wait for it."""

    logits: Tensor
    num_frames: Tensor


class Wav2Vec2ForCTC(nn.Module):
    """Letters or phones from speech. `freeze_feature_encoder` (a plain attribute, True as in the
    paper) keeps the convolutions as they are."""

    def __init__(self, config: Wav2Vec2Config, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.freeze_feature_encoder = True
        self.encoder = Wav2Vec2Model(config)
        self.token_projection = nn.Linear(config.embed_dim, num_tokens)
        nn.init.xavier_uniform_(self.token_projection.weight)
        nn.init.zeros_(self.token_projection.bias)

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        drop_layers: Sequence[bool] | None = None,
        freeze_transformer: bool = False,
    ) -> CTCOutput:
        """waveforms (B, S); num_samples (B,) where rows are padded; mask (B, T) and channel_mask
        (B, E) bool, True where masked. With `freeze_transformer` only the output projection gets
        gradients."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze_transformer):
            freeze, masks = self.freeze_feature_encoder, (mask, channel_mask)
            body: ModelOutput = self.encoder(
                waveforms, num_samples, masks, drop_layers, freeze_feature_encoder=freeze
            )
        features, num_frames = body.features, body.num_frames
        if num_frames is None:
            num_frames = torch.full(features.shape[:1], features.shape[1])
        return CTCOutput(self.token_projection(features), num_frames)


def ctc_loss(
    logits: Tensor, num_frames: Tensor, targets: Tensor, target_lengths: Tensor, blank: int = 0
) -> Tensor:
    """CTC loss in fp32 summed over utterances, 0-d; 0 for one with more text than frames. logits
    (B, T, num_tokens); num_frames, target_lengths (B,); targets (B, L) padded, or end to end."""
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(
        log_probs, targets, num_frames, target_lengths, blank, reduction="sum", zero_infinity=True
    )
