"""Feature encoder: waveform to frames by a stack of convolutions (section 2).
B batch, S samples, C channels, T frames."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v2dist.model.config import Wav2Vec2Config
from w2v2dist.model.strided_conv import StridedConv


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


class WaveformConv(nn.Conv1d):
    """The first convolution where a ChannelGroupNorm follows, which does its work: (B, S, 1) to its
    windows (B, T, K) and its weight (C, K). A bias has no effect before that norm."""

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        windows = waveforms.squeeze(2).unfold(1, self.kernel_size[0], self.stride[0])
        weight = self.weight.squeeze(1)
        return windows, weight if self.bias is None else weight + 0 * self.bias.unsqueeze(1)


class ChannelGroupNorm(nn.GroupNorm):
    """Every channel of the first convolution normalised over time, as one product with the windows:
    a channel's variance follows from the covariance of the K samples that it is a sum of, in fp64.
    What the convolution alone would give, the largest tensor of all, is never made."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, num_channels)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        windows, weight = given[0].double(), given[1].double()
        windows = windows - windows.mean(1, keepdim=True)
        covariance = windows.mT @ windows / windows.shape[1]  # (B, K, K)
        variance = ((weight @ covariance) * weight).sum(-1)  # (B, C)
        gain = self.weight * (variance + self.eps).rsqrt()
        matrix = (gain.unsqueeze(2) * weight).mT  # (B, K, C)
        return torch.baddbmm(self.bias, windows.type_as(self.bias), matrix.type_as(self.bias))


class ChannelLayerNorm(nn.LayerNorm):
    """Every frame normalised over channels, (B, T, C) kept. Statistics are in fp32 whatever the
    input's type: on a GPU always, on a CPU where the weights are."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.device.type == "cpu" and x.element_size() < 4
        weight, bias = (p.float() if narrow else p for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class FeatureEncoder(nn.Module):
    """Convolution, norm (`extractor_norm`) and GELU, layer after layer. (B, S) -> (B, C, T), in
    memory frame after frame, as all that is computed here."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        channels = config.conv_channels
        shapes = zip(config.conv_kernels, config.conv_strides, strict=True)
        for i, (kernel, stride) in enumerate(shapes):
            folded = i == 0 and config.extractor_norm == "group"
            kind = WaveformConv if folded else StridedConv
            conv = kind(channels if i else 1, channels, kernel, stride, bias=config.conv_bias)
            if isinstance(conv, StridedConv):
                conv.activated = i > 0
            nn.init.kaiming_normal_(conv.weight)
            parts: list[nn.Module] = [conv]
            if folded:
                parts.append(ChannelGroupNorm(channels))
            elif config.extractor_norm == "layer":
                parts.append(ChannelLayerNorm(channels))
            self.layers.append(nn.Sequential(*parts))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Features of waveforms that already have the parameters' type."""
        return F.gelu(self.layers(waveforms.unsqueeze(2))).mT
