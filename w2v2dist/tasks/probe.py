"""Letters that a linear layer reads from a pre-training model: what its loss does not show."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2v2dist.config import ConfigError, at_least, may_change
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.batching import MicroBatch, batch_by_size
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.loader import MicroBatches
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.source import open_index
from w2v2dist.data.texts import count_symbols, read_labels
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.decode.scoring import error_counts, error_rates
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import World
from w2v2dist.tasks.finetune import FinetuneBatch, FinetuneCollate
from w2v2dist.tasks.linear_probe import CHECKED_EVERY, Labelled, LinearProbe
from w2v2dist.training.agreed import agreed
from w2v2dist.training.plain_engine import AnyEngine

LONGEST = 40 * SAMPLE_RATE  # of an utterance: without gradients that fits where training does


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """A linear CTC layer on frozen features of some layers, trained now and then on minutes of
    labels; it changes nothing of the training."""

    every: int = may_change(0)  # steps; 0: never
    data: str | None = may_change(None, path=True)  # transcribed shards
    valid: str | None = may_change(None, path=True)  # others, to count errors in
    # 1 is the first Transformer layer, 0 what goes into it; empty: a third, two thirds, the last
    layers: tuple[int, ...] = may_change(())
    minutes: float = may_change(10.0)  # of each, the first in the shards
    steps: int = may_change(300)
    lr: float = may_change(0.01)

    def __post_init__(self) -> None:
        at_least(self, 0, "every")
        at_least(self, 1, "steps")
        if not (self.minutes > 0 and self.lr > 0):
            raise ValueError(
                f"minutes is {self.minutes} and lr {self.lr} but both must be positive"
            )
        if self.every and not (self.data and self.valid):
            raise ValueError(
                f"every is {self.every} but data or valid is not set: give each a folder of "
                "transcribed shards, or set every=0"
            )

    def of(self, num_layers: int) -> list[int]:
        """The layers of a model that are probed. Raises ConfigError."""
        for layer in self.layers:
            if not 0 <= layer <= num_layers:
                raise ConfigError(
                    f"probe.layers has {layer} but the model has {num_layers} layers: name some "
                    f"from 0 to {num_layers}"
                )
        thirds = [max(1, num_layers // 3), max(1, 2 * num_layers // 3), num_layers]
        return sorted({*(self.layers or thirds)})


class LettersProbe:
    """The probe of a pre-training. Each process trains the layers that are its own, so that all
    numbers are the same on any number of them."""

    def __init__(
        self, config: ProbeConfig, data: DataConfig, model: Wav2Vec2Config, world: World
    ) -> None:
        self.every, self._config, self._model = config.every, config, model
        self._data, self._layers = data, config.of(model.num_layers)
        indices = [open_index(config.data, "probe.data"), open_index(config.valid, "probe.valid")]
        chosen = [
            _first_minutes(index, config.minutes, model, key)
            for index, key in zip(indices, ("probe.data", "probe.valid"), strict=True)
        ]
        self._alphabet = agreed(lambda: _alphabet(indices[0], data), world)
        agreed(lambda: _check_labels(indices, chosen, self._alphabet), world)
        self._sets = [
            (index, _batches(index, ids, data)) for index, ids in zip(indices, chosen, strict=True)
        ]
        self.notes = _notes(indices, chosen)

    def run(
        self, engine: AnyEngine, world: World, going_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """probe/layer_NN/cer of each layer; collective."""
        found: dict[int, float] = {}
        for first in range(0, len(self._layers), world.size):
            some = self._layers[first : first + world.size]
            own = some[world.rank] if world.rank < len(some) else None
            training = self._features(engine, 0, some, own, going_on)
            valid = None if training is None else self._features(engine, 1, some, own, going_on)
            if training is None or valid is None:
                return None
            if (error := self._error_rate(training[0], valid, own, going_on)) is None:
                return None
            if own is not None:
                found[own] = error
        every = {k: v for of_rank in world.gather(found) for k, v in of_rank.items()}
        return {f"probe/layer_{layer:02d}/cer": every[layer] for layer in self._layers}

    def _features(
        self, engine: AnyEngine, which: int, some: Sequence[int], own: int | None,
        going_on: Callable[[], bool],
    ) -> tuple[list[Labelled], list[str]] | None:  # fmt: skip
        """The features of this process's layer with their labels, and the texts; None: stopped."""
        labelled: list[Labelled] = []
        texts: list[str] = []
        index, batches = self._sets[which]
        collate = FinetuneCollate(self._model, self._alphabet, 0, False)
        reading = MicroBatches(index, self._data, collate, with_labels=True)
        # Under ZeRO 3 all processes gather the weights of a layer together
        wanted = some if engine.config.zero_stage == 3 else [own] if own is not None else []
        for micro in batches:
            if not going_on():
                return None
            if not wanted:
                continue
            batch = reading[micro]
            assert isinstance(batch, FinetuneBatch)
            if not batch.used:  # no utterance of it can be used
                continue
            on_device = batch.waveforms.to(engine.world.device)
            for layer in wanted:
                features = self._of_layer(engine, layer, on_device, batch.num_samples)
                if layer == own:
                    labelled += self._split(features.float(), batch)
            texts += batch.texts
        return labelled, texts

    def _of_layer(
        self, engine: AnyEngine, layer: int, waveforms: Tensor, num_samples: Tensor | None
    ) -> Tensor:
        """(B, T, E): the output of a layer is that of a model without those after it."""
        drop = [number >= layer for number in range(self._model.num_layers)]
        with torch.no_grad():
            out = engine(waveforms, num_samples=num_samples, drop_layers=drop)
        features: Tensor = out.features
        return features

    def _split(self, features: Tensor, batch: FinetuneBatch) -> list[Labelled]:
        """A batch's utterances, each without padding."""
        lengths = [batch.waveforms.shape[1]] * len(batch.texts)
        if batch.num_samples is not None:
            lengths = batch.num_samples.tolist()
        ids = torch.split(batch.targets, batch.target_lengths.tolist())
        frames = [self._model.num_frames(n) for n in lengths]
        return [(x[:n], t) for x, n, t in zip(features, frames, ids, strict=True)]

    def _error_rate(
        self, training: list[Labelled], valid: tuple[list[Labelled], list[str]], own: int | None,
        going_on: Callable[[], bool],
    ) -> float | None:  # fmt: skip
        """Letter errors on the held-out utterances; 0 where this process has no layer; None:
        stopped. All processes ask `going_on` equally often."""
        steps, blank = self._config.steps, self._alphabet.blank
        if own is None:
            return 0.0 if all(going_on() for _ in range(0, steps, CHECKED_EVERY)) else None
        if not training or not valid[0]:  # all of them unreadable by now: others wait for an answer
            return math.nan if all(going_on() for _ in range(0, steps, CHECKED_EVERY)) else None
        probe = LinearProbe(training, self._alphabet.num_tokens)
        if not probe.train(steps, self._config.lr, blank, going_on):
            return None
        said = []
        with torch.no_grad():
            for features, _ in valid[0]:
                length = torch.tensor([len(features)])
                said += greedy_text(probe(features)[None], length, self._alphabet)
        return error_rates(error_counts(valid[1], said), ("cer",))["cer"]


