"""Ranges of flat global tensors: what a checkpoint is made of, for any number of processes."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class FlatRange(Tensor):
    """The range [start, start + n) of a flat global tensor of `numel` elements."""

    data_range: Tensor
    start: int

    @staticmethod
    def __new__(cls, data: Tensor, start: int, numel: int) -> "FlatRange":
        out: FlatRange = torch.Tensor._make_wrapper_subclass(
            cls, (numel,), dtype=data.dtype, device=data.device
        )
        out.data_range, out.start = data, start
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"FlatRange is only for checkpoints, not for {func}")

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.start]), torch.Size([self.data_range.numel()]))

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.data_range

    def __create_write_items__(self, name: str, value: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.data_range)
        data = TensorWriteData(chunk=self._chunk(), properties=properties, size=self.size())
        index = MetadataIndex(name, torch.Size([self.start]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]


def held(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds: a FlatRange's data, else the tensor."""
    return value.data_range if isinstance(value, FlatRange) else value
