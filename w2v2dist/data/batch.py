"""A slot's utterances, and the batch made of them: a core for the loop; tasks add their tensors."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import Waveform
from w2v2dist.data.batching import MicroBatch
from w2v2dist.runtime.keyed import keyed_rng


@dataclass(slots=True)
class Rows:
    """The decoded utterances of a micro-batch. `position` is each one's row in the planned
    micro-batch, so that what is drawn per row does not change when another row is skipped."""

    micro: MicroBatch
    waveforms: list[Waveform] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, row: int, reason: str, label: str | None) -> None:
        """Move a decoded row to the bad ones."""
        said = {} if label is None else {"label": label}
        self.bad.append({"key": self.keys[row], "reason": reason, **said})
        for column in (self.waveforms, self.labels, self.keys, self.position):
            del column[row]


@dataclass(kw_only=True, slots=True)
class Batch:
    """What the loop knows of every task's micro-batch."""

    # Tensors that stay in host memory: what asks for their numbers would wait for the GPU
    on_host: ClassVar[frozenset[str]] = frozenset()

    step: int
    slot: int
    # what the loss is divided by: masked frames, or utterances for CTC; 0 is an empty slot
    num_targets: float = 0.0
    amount: int = 0  # progress in the task's unit: samples of audio, without padding
    used: dict[str, Any] | None = None  # the audit record; None where nothing is used
    bad: list[dict[str, Any]] = field(default_factory=list)

    def recording(self) -> Tensor | None:
        """What a person can listen to (S,), at 16 kHz; None where there is nothing."""
        return None

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The batch with `function` applied to every tensor but those that stay on the host."""
        names = (item.name for item in fields(self) if item.name not in self.on_host)
        values = ((name, getattr(self, name)) for name in names)
        changed: dict[str, Any] = {k: function(v) for k, v in values if isinstance(v, Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copy does not block."""
        return self if device.type == "cpu" else self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Called by the DataLoader when training on a GPU."""
        return self.map(Tensor.pin_memory)


@dataclass(kw_only=True, slots=True)
class SpeechBatch(Batch):
    """B utterances of at most S samples."""

    on_host: ClassVar[frozenset[str]] = frozenset({"num_samples"})

    waveforms: Tensor  # (B, S) float32
    num_samples: Tensor | None = None  # (B,) int64 where rows are padded

    def recording(self) -> Tensor | None:
        """The first utterance or crop; None of an empty slot's noise."""
        if self.used is None:
            return None
        return self.waveforms[0, : None if self.num_samples is None else int(self.num_samples[0])]


def core(rows: Rows, num_targets: float, mask: Tensor | None = None) -> dict[str, Any]:
    """The fields of a batch of these rows that the loop knows; `mask` (B, T) for the audit."""
    return {
        "step": rows.micro.step,
        "slot": rows.micro.slot,
        "num_targets": num_targets,
        "amount": sum(map(len, rows.waveforms)),
        "used": usage(rows.micro, rows.keys, rows.position, mask),
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
    """(1, num_samples) of noise: a slot without utterances runs on it, as every process must."""
    noise = keyed_rng(seed, "empty").standard_normal(num_samples).astype("float32")
    return torch.from_numpy(noise)[None]


def pad(waveforms: list[Waveform]) -> tuple[Tensor, Tensor | None]:
    """Stack (S,) arrays to (B, S); the true lengths (B,) where they differ, else None."""
    lengths = [len(w) for w in waveforms]
    if len(set(lengths)) == 1:
        return torch.from_numpy(np.stack(waveforms)), None
    out = pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
    return out, torch.tensor(lengths)


def encode_labels(
    rows: Rows, alphabet: Alphabet, num_frames: Callable[[int], int] | None
) -> list[list[int]]:
    """Token ids of every row. Rows without a usable label are rejected, and where `num_frames`
    (samples to frames) is given, those that CTC cannot align: fewer frames than tokens, and blanks
    between equal ones."""
    targets: list[list[int]] = []
    for row in reversed(range(len(rows.keys))):
        label = alphabet.label(rows.labels[row])
        try:
            if label is None:
                what = "phones" if alphabet.units == "phones" else "text"
                raise ValueError(
                    f"has no {what!r} label: fine-tuning needs one for every utterance; "
                    "build the shards from transcribed audio"
                )
            num = len(ids := alphabet.encode(label))
            if not num:
                raise ValueError("its label has no symbol: it is blank, or punctuation alone")
            needed = num + sum(a == b for a, b in itertools.pairwise(ids))  # blanks between twins
            if num_frames and needed > (most := num_frames(len(rows.waveforms[row]))):
                raise ValueError(
                    f"its label of {num} tokens needs {needed} frames but its audio has only {most}"
                )
            targets.insert(0, ids)
        except ValueError as error:
            rows.reject(row, str(error), label)
    return targets