def _first_minutes(index: ShardIndex, minutes: float, model: Wav2Vec2Config, key: str) -> Any:
    """Rows of the first utterances, until they are so many minutes. Raises ConfigError where none
    has a length that the model takes."""
    sizes = index.num_samples.astype(np.int64)
    fits = (sizes >= model.receptive_field) & (sizes <= LONGEST)
    rows = np.flatnonzero(fits).astype(np.int64)
    if not len(rows):
        raise ConfigError(
            f"{key} has no utterance of {model.receptive_field} to {LONGEST} samples: give it "
            "other shards"
        )
    before = np.cumsum(sizes[rows]) - sizes[rows]
    return rows[before < minutes * 60 * SAMPLE_RATE]


def _batches(index: ShardIndex, ids: Any, data: DataConfig) -> list[MicroBatch]:
    sizes = index.num_samples[ids].astype(np.int64)
    out = []
    for slot, rows in enumerate(batch_by_size(ids, sizes, data.max_samples_per_slot)):
        size = index.num_samples[rows].astype(np.int64)
        start = np.zeros(len(rows), np.int64)
        out.append(MicroBatch(0, slot, 0, rows, start, size, start + 100))
    return out


def _alphabet(index: ShardIndex, data: DataConfig) -> Alphabet:
    """The letters of the probe's own texts. Raises ConfigError where there are none."""
    try:
        labels = read_labels(index, "characters")
        return count_symbols(labels, "characters", data.text).alphabet().check()
    except ValueError as error:
        raise ConfigError(f"probe.data: {error}") from None


def _check_labels(indices: Sequence[ShardIndex], chosen: Sequence[Any], alphabet: Alphabet) -> bool:
    """True. Raises ConfigError where no chosen utterance of a set has a label of the alphabet."""
    for name, index, ids in zip(("data", "valid"), indices, chosen, strict=True):
        reader = ShardReader(index)
        if not any(_is_usable(reader, int(i), alphabet) for i in ids):
            raise ConfigError(
                f"no utterance of probe.{name} has a usable label: give it transcribed shards"
            )
    return True


def _is_usable(reader: ShardReader, row: int, alphabet: Alphabet) -> bool:
    try:
        label = alphabet.label(reader.labels(row))
        return bool(label and alphabet.encode(label))
    except ValueError:  # BadSample is one
        return False


def _notes(indices: Sequence[ShardIndex], chosen: Sequence[Any]) -> list[str]:
    """What the probe is made of, and whether its two sets share utterances."""
    train, valid = (
        {index.key(int(i)) for i in ids} for index, ids in zip(indices, chosen, strict=True)
    )
    minutes = [
        index.num_samples[ids].sum(dtype="i8") / SAMPLE_RATE / 60
        for index, ids in zip(indices, chosen, strict=True)
    ]
    out = [f"a probe on {minutes[0]:.1f} minutes of labels, measured on {minutes[1]:.1f}"]
    if both := len(train & valid):
        out.append(
            f"probe.valid shares {both} of {len(valid)} utterances with probe.data: its error "
            "rates are too low, give it other shards"
        )
    return out
