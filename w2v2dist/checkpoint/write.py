"""Write checkpoints that any number of processes and any ZeRO stage can read, committed by rename.

Parameters and optimizer state are ranges of flat global tensors (fp32) in
torch.distributed.checkpoint: each process writes the ranges that it owns. A thread writes, from a
copy in host memory, while training goes on.
"""

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from w2v2dist.checkpoint.folders import point, prune, sha256, sync_folder, write_durably, write_sums
from w2v2dist.checkpoint.ranges import FlatRange, held
from w2v2dist.checkpoint.together import CheckpointError, host_group, together
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import DISK_FULL


@dataclass(frozen=True, slots=True)
class Retention:
    """What follows a checkpoint that is durable: the links that name it, and which others stay."""

    links: tuple[str, ...]
    keep_last: int
    keep_every: int = 0


class Writer:
    """Writes checkpoints to `root` in a thread, one at a time. The thread talks to the other
    processes over a group of its own, so that training may go on meanwhile."""

    def __init__(self, root: Path, world: World) -> None:
        self._root, self._world = root, world
        self._host: dict[str, Tensor] = {}
        self._pool = ThreadPoolExecutor(1)

    def begin(
        self, meta: dict[str, Any], state: Mapping[str, Tensor], keep: Retention, *, copy: bool
    ) -> Future[float]:
        """Begin `root/step_XXXXXXXX`, of the step that `meta` (kept as meta.json) states, on all
        processes together: temporary name, made durable, renamed, then links and pruning.

        With `copy` training may go on at once, else when the future is done: it holds the
        time.perf_counter() of that, or CheckpointError on every process. Older checkpoints are
        never touched.
        """
        if copy:
            state = {name: self._copy(name, value) for name, value in state.items()}
        host_group()  # made by the main thread
        return self._pool.submit(self._write, meta, dict(state), keep)

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        self._pool.shutdown()

    def _copy(self, name: str, value: Tensor) -> Tensor:
        """The value in host memory: the next step leaves it, the next save reuses it."""
        source = held(value)
        if name not in self._host:
            self._host[name] = torch.empty_like(source, device="cpu")
        host = self._host[name].copy_(source)
        return FlatRange(host, value.start, value.numel()) if isinstance(value, FlatRange) else host

    def _write(self, meta: dict[str, Any], state: dict[str, Tensor], keep: Retention) -> float:
        root, world = self._root, self._world
        if world.device.type == "cuda":  # a new thread's is the first GPU
            torch.cuda.set_device(world.device)
        final = root / f"step_{meta['step']:08d}"
        temporary = root / f".tmp-{final.name}"

        def write() -> dict[str, str]:
            writer = FileSystemWriter(temporary, per_thread_copy_ahead=0)  # no CUDA in this thread
            state_dict_saver.save(state, storage_writer=writer, process_group=host_group())
            mine = [*temporary.glob(f"__{world.rank}_*")]
            mine += [temporary / ".metadata"] if world.is_main else []
            return {path.name: sha256(path) for path in mine}

        def publish(sums: dict[str, str]) -> None:
            if world.is_main:
                _publish(temporary, final, meta, sums)
                for name in keep.links:
                    point(root, name, final)
                prune(root, keep.keep_last, keep.keep_every)

        try:
            needed = sum(together(lambda: self._prepare(state)))
            together(lambda: self._check_space(needed))
            sums = {name: digest for part in together(write) for name, digest in part.items()}
            together(lambda: publish(sums))
        except CheckpointError as error:
            reason = str(error)
            # torch's own message hides the cause
            if root.exists() and shutil.disk_usage(root).free < 1 << 20:
                reason = DISK_FULL[errno.ENOSPC]
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {final} could not be written: {reason}. Older checkpoints are "
                "untouched: free space (or lower loop.keep_last) and run the same command again to "
                "continue from them"
            ) from None
        return time.perf_counter()

    def _prepare(self, state: dict[str, Tensor]) -> int:
        """Clear up after a save that was killed; the bytes that this process will write."""
        if self._world.is_main:
            self._root.mkdir(parents=True, exist_ok=True)
            for leftover in self._root.glob(".tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        return sum(held(value).nbytes for value in state.values())

    def _check_space(self, needed: int) -> None:
        """A disk filled to the brim would stop the logs too."""
        if not self._world.is_main:
            return
        if (free := shutil.disk_usage(self._root).free) < needed + (1 << 20):
            full = DISK_FULL[errno.ENOSPC]
            raise CheckpointError(f"{full} (of {needed / 1e9:.3g} GB {free / 1e9:.3g} are free)")


def _publish(temporary: Path, final: Path, meta: dict[str, Any], sums: dict[str, str]) -> None:
    """Complete a step folder and give it its name."""
    write_durably(temporary / "meta.json", json.dumps(meta, indent=1))
    write_sums(temporary, sums)
    sync_folder(temporary)
    if final.exists():  # a damaged one of the same step
        os.replace(final, final.with_name(f".tmp-old-{final.name}"))
    os.replace(temporary, final)
    sync_folder(final.parent)


def write_parameters(root: Path, values: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write parameters alone as the step folder of step 0 in `root`, which `latest` and `best` then
    name, in one process: what `read_parameters` reads, with nothing to resume from."""
    folder = root / "step_00000000"
    state = {f"fp32/{name}": value.detach().float().flatten() for name, value in values.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        state_dict_saver.save(state, checkpoint_id=folder, no_dist=True)
    record = json.dumps({**meta, "step": 0, "world_size": 1, "optimizer": []}, indent=1)
    (folder / "meta.json").write_text(record, encoding="utf-8")
    write_sums(folder, {path.name: sha256(path) for path in folder.iterdir()})
    for name in ("latest", "best"):
        point(root, name, folder)
    return folder
