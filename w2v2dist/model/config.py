"""Architecture, masking and loss settings of wav2vec 2.0; defaults: BASE on LibriSpeech 960 h."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureConfig:
    """Gumbel temperature: max(floor, start * decay ** updates) (section 4.2 of the paper)."""

    start: float = 2.0
    floor: float = 0.5
    decay: float = 0.999995

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.start:
            raise ValueError(f"floor is {self.floor} but must be in (0, start = {self.start}]")


def temperature(config: TemperatureConfig, num_updates: int) -> float:
    """Temperature after `num_updates` finished updates (0 during the first one)."""
    return max(config.floor, config.start * config.decay**num_updates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wav2Vec2Config:
    """All that defines the model (sections 2, 3 and 4.2). Raises ValueError of field and rule."""

    # feature encoder
    conv_channels: int = 512
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    extractor_norm: Literal["group", "layer"] = "group"  # group: layer 0 only
    feature_grad_mult: float = 0.1  # gradient multiplier of the feature encoder; 0 freezes it
    # context network
    num_layers: int = 12
    embed_dim: int = 768
    ffn_dim: int = 3072
    num_heads: int = 12
    norm_first: bool = False
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    feature_dropout: float = 0.1
    layer_drop: float = 0.05
    # slot: each GPU of the reference draws its own, which saves no time; a study on one process
    layer_drop_per: Literal["step", "slot"] = "step"
    # quantizer and targets
    num_codebooks: int = 2
    num_codebook_entries: int = 320
    final_dim: int = 256
    quantize_inputs: bool = False
    quantize_targets: bool = True
    # masks; channel masks are for CTC only
    mask_prob: float = 0.65
    mask_span_length: int = 10
    min_mask_spans: int = 2
    channel_mask_prob: float = 0.0
    channel_mask_length: int = 64
    # objective
    num_distractors: int = 100
    logit_temperature: float = 0.1
    diversity_weight: float = 0.1
    feature_penalty_weight: float = 10.0
    activation_checkpointing: bool = field(default=False, metadata={"may_change": True})
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, name = getattr(self, item.name), item.name
            lowest = 0 if name == "min_mask_spans" else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
                raise ValueError(f"{name} is {value} but must be at least {lowest}")
            if name.endswith(("dropout", "layer_drop")) and not 0 <= value < 1:
                raise ValueError(f"{name} is {value} but must be in [0, 1)")
            if name.endswith(("mask_prob", "grad_mult")) and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value} but must be in [0, 1]")
        if self.logit_temperature <= 0:
            raise ValueError(f"logit_temperature is {self.logit_temperature} but must be positive")
        if len(self.conv_kernels) != len(self.conv_strides) or not self.conv_kernels:
            raise ValueError(
                f"conv_kernels has {len(self.conv_kernels)} entries and conv_strides "
                f"{len(self.conv_strides)}: give one kernel and one stride per convolution"
            )
        if min(self.conv_kernels + self.conv_strides) < 1:
            raise ValueError(
                f"conv_kernels is {[*self.conv_kernels]} and conv_strides {[*self.conv_strides]} "
                "but all must be at least 1"
            )
        for name, divisor, applies in (
            ("embed_dim", "num_heads", True),
            ("embed_dim", "pos_conv_groups", True),
            ("final_dim", "num_codebooks", self.quantize_targets),
            ("embed_dim", "num_codebooks", self.quantize_inputs),
        ):
            number, by = getattr(self, name), getattr(self, divisor)
            if applies and number % by:
                raise ValueError(f"{name} is {number} but must be a multiple of {divisor} = {by}")

    @property
    def total_stride(self) -> int:
        """Samples from one frame to the next (320: 20 ms at 16 kHz)."""
        return math.prod(self.conv_strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees, and the fewest that give a frame (400: 25 ms at 16 kHz)."""
        width = 1
        for kernel, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1], strict=True):
            width = (width - 1) * stride + kernel
        return width

    def num_frames(self, num_samples: int) -> int:
        """Frames of `num_samples` samples; 0 below the receptive field."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples
