"""Context network: convolutional positions and the Transformer (section 2).
B batch, T frames, E width of the Transformer, H heads, D width of a head."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from w2v2dist.model.config import Wav2Vec2Config


class PositionalConv(nn.Module):
    """Relative positions by grouped convolution, weight norm over its kernel axis; (B, T, E) kept.
    The weight is put together in this module's own forward, not by a parametrization, so that
    casting the model and ZeRO-3 (which gathers a module's own parameters around its forward) see
    two plain parameters."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.kernel, self.groups = config.pos_conv_kernel, config.pos_conv_groups
        width = config.embed_dim
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, self.kernel))
        nn.init.normal_(self.weight_v, 0.0, math.sqrt(4 / (self.kernel * width)))
        norms = self.weight_v.detach().norm(dim=(0, 1), keepdim=True)
        self.weight_g = nn.Parameter(norms)  # (1, 1, kernel): the norm of each tap
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        v = self.weight_v.float()  # the norms are taken in fp32
        weight = (v * (self.weight_g.float() / v.norm(dim=(0, 1), keepdim=True))).type_as(x)
        y = F.conv1d(x.mT, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        y = y[:, :, : x.shape[1]]  # an even kernel, padded on both sides, makes a frame too many
        return F.gelu(y).mT


class SelfAttention(nn.Module):
    """Self-attention. x (B, T, E); key_mask (B, 1, 1, T) True where a key counts, or None."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        width = config.embed_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # (B, T, E) -> (B, H, T, D)
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in projections)
        if q.device.type == "cpu":  # whose 16-bit kernel goes backward many times slower
            q, k, v = q.float(), k.float(), v.float()
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(2).type_as(x))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward blocks with residuals, post- or pre-norm; (B, T, E) kept."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.ffn_in = nn.Linear(config.embed_dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, config.embed_dim)
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def _ffn(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(F.gelu(self.ffn_in(x)))
        return self.dropout(self.ffn_out(hidden))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), key_mask))
            return x + self._ffn(self.final_norm(x))
        x = self.attention_norm(x + self.dropout(self.attention(x, key_mask)))
        return self.final_norm(x + self._ffn(x))  # type: ignore[no-any-return]


class ContextNetwork(nn.Module):
    """Positions and Transformer. x (B, T, E), num_frames (B,) or None, a bool a layer to drop."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.activation_checkpointing = config.activation_checkpointing
        self.positions = PositionalConv(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, num_frames: Tensor | None, drop_layers: Sequence[bool]) -> Tensor:
        """Context representations (B, T, E); nothing attends to frames from `num_frames` on."""
        key_mask = None
        if num_frames is not None:
            valid = torch.arange(x.shape[1], device=x.device) < num_frames.unsqueeze(1)
            x = x.masked_fill(~valid.unsqueeze(2), 0)
            key_mask = valid[:, None, None, :]
        x = x + self.positions(x)
        if not self.norm_first:
            x = self.norm(x)
        x = self.dropout(x)
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for layer, drop in zip(self.layers, drop_layers, strict=True):
            if recompute and not drop:
                x = checkpoint(layer, x, key_mask, use_reentrant=False)
            elif not drop:
                x = layer(x, key_mask)
        return self.norm(x) if self.norm_first else x
