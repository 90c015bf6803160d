"""Random access to tar members by byte offset: only the bytes that a step trains on are read."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from w2v2dist.data.audio import BadSample, decode
from w2v2dist.data.index import ShardIndex


class ShardReader:
    """Reads audio and labels of index rows; keeps the files of the last `max_open` shards open."""

    def __init__(self, index: ShardIndex, max_open: int = 64) -> None:
        self.index, self.max_open = index, max_open
        self._files: OrderedDict[int, int] = OrderedDict()

    def audio(
        self, i: int, start: int = 0, num_samples: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Samples [start, start + num_samples) of utterance `i`, float32 (S,). Raises BadSample."""
        content = self._read(i, int(self.index.offset[i]), int(self.index.size[i]))
        if num_samples is None:
            num_samples = int(self.index.num_samples[i]) - start
        wave = decode(content, start, num_samples)
        if len(wave) != num_samples:
            raise BadSample(f"has {len(wave)} samples from {start} but {num_samples} are wanted")
        if not np.isfinite(wave).all():
            raise BadSample("contains NaN or infinite samples")
        return wave

    def labels(self, i: int) -> dict[str, Any]:
        """The utterance's JSON member ({} where it has none). Raises BadSample."""
        size = int(self.index.label_size[i])
        if size == 0:
            return {}
        try:
            return dict(json.loads(self._read(i, int(self.index.label_offset[i]), size)))
        except ValueError as error:
            raise BadSample(f"its labels are not valid JSON: {error}") from None

    def _read(self, i: int, offset: int, size: int) -> bytes:
        shard = int(self.index.shard[i])
        try:
            if shard not in self._files:
                if len(self._files) >= self.max_open:
                    os.close(self._files.popitem(last=False)[1])
                self._files[shard] = os.open(self.index.shard_path(shard), os.O_RDONLY)
            self._files.move_to_end(shard)
            content = os.pread(self._files[shard], size, offset)
        except OSError as error:
            raise BadSample(f"cannot be read: {error}") from None
        if len(content) != size:
            raise BadSample(
                f"the shard ends {size - len(content)} bytes before the end of the sample"
            )
        return content

    def __getstate__(self) -> dict[str, Any]:  # open files do not travel to workers
        return {"index": self.index, "max_open": self.max_open, "_files": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
