"""Where DeepSpeed keeps the fp32 copy of every parameter that Adam moves (its private attributes;
tests/distributed holds them against the pinned version)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Fragment:
    """`size` elements from `offset` of the fp32 tensor `flat` are a parameter's from `start`."""

    name: str
    numel: int
    flat: Tensor
    offset: int
    start: int
    size: int

    def of(self, whole: Tensor) -> Tensor:
        """The part of a whole parameter's tensor that it is."""
        return whole.view(-1)[self.start : self.start + self.size]

    @property
    def values(self) -> Tensor:
        """A view of the elements."""
        return self.flat.data.view(-1)[self.offset : self.offset + self.size]


def fragments(engine: Any, rank: int) -> Iterator[Fragment]:
    """Of DeepSpeed's `engine`, those that the process `rank` holds."""
    wrapper = engine.optimizer
    names = {id(p): name for name, p in engine.module.named_parameters()}
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):
        # ZeRO 3: each parameter is cut over the processes
        flats = wrapper.fp32_partitioned_groups_flat
        for parameters, flat in zip(wrapper.fp16_groups, flats, strict=True):
            offset = 0
            for p in parameters:
                part = p.partition_numel()
                size = max(0, min(part, p.ds_numel - rank * part))
                if size:
                    yield Fragment(names[id(p)], p.ds_numel, flat, offset, rank * part, size)
                offset += part
        return
    # ZeRO 1, 2 and bf16 at ZeRO 0: all parameters in one line, cut over the processes
    flats = getattr(wrapper, "single_partition_of_fp32_groups", None)
    flats = flats or getattr(wrapper, "fp32_groups_flat_partition", None)
    for name, p in engine.module.named_parameters():
        mapping = getattr(p, "_hp_mapping", None)
        if flats is None:  # Adam's own parameters: ZeRO 0 in fp32
            yield Fragment(name, p.numel(), p, 0, 0, p.numel())
        elif mapping is not None:
            high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
            flat = flats[mapping.param_group_index]
            yield Fragment(name, p.numel(), flat, high.start, low.start, low.numel)
