"""Batches cross from the workers as they are, in one memory file each."""

import gc
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from w2v2dist.data.batch import Batch
from w2v2dist.data.loader import iterate


@dataclass(kw_only=True, slots=True)
class OneOfEach(Batch):
    """Tensors of all kinds: odd sizes, none, views."""

    waveforms: Tensor
    mask: Tensor
    empty: Tensor
    of_nothing: Tensor
    scalar: Tensor
    absent: Tensor | None = None
    said: str = ""


class Made(Dataset[Batch]):
    def __getitem__(self, item: int) -> OneOfEach:
        rng = torch.Generator().manual_seed(item)
        wave = torch.rand(3, 7 + item, generator=rng)
        return OneOfEach(
            step=item,
            slot=os.getpid(),
            waveforms=wave.mT,
            mask=wave > 0.5,
            empty=torch.empty(0, 4, dtype=torch.int64),
            of_nothing=torch.from_numpy(np.concatenate([np.ones(3, np.float32)[:0]])),
            scalar=torch.tensor(item, dtype=torch.int32),
            said=f"number {item}",
        )


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_of_workers_are_those_of_this_process(prefetch: int) -> None:
    items = range(40)
    kept = list(iterate(Made(), items, num_workers=2, prefetch=prefetch))
    assert {batch.slot for batch in kept} - {os.getpid()}  # made elsewhere
    # All are kept until here: memory is not used again, and outlives its worker
    for item, batch in zip(items, kept, strict=True):
        made = Made()[item]
        assert (batch.step, batch.said, batch.absent) == (item, f"number {item}", None)
        for name in ("waveforms", "mask", "empty", "of_nothing", "scalar"):
            ours, theirs = getattr(batch, name), getattr(made, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_what_is_no_batch_crosses_as_it_is() -> None:
    class Numbers(Dataset[int]):
        def __getitem__(self, item: int) -> int:
            return -item

    assert list(iterate(Numbers(), range(9), num_workers=1, prefetch=2)) == [-i for i in range(9)]


def test_files_do_not_pile_up() -> None:
    list(iterate(Made(), range(2), num_workers=1, prefetch=2))  # what the first one opens for good
    before = len(os.listdir("/proc/self/fd"))
    batches = iterate(Made(), range(200), num_workers=1, prefetch=2)
    worker = next(batches).slot
    for _ in range(150):
        next(batches)
    assert len(os.listdir(f"/proc/{worker}/fd")) < before + 20
    batches.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_error_in_a_worker_ends_all_of_them() -> None:
    class Failing(Dataset[int]):
        def __getitem__(self, item: int) -> int:
            return 1 // item

    with pytest.raises(ZeroDivisionError) as kept:  # with its traceback, as an exit keeps it
        list(iterate(Failing(), range(9), num_workers=2, prefetch=2))
    assert kept.tb is not None
    assert not multiprocessing.active_children()


FAILS = """
from torch.utils.data import Dataset
from w2v2dist.data.loader import iterate

class Numbers(Dataset):
    def __getitem__(self, item):
        return item

batches = iterate(Numbers(), range(99), num_workers=1, prefetch=2)
raise RuntimeError(f"at {next(batches)}")
"""


def test_a_command_that_fails_between_batches_ends() -> None:
    command = [sys.executable, "-c", FAILS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("RuntimeError: at 0\n")
