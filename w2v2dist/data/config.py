"""Settings of the data: which shards, and how micro-batches are made of them."""

from dataclasses import dataclass, field
from typing import Literal

from w2v2dist.config import at_least, may_change
from w2v2dist.data.alphabet import Units
from w2v2dist.data.text import TextConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Shards and micro-batches. Audio lengths are in samples at 16 kHz."""

    train: str | None = may_change(
        None, path=True
    )  # folder with index.json; several separated by commas
    valid: str | None = may_change(None, path=True)
    virtual_world_size: int = 64  # micro-batches (slots) of one step, on any number of GPUs
    max_samples_per_slot: int = 1_400_000
    # Pre-training crops to it; fine-tuning leaves longer utterances out
    max_crop: int = 250_000
    min_samples: int = 32_000  # shorter utterances are left out
    crop_multiple: int = 1  # crops are rounded down to a multiple of it: fewer shapes
    # An utterance is played at one of these speeds, drawn for each epoch (1.1: shorter and higher);
    # the limits on its length hold at all of them
    speed_perturbation: tuple[float, ...] = (1.0,)
    normalize: bool = False  # utterances to zero mean and unit variance
    shuffle_window: int = 10_000  # utterances
    num_workers: int = may_change(4)
    prefetch: int = may_change(4)
    # More utterances than these that cannot be used stop the run
    max_bad_samples: int = may_change(100)
    # A read that fails (an I/O error, a vanished or cut shard) is tried again after 0.1, 0.2, 0.4 …
    # s; one without an answer for read_timeout_s has failed (0: wait for ever) and is tried once
    # more. Keep some such reads together under loop.stall_timeout_s.
    read_retries: int = may_change(5)
    read_timeout_s: float = may_change(60.0)
    # skip: one utterance; it counts as bad
    on_read_error: Literal["skip", "stop"] = may_change("skip")
    # letters (English), phones (TIMIT's), auto (of the training texts), or a file of symbols
    tokens: str = field(default="letters", metadata={"path": True})
    units: Units = "characters"  # of a file or auto; phones are separated by blanks in the label
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("tokens is '' but must be letters, phones, auto or a file")
        names = "virtual_world_size max_crop min_samples crop_multiple shuffle_window prefetch"
        at_least(self, 1, names)
        for name in "num_workers max_bad_samples read_retries read_timeout_s".split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        for name, limit in (
            ("max_crop", "max_samples_per_slot"),  # one utterance has to fit into a micro-batch
            ("min_samples", "max_crop"),
            ("crop_multiple", "min_samples"),
        ):
            value, most = getattr(self, name), getattr(self, limit)
            if value > most:
                raise ValueError(f"{name} is {value} but must be at most {limit} ({most})")
        for speed in self.speed_perturbation or (0.0,):
            if not 0.5 <= speed <= 2 or abs(100 * speed - round(100 * speed)) > 1e-6:
                raise ValueError(
                    f"speed_perturbation is {list(self.speed_perturbation)} but must list speeds "
                    f"from 0.5 to 2 in steps of 0.01; [1.0] leaves the audio as it is"
                )
