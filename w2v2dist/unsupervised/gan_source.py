"""Stored features and a text of phones as a training's source of batches: a pure function of
(step, seed)."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from w2v2dist.config import ConfigError, at_least, may_change
from w2v2dist.data.loader import iterate
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.unsupervised.feature_store import FeatureStore, check_alike
from w2v2dist.unsupervised.gan import GanBatch
from w2v2dist.unsupervised.generator import GeneratorConfig
from w2v2dist.unsupervised.phone_text import PAD, PhoneText, strange_labels

VALIDATION = "valid"
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GanDataConfig:
    """Features of speech, and a text that has nothing to do with it."""

    train: str | None = may_change(None, path=True)  # features (`w2v2dist unsupervised audio`)
    valid: str | None = may_change(None, path=True)
    text: str | None = may_change(None, path=True)  # phones (`w2v2dist unsupervised text`)
    batch_size: int = 160  # utterances, and as many sentences; validation has the same
    # Utterances of fewer frames are left out, as the reference implementation does
    min_frames: int = 3
    num_workers: int = may_change(0)
    prefetch: int = may_change(4)

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size min_frames prefetch")
        at_least(self, 0, "num_workers")

    @property
    def virtual_world_size(self) -> int:
        """One micro-batch a step: these models train in one process."""
        return 1


@dataclass(frozen=True, slots=True)
class Drawing:
    """All that batches are made of."""

    features: FeatureStore
    text: PhoneText
    rows: Ids  # the utterances that are used
    batch_size: int
    generator: GeneratorConfig
    with_targets: bool


class TrainingBatches(Dataset[GanBatch]):
    """(step, slot) to its batch: utterances in a new order every epoch, all batches full; sentences
    drawn with replacement, independently of the utterances."""

    def __init__(self, drawing: Drawing, seed: int) -> None:
        self.drawing, self.seed = drawing, seed
        self._order = lru_cache(2)(self._epoch)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingBatches, (self.drawing, self.seed)

    def __getitem__(self, item: tuple[int, int | None]) -> GanBatch:
        step, slot = item
        d = self.drawing
        if slot is None:  # it never happens: one process has the one slot
            raise IndexError(f"step {step} has no empty slot")
        ids = self.utterances(step)
        features, padding = _padded([d.features.frames(int(i)) for i in ids])
        num_outputs = d.generator.num_outputs(features.shape[1])
        draw = keyed_rng(self.seed, "join", step)
        alpha = keyed_rng(self.seed, "alpha", step)
        lines = [torch.from_numpy(d.text.line(int(i))) for i in self.sentences(step)]
        targets = None
        if d.with_targets:
            found = [d.features.targets(int(i)) for i in ids]
            rows = [torch.from_numpy(np.asarray(t, np.int64)) for t in found if t is not None]
            targets = pad_sequence(rows, batch_first=True, padding_value=-1)
        return GanBatch(
            step=step,
            slot=slot,
            num_targets=float(len(ids)),
            amount=len(ids),
            used={"keys": [d.features.keys[int(i)] for i in ids]},
            features=features,
            padding=padding,
            targets=targets,
            text=pad_sequence(lines, batch_first=True, padding_value=PAD),
            alpha=torch.from_numpy(alpha.random(len(ids), dtype=np.float32)),
            join_draws=torch.from_numpy(draw.random((len(ids), num_outputs), dtype=np.float32)),
        )

    def utterances(self, step: int) -> Ids:
        """Which utterances a step trains on."""
        d = self.drawing
        epoch, number = divmod(step - 1, len(d.rows) // d.batch_size)
        return self._order(epoch)[number * d.batch_size : (number + 1) * d.batch_size]

    def sentences(self, step: int) -> Ids:
        """Which lines of the text a step draws."""
        d = self.drawing
        return keyed_rng(self.seed, "text", step).integers(0, len(d.text), d.batch_size)

    def _epoch(self, epoch: int) -> Ids:
        rows = self.drawing.rows
        return rows[keyed_rng(self.seed, "order", epoch).permutation(len(rows))]


class ValidationBatches(Dataset[GanBatch]):
    """Ranges of utterances in the order of the store; None: none."""

    def __init__(self, features: FeatureStore) -> None:
        self.features = features

    def __getitem__(self, ids: Sequence[int] | None) -> GanBatch:
        if ids is None:  # it never happens in one process
            raise IndexError("there is no empty batch of validation")
        features, padding = _padded([self.features.frames(i) for i in ids])
        return GanBatch(
            step=0,
            slot=0,
            num_targets=float(len(ids)),
            amount=len(ids),
            keys=tuple(self.features.keys[i] for i in ids),
            features=features,
            padding=padding,
        )


class GanSource:
    """The batches of data.train with data.text, and of data.valid as the validation set "valid".
    Raises ConfigError where they hold too little or do not fit together."""

    def __init__(
        self,
        config: GanDataConfig,
        seed: int,
        generator: GeneratorConfig,
        stores: "Stores",
        *,
        num_targets: int,
    ) -> None:
        self._config, self._seed = config, seed
        self.train, self.text, self.valid = stores.train, stores.text, stores.valid
        rows, self.notes = _usable(config, stores.train, num_targets)
        self._drawing = Drawing(
            stores.train, stores.text, rows, config.batch_size, generator, num_targets > 0
        )
        self.fingerprint = f"{stores.train.fingerprint}-{stores.text.fingerprint}"
        self.validation: dict[str, list[list[int]]] = {}
        if stores.valid is not None:
            check_alike(stores.train, stores.valid)
            enough = np.flatnonzero(stores.valid.num_frames >= config.min_frames).tolist()
            if not enough:
                raise ConfigError(
                    f"data.valid ({config.valid}) has no utterance of data.min_frames = "
                    f"{config.min_frames} frames or more: give it another store of features"
                )
            if left := len(stores.valid.keys) - len(enough):
                self.notes.append(
                    f"{left} of {len(stores.valid.keys)} utterances of data.valid are left out: "
                    f"they have less than data.min_frames = {config.min_frames} frames"
                )
            if strange := strange_labels(stores.valid.labels.values(), stores.text.symbols):
                self.notes.append(f"data.valid: {strange}")
            size = config.batch_size
            self.validation[VALIDATION] = [
                enough[first : first + size] for first in range(0, len(enough), size)
            ]

    def check(self) -> None:
        """Nothing: opening the stores has compared their sizes."""

    def batches(
        self, steps: Iterable[int], slots: list[int | None], seed: int
    ) -> Generator[Any, None, None]:
        """The batches of these slots, step after step, drawn with `seed`."""
        yield from iterate(
            TrainingBatches(self._drawing, seed),
            ((step, slot) for step in steps for slot in slots),
            num_workers=self._config.num_workers,
            prefetch=self._config.prefetch,
        )

    def validation_batches(
        self, name: str, rank: int, world_size: int
    ) -> Generator[Any, None, None]:
        """Every `world_size`-th batch of the set."""
        assert self.valid is not None
        micro = self.validation[name][rank::world_size]
        yield from iterate(ValidationBatches(self.valid), micro, num_workers=0, prefetch=2)

    def audit(self, step: int, slot: int, seed: int) -> dict[str, Any]:
        """What a step uses: the keys of its utterances and the lines of its text, from 0."""
        batches = TrainingBatches(self._drawing, seed)
        keys = [self.train.keys[int(i)] for i in batches.utterances(step)]
        lines = batches.sentences(step).tolist()
        return {"step": step, "slot": slot, "keys": keys, "lines": lines}


@dataclass(frozen=True, slots=True)
class Stores:
    """The opened data of a training."""

    train: FeatureStore
    text: PhoneText
    valid: FeatureStore | None = None


def open_stores(config: GanDataConfig) -> Stores:
    """Open what the configuration names. Raises ConfigError."""
    what = {
        "train": "features: make some with `w2v2dist unsupervised audio`",
        "text": "phones: make some with `w2v2dist unsupervised text`",
    }
    for name, means in what.items():
        if not getattr(config, name):
            raise ConfigError(f"data.{name} is not set but must be a folder of {means}")
    for name in ("train", "valid", "text"):
        given = getattr(config, name)
        if given and "," in given and not Path(given).exists():
            raise ConfigError(
                f"data.{name} is {given}, but it must be one folder: put the recordings (or texts) "
                "together before, in one command of `w2v2dist unsupervised`"
            )
    valid = FeatureStore(config.valid) if config.valid else None
    return Stores(FeatureStore(str(config.train)), PhoneText(str(config.text)), valid)


def _usable(
    config: GanDataConfig, features: FeatureStore, num_targets: int
) -> tuple[Ids, list[str]]:
    """The utterances that can be trained on, and notes on the others. Raises ConfigError."""
    total = len(features.keys)
    long_enough = features.num_frames >= config.min_frames
    usable, notes = long_enough.copy(), []
    if short := int(total - long_enough.sum()):
        notes.append(
            f"{short} of {total} utterances of data.train are left out: they have less than "
            f"data.min_frames = {config.min_frames} frames"
        )
    if num_targets:
        found = np.array([_has_targets(features, i, num_targets) for i in range(total)], bool)
        if not found.any():
            raise ConfigError(
                f"no utterance of data.train ({config.train}) has auxiliary targets, but "
                "losses.auxiliary_weight asks for them: make them with `w2v2dist unsupervised "
                "audio`, or set losses.auxiliary_weight=0"
            )
        if missing := int((usable & ~found).sum()):
            notes.append(
                f"{missing} of {total} utterances of data.train are left out: they have no "
                "auxiliary targets"
            )
        usable &= found
    rows = np.flatnonzero(usable)
    if len(rows) < config.batch_size:
        raise ConfigError(
            f"data.train ({config.train}) has {len(rows)} usable utterances of {total} but "
            f"data.batch_size is {config.batch_size}, and a batch has each of its utterances once: "
            "give it more speech or lower data.batch_size (small batches are known to fail)"
            + "".join(f"; {note}" for note in notes)
        )
    return rows, notes


def _has_targets(features: FeatureStore, i: int, num_targets: int) -> bool:
    targets, num_frames = features.targets(i), int(features.num_frames[i])
    if targets is None or not len(targets):
        return False
    if abs(len(targets) - num_frames) > 2 + num_frames // 10:
        raise ConfigError(
            f"utterance {features.keys[i]} of {features.folder} has {len(targets)} auxiliary "
            f"targets but {num_frames} frames: there must be one a frame, give or take a few at "
            "the end; make both with `w2v2dist unsupervised audio`"
        )
    if int(targets.max()) >= num_targets:
        raise ConfigError(
            f"utterance {features.keys[i]} has the auxiliary target {int(targets.max())} but "
            f"model.num_targets is {num_targets}: set it to the number of clusters"
        )
    return True


def _padded(frames: list[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Utterances (T, C) as features (B, T, C) and padding (B, T)."""
    rows = [torch.from_numpy(np.array(f, np.float32)) for f in frames]
    lengths = torch.tensor([len(row) for row in rows])
    features = pad_sequence(rows, batch_first=True)
    padding = torch.arange(features.shape[1]) >= lengths[:, None]
    return features, padding
