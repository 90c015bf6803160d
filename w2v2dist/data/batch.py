"""A slot's utterances while a batch is made of them, and the batch: a small core that the loop
reads; each task adds its own tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.batching import MicroBatch
from w2v2dist.runtime.keyed import keyed_rng

B = TypeVar("B", bound="Batch")


@dataclass(slots=True)
class Rows:
    """The decoded utterances of a micro-batch. `position` is each one's row in the planned
    micro-batch, so that what is drawn per row does not change when another row is skipped."""

    micro: MicroBatch
    waveforms: list[npt.NDArray[np.float32]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, row: int, reason: str) -> None:
        """Move a decoded row to the bad ones."""
        self.bad.append({"key": self.keys[row], "reason": reason})
        for column in (self.waveforms, self.labels, self.keys, self.position):
            del column[row]


@dataclass(kw_only=True, slots=True)
class Batch:
    """What the loop knows of every task's micro-batch."""

    step: int
    slot: int
    # what the loss is divided by: masked frames, or utterances for CTC; 0 is an empty slot
    num_targets: float = 0.0
    amount: int = 0  # progress in the task's unit: samples of audio, without padding
    used: dict[str, Any] | None = None  # the audit record; None where nothing is used
    bad: list[dict[str, Any]] = field(default_factory=list)

    def map(self: B, function: Callable[[Tensor], Tensor]) -> B:
        """The batch with `function` applied to every tensor."""
        out = copy.copy(self)
        for item in fields(self):
            if isinstance(value := getattr(self, item.name), Tensor):
                setattr(out, item.name, function(value))
        return out

    def to(self: B, device: torch.device) -> B:
        """The batch on a device; from pinned memory the copy does not block."""
        return self if device.type == "cpu" else self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self: B) -> B:
        """Called by the DataLoader when training on a GPU."""
        return self.map(Tensor.pin_memory)


@dataclass(kw_only=True, slots=True)
class SpeechBatch(Batch):
    """B utterances of at most S samples."""

    waveforms: Tensor  # (B, S) float32
    num_samples: Tensor | None = None  # (B,) int64 where rows are padded


def core(rows: Rows, num_targets: float, mask: Tensor | None = None) -> dict[str, Any]:
    """The fields of a batch of these rows that the loop knows; `mask` (B, T) for the audit."""
    micro, keys = rows.micro, rows.keys
    return {
        "step": micro.step,
        "slot": micro.slot,
        "num_targets": num_targets,
        "amount": sum(map(len, rows.waveforms)),
        "used": usage(micro, keys, rows.position, mask),
        "bad": rows.bad,
    }


def usage(
    micro: MicroBatch, keys: list[str], position: list[int], mask: Tensor | None
) -> dict[str, Any]:
    """The audit record of the rows `position` of a micro-batch, as `w2v2dist batches` prints it.
    Starts and numbers of samples are those at the utterance's speed."""
    return {
        "keys": keys,
        "speeds": [int(micro.percent[p]) / 100 for p in position],
        "starts": [int(micro.starts[p]) for p in position],
        "num_samples": [int(micro.num_samples[p]) for p in position],
        "masked_fraction": None if mask is None else round(float(mask.float().mean()), 6),
    }


def empty_waveform(seed: int, num_samples: int) -> Tensor:
    """(1, num_samples) of noise: what a slot without utterances runs on, so that every process
    does the same."""
    noise = keyed_rng(seed, "empty").standard_normal(num_samples).astype("float32")
    return torch.from_numpy(noise)[None]


def pad(waveforms: list[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor | None]:
    """Stack (S,) arrays to (B, S); the true lengths (B,) where they differ, else None."""
    lengths = [len(w) for w in waveforms]
    out = torch.zeros(len(waveforms), max(lengths))
    for row, wave in zip(out, waveforms, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return out, None if len(set(lengths)) == 1 else torch.tensor(lengths)


def encode_labels(
    rows: Rows, alphabet: Alphabet, num_frames: Callable[[int], int] | None
) -> list[list[int]]:
    """Token ids of every row. Rows without a usable label are rejected, and where `num_frames`
    (samples to frames) is given, those with more tokens than frames, which CTC cannot align."""
    targets: list[list[int]] = []
    for row in reversed(range(len(rows.keys))):
        try:
            if not rows.labels[row].get(alphabet.label):
                raise ValueError(
                    f"has no {alphabet.label!r} label: fine-tuning needs one for every utterance; "
                    "build the shards from transcribed audio"
                )
            ids = alphabet.encode(rows.labels[row][alphabet.label])
            frames = len(ids) if num_frames is None else num_frames(len(rows.waveforms[row]))
            if len(ids) > frames:
                raise ValueError(
                    f"its label has {len(ids)} tokens but its audio only {frames} frames"
                )
            targets.insert(0, ids)
        except ValueError as error:
            rows.reject(row, str(error))
    return targets
