"""A store of equal parts in one tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Pool:
    """Parts along one dimension of `data`, which doubles when it is full; a freed part's place is
    used again."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...], like: Tensor) -> None:
        """`before` and `after`: the shape around the dimension of the parts; device and type as
        `like`."""
        # Zeros, since what is masked must still be finite
        self.data = like.new_zeros(*before, 16, *after)
        self.row_size = self.data.numel() // 16
        self._dim = len(before)
        self._free = [*range(16)]

    @property
    def num_used(self) -> int:
        return self.data.shape[self._dim] - len(self._free)

    def put(self, parts: Tensor) -> list[int]:
        """The places of new parts, which lie along the same dimension."""
        num = parts.shape[self._dim]
        while len(self._free) < num:
            size = self.data.shape[self._dim]
            self.data = torch.cat([self.data, torch.zeros_like(self.data)], self._dim)
            self._free += range(size, 2 * size)
        places = [self._free.pop() for _ in range(num)]
        index = torch.tensor(places, device=self.data.device, dtype=torch.int64)
        self.data.index_copy_(self._dim, index, parts.to(self.data.dtype))
        return places

    def free(self, places: Iterable[int]) -> None:
        self._free += places
