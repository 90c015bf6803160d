"""Feature encoder: waveform to frames by a stack of convolutions (section 2).
B batch, S samples, C channels, T frames."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v2dist.model.config import Wav2Vec2Config


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """`x` itself, without a copy; its gradient is multiplied by `scale`."""
    return x if scale == 1 else _ScaleGradient.apply(x, scale)  # type: ignore[no-untyped-call]


class ChannelGroupNorm(nn.GroupNorm):
    """Every channel normalised over time, in fp32 whatever the input's type; (B, C, T) kept."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        # The CPU's kernel computes in fp32 from 16-bit input; a copy costs five times its time
        given = x if x.device.type == "cpu" else x.float()
        return F.group_norm(given, self.num_groups, weight, bias, self.eps).type_as(x)


class ChannelLayerNorm(nn.LayerNorm):
    """Every frame normalised over channels, in fp32 whatever the input's type; (B, C, T) kept."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).float()
        weight, bias = self.weight.float(), self.bias.float()
        out = F.layer_norm(frames, self.normalized_shape, weight, bias, self.eps)
        # Contiguous, or GELU goes backward over two layouts at once, six times slower on a CPU
        return out.transpose(1, 2).type_as(x).contiguous()


class FeatureEncoder(nn.Module):
    """Convolution, norm (`extractor_norm`) and GELU, layer after layer. (B, S) -> (B, C, T)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        channels = config.conv_channels
        shapes = zip(config.conv_kernels, config.conv_strides, strict=True)
        for i, (kernel, stride) in enumerate(shapes):
            conv = nn.Conv1d(channels if i else 1, channels, kernel, stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(conv.weight)
            parts: list[nn.Module] = [conv]
            if config.extractor_norm == "layer":
                parts.append(ChannelLayerNorm(channels))
            elif i == 0:
                parts.append(ChannelGroupNorm(channels))
            self.layers.append(nn.Sequential(*parts, nn.GELU()))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Features of waveforms that already have the parameters' type."""
        return self.layers(waveforms.unsqueeze(1))  # type: ignore[no-any-return]
