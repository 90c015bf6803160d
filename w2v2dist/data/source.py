"""Shards of speech as a training's source of batches: a pure function of (step, slot, seed)."""

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.batch import Batch, Rows, usage
from w2v2dist.data.batching import MicroBatch, validation_batches
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.loader import MicroBatches, iterate
from w2v2dist.data.order import DataOrder


class SpeechCollate(Protocol):
    """A task's way from utterances to its batch (a loader's Collate), its draws apart from it."""

    def __call__(self, rows: Rows | None) -> Batch: ...

    def draw(self, micro: MicroBatch) -> tuple[Tensor | None, Tensor | None]:
        """Time mask (rows, T) and what else is drawn for all planned rows, from lengths alone."""


class SpeechSource:
    """The batches of data.train, and of data.valid as the validation set "valid".
    `collate(seed, train)` makes a task's batches; with `crop`, those of one length. Raises
    ConfigError or ValueError where shards are not set, cannot be opened or hold too little."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        collate: Callable[[int, bool], SpeechCollate],
        *,
        crop: bool,
        with_labels: bool,
    ) -> None:
        self._config, self._seed, self._collate = config, seed, collate
        self._crop, self._with_labels = crop, with_labels
        self._index = open_index(config.train, "data.train")
        self._order = DataOrder(self._index, config, seed, crop)
        self.fingerprint = self._index.fingerprint
        self.notes = _left_out(config, self._order, len(self._index))
        self._valid_index: ShardIndex | None = None
        self.validation: dict[str, list[MicroBatch]] = {}
        if config.valid:  # opened before the training, so that a mistake shows at once
            self._valid_index = open_index(config.valid, "data.valid")
            self.validation["valid"] = validation_batches(self._valid_index, config, crop)
            if not self.validation["valid"]:
                raise ConfigError(
                    f"data.valid ({config.valid}) holds no utterance of data.min_samples = "
                    f"{config.min_samples} samples or more: give it another folder, or set "
                    "data.valid=null"
                )

    def check(self) -> None:
        """Raise ValueError where shards are missing or differ in size; looks at every file."""
        self._index.check_shard_sizes()
        if self._valid_index is not None:
            self._valid_index.check_shard_sizes()

    def batches(self, steps: Iterable[int], slots: list[int | None], seed: int) -> Generator[Any]:
        """The batches of these slots, step after step, drawn with `seed`; None: an empty slot."""
        config, collate, order = self._config, self._collate(seed, True), self._seeded(seed)
        yield from iterate(
            MicroBatches(self._index, config, collate, order, with_labels=self._with_labels),
            ((step, slot) for step in steps for slot in slots),
            num_workers=config.num_workers,
            prefetch=config.prefetch,
        )

    def validation_batches(self, name: str, rank: int, world_size: int) -> Generator[Any]:
        """Every `world_size`-th batch of a set; the same number for every rank, some empty."""
        assert self._valid_index is not None
        micro = self.validation[name]
        padded = [*micro, *[None] * (-len(micro) % world_size)]
        collate = self._collate(self._seed, False)
        yield from iterate(
            MicroBatches(self._valid_index, self._config, collate, with_labels=self._with_labels),
            padded[rank::world_size],
            num_workers=min(self._config.num_workers, 2),
            prefetch=2,
        )

    def audit(self, step: int, slot: int, seed: int) -> dict[str, Any]:
        """What a slot uses at a step (keys, crops, masked fraction), without reading audio."""
        micro = self._seeded(seed).micro_batch(step, slot)
        keys = [self._index.key(int(i)) for i in micro.ids]
        mask, _ = self._collate(seed, True).draw(micro)
        used = usage(micro, keys, list(range(len(keys))), mask)
        return {"step": step, "slot": slot, **used}

    def _seeded(self, seed: int) -> DataOrder:
        own = seed == self._seed
        return self._order if own else DataOrder(self._index, self._config, seed, self._crop)


def _left_out(config: DataConfig, order: DataOrder, total: int) -> list[str]:
    """What the limits on lengths leave of the training's utterances."""
    short, long = order.left_out()
    if not short + long:
        return []
    at_speeds = "" if len(config.speed_perturbation) == 1 else ", at one of the speeds"
    return [
        f"{short + long} of {total} utterances of data.train are left out{at_speeds}: {short} of "
        f"less than data.min_samples ({config.min_samples / SAMPLE_RATE:g} s), {long} of more than "
        f"data.max_crop ({config.max_crop / SAMPLE_RATE:g} s)"
    ]


def open_index(folders: str | None, key: str) -> ShardIndex:
    """The index that a configuration key or an option names. Raises ConfigError where it is not set
    or names a file, ValueError where there is no index."""
    if not folders:
        raise ConfigError(
            f"{key} is not set: build shards with shards/build.py and pass {key}=FOLDER"
        )
    files = [name for name in folders.split(",") if Path(name.strip()).is_file()]
    if files:
        raise ConfigError(
            f"{key} names {files[0]}, a file, but must name a folder of shards: build one of the "
            "recordings with python shards/build.py --input FOLDER --output SHARDS"
        )
    return ShardIndex.load_many(folders)
