"""Context network: convolutional positions and the Transformer (section 2).
B batch, T frames, E width of the Transformer, H heads, D width of a head."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from w2v2dist.model.attention import dropped_attention
from w2v2dist.model.config import Wav2Vec2Config
from w2v2dist.model.dropout import Dropout
from w2v2dist.model.fourier_convolution import fourier_convolution
from w2v2dist.model.strided_conv import written_out


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
        if x.device.type == "cpu" and not written_out("cpu"):
            y = fourier_convolution(x.float(), weight.float(), self.groups).type_as(x)
            return F.gelu(y + self.bias)
        y = F.conv1d(x.mT, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        y = y[:, :, : x.shape[1]]  # an even kernel, padded on both sides, makes a frame too many
        return F.gelu(y).mT


class SelfAttention(nn.Module):
    """Attention of `asked` (B, M, E) to x (B, T, E), of which it is a part or all; (B, M, E).
    key_mask (B, 1, 1, T) True where a key counts, or None."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        width = config.embed_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, asked: Tensor, x: Tensor, key_mask: Tensor | None) -> Tensor:
        projected = (self.q_proj(asked), self.k_proj(x), self.v_proj(x))
        # (B, T, E) -> (B, H, T, D)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected)
        dropout = self.dropout if self.training else 0.0
        if on_cpu := q.device.type == "cpu":  # whose 16-bit kernel goes backward many times slower
            q, k, v = q.float(), k.float(), v.float()
        if on_cpu and dropout and not written_out("cpu"):
            y = dropped_attention(q, k, v, key_mask, dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(2).type_as(x))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward blocks with residuals, post- or pre-norm. (B, T, E) is kept,
    or becomes (B, M, E) where only `frames` (B, M, 1) are asked for."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.ffn_in = nn.Linear(config.embed_dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, config.embed_dim)
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.dropout = Dropout(config.dropout)
        self.activation_dropout = Dropout(config.activation_dropout)

    def _ffn(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(F.gelu(self.ffn_in(x)))
        return self.dropout(self.ffn_out(hidden))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, key_mask: Tensor | None, frames: Tensor | None = None) -> Tensor:
        def ask(y: Tensor) -> Tensor:
            return y if frames is None else y.take_along_dim(frames, 1)

        if self.norm_first:
            y = self.attention_norm(x)
            x = ask(x) + self.dropout(self.attention(ask(y), y, key_mask))
            return x + self._ffn(self.final_norm(x))
        asked = ask(x)
        x = self.attention_norm(asked + self.dropout(self.attention(asked, x, key_mask)))
        return self.final_norm(x + self._ffn(x))  # type: ignore[no-any-return]


class ContextNetwork(nn.Module):
    """Positions and Transformer. x (B, T, E), num_frames (B,) or None, a bool a layer to drop,
    frames (B, M, 1) the only ones asked for, or None."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.activation_checkpointing = config.activation_checkpointing
        self.positions = PositionalConv(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        num_frames: Tensor | None,
        drop_layers: Sequence[bool],
        frames: Tensor | None = None,
        block: int | None = None,
    ) -> Tensor:
        """Context representations (B, T or M, E); nothing attends to frames from `num_frames`
        on. With `block` the output of that Transformer block (1: the first), without the norm after
        the last one."""
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
        if block is not None:
            drop_layers = [drop or i >= block for i, drop in enumerate(drop_layers)]
        layers = [y for y, drop in zip(self.layers, drop_layers, strict=True) if not drop]
        for layer in layers:
            asked = frames if layer is layers[-1] else None
            if recompute:
                x = checkpoint(layer, x, key_mask, asked, use_reentrant=False)
            else:
                x = layer(x, key_mask, asked)
        if frames is not None and not layers:
            x = x.take_along_dim(frames, 1)
        return self.norm(x) if self.norm_first and block is None else x
