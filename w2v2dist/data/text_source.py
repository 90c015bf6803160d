"""Texts as a language model's source of batches: a pure function of (step, slot, seed)."""

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from w2v2dist.config import ConfigError, at_least, may_change
from w2v2dist.data.batch import Batch
from w2v2dist.data.batching import MicroBatch, validation_batches
from w2v2dist.data.config import DataConfig
from w2v2dist.data.loader import iterate
from w2v2dist.data.order import DataOrder
from w2v2dist.data.sentences import (
    Sentences,
    check_units,
    encode_texts,
    fingerprint_of,
    joined,
    read_lines,
    text_files,
)
from w2v2dist.data.vocabulary import (
    END,
    PAD,
    TextUnits,
    Vocabulary,
    of_counts,
    read_vocabulary,
    split,
)

VALIDATION = "valid"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDataConfig:
    """Texts and micro-batches. A token is what the units say, or a sentence's end."""

    # files with a sentence a line (.gz too), or folders that `lm text` wrote; separated by commas
    train: str | None = may_change(None, path=True)
    valid: str | None = may_change(None, path=True)
    vocabulary: str = field(default="auto", metadata={"path": True})  # or fairseq's dict.txt
    min_count: int = 1  # of auto: symbols that are rarer in data.train count as unknown
    units: TextUnits = "words"
    virtual_world_size: int = 64  # micro-batches (slots) of one step, on any number of GPUs
    max_tokens_per_slot: int = 2_048  # padding included
    max_tokens: int = 512  # longer sentences are left out
    shuffle_window: int = 10_000  # sentences
    num_workers: int = may_change(1)
    prefetch: int = may_change(4)

    def __post_init__(self) -> None:
        at_least(self, 1, "min_count virtual_world_size max_tokens shuffle_window prefetch")
        at_least(self, 0, "num_workers")
        if not self.vocabulary:
            raise ValueError("vocabulary is '' but must be auto or a file")
        if self.max_tokens > self.max_tokens_per_slot:
            raise ValueError(
                f"max_tokens is {self.max_tokens} but must be at most max_tokens_per_slot "
                f"({self.max_tokens_per_slot}): one sentence has to fit into a micro-batch"
            )

    @property
    def order(self) -> DataConfig:
        """The same limits as the order of samples knows them."""
        return DataConfig(
            virtual_world_size=self.virtual_world_size,
            max_samples_per_slot=self.max_tokens_per_slot,
            max_crop=self.max_tokens,
            min_samples=1,
            shuffle_window=self.shuffle_window,
        )


@dataclass(frozen=True, slots=True)
class TextFolders:
    """Where the encoded texts lie."""

    train: Path
    valid: Path | None

    def vocabulary(self) -> Vocabulary:
        """The vocabulary that they were encoded with."""
        return read_vocabulary(self.train / "dict.txt", Sentences(self.train).meta["units"])


def prepare_texts(config: TextDataConfig, root: Path) -> TextFolders:
    """Encode data.train and data.valid into folders below `root`, where they are not there already.
    In one process; it takes minutes for a billion words. Raises ValueError or OSError."""
    paths = text_files(config.train, "data.train")
    text, given = fingerprint_of(paths), None
    wanted = f"auto {config.min_count} {config.units}"
    if config.vocabulary != "auto":
        if not Path(config.vocabulary).is_file():
            raise ConfigError(
                f"data.vocabulary is {config.vocabulary!r}, which does not exist: give auto (of "
                "data.train) or a dictionary, a symbol, a blank and a count a line"
            )
        given = read_vocabulary(Path(config.vocabulary), config.units)
        wanted = given.fingerprint
    train = root / joined(text, wanted)
    if not _is_whole(train):
        check_units(paths, config.units, "data.train")
        encode_texts(paths, given or _counted(paths, config), train, text)
    folders = TextFolders(train, None)
    if not config.valid:
        return folders
    paths, vocabulary = text_files(config.valid, "data.valid"), folders.vocabulary()
    text = fingerprint_of(paths)
    valid = root / joined(text, vocabulary.fingerprint, VALIDATION)
    if not _is_whole(valid):
        check_units(paths, config.units, "data.valid")
        encode_texts(paths, vocabulary, valid, text)
    return TextFolders(train, valid)


def _counted(paths: list[Path], config: TextDataConfig) -> Vocabulary:
    """The vocabulary of the texts."""
    counts: Counter[str] = Counter()
    for path in paths:
        for line in read_lines(path, "counting"):
            counts.update(split(line, config.units))
    if max(counts.values(), default=0) < config.min_count:
        raise ConfigError(
            f"no symbol of {', '.join(map(str, paths))} is there data.min_count = "
            f"{config.min_count} times: give it more text, or lower data.min_count"
        )
    return of_counts(counts, config.min_count, config.units)


def _is_whole(folder: Path) -> bool:
    try:
        Sentences(folder)
    except ValueError:
        return False
    return True


@dataclass(kw_only=True, slots=True)
class TextBatch(Batch):
    """N sentences of at most L tokens, padded behind with PAD."""

    tokens: Tensor  # (N, L) int64: END, then the words
    targets: Tensor  # (N, L) int64: the words, then END


class TextBatches(Dataset[TextBatch]):
    """A planned micro-batch, or (step, slot) of `order`, to its batch; None: an empty one."""

    def __init__(self, sentences: Sentences, order: DataOrder | None = None) -> None:
        self.sentences, self.order = sentences, order

    def __getitem__(self, item: tuple[int, int | None] | MicroBatch | None) -> TextBatch:
        if isinstance(item, tuple):
            assert self.order is not None
            step, slot = item
            item = None if slot is None else self.order.micro_batch(step, slot)
        if item is None:  # it runs on a sentence of no words, as every process must run
            end = torch.tensor([[END]])
            return TextBatch(step=0, slot=0, tokens=end, targets=end)
        width = int(item.num_samples.max())
        tokens = torch.full((len(item.ids), width), PAD)
        targets = tokens.clone()
        for row, i in enumerate(item.ids.tolist()):
            ids = torch.from_numpy(self.sentences.ids(i))
            tokens[row, 1 : len(ids) + 1] = targets[row, : len(ids)] = ids
            tokens[row, 0] = targets[row, len(ids)] = END
        amount = int(item.num_samples.sum())
        return TextBatch(
            step=item.step,
            slot=item.slot,
            num_targets=float(amount),
            amount=amount,
            used=self.usage(item),
            tokens=tokens,
            targets=targets,
        )

    def usage(self, micro: MicroBatch) -> dict[str, Any]:
        """The audit record of a micro-batch: file and line of each sentence, and its tokens."""
        keys = [self.sentences.key(int(i)) for i in micro.ids]
        return {"keys": keys, "num_tokens": micro.num_samples.tolist()}


class TextSource:
    """The batches of data.train, and of data.valid as the validation set "valid", from texts that
    `prepare_texts` has encoded. Raises ConfigError or ValueError where they hold too little."""

    def __init__(self, config: TextDataConfig, seed: int, folders: TextFolders) -> None:
        self._config, self._seed = config, seed
        self._sentences = Sentences(folders.train)
        self.fingerprint = self._sentences.fingerprint
        self._check_number()
        self._order = DataOrder(self._sentences, config.order, seed, crop=False)
        self.notes = self._notes()
        self._valid: Sentences | None = None
        self.validation: dict[str, list[MicroBatch]] = {}
        if folders.valid:
            self._valid = Sentences(folders.valid)
            self.validation[VALIDATION] = validation_batches(self._valid, config.order, crop=False)

    def check(self) -> None:
        """Nothing: opening them has compared their sizes."""

    def batches(self, steps: Iterable[int], slots: list[int | None], seed: int) -> Generator[Any]:
        """The batches of these slots, step after step, drawn with `seed`; None: an empty slot."""
        yield from iterate(
            TextBatches(self._sentences, self._seeded(seed)),
            ((step, slot) for step in steps for slot in slots),
            num_workers=self._config.num_workers,
            prefetch=self._config.prefetch,
        )

    def validation_batches(self, name: str, rank: int, world_size: int) -> Generator[Any]:
        """Every `world_size`-th batch of a set; the same number for every rank, some empty."""
        assert self._valid is not None
        micro = self.validation[name]
        padded = [*micro, *[None] * (-len(micro) % world_size)]
        yield from iterate(
            TextBatches(self._valid), padded[rank::world_size], num_workers=0, prefetch=2
        )

    def audit(self, step: int, slot: int, seed: int) -> dict[str, Any]:
        """What a slot uses at a step: the lines of sentences and how many tokens each has."""
        micro = self._seeded(seed).micro_batch(step, slot)
        return {"step": step, "slot": slot, **TextBatches(self._sentences).usage(micro)}

    def _seeded(self, seed: int) -> DataOrder:
        if seed == self._seed:
            return self._order
        return DataOrder(self._sentences, self._config.order, seed, crop=False)

    def _check_number(self) -> None:
        sizes = self._sentences.num_samples
        usable = np.count_nonzero((sizes > 0) & (sizes <= self._config.max_tokens))
        if usable < self._config.virtual_world_size:
            raise ConfigError(
                f"data.train ({self._config.train}) has {usable} sentences of at most "
                f"data.max_tokens = {self._config.max_tokens} tokens but data.virtual_world_size "
                f"is {self._config.virtual_world_size}, and each slot needs one: give it more "
                "text, lower data.virtual_world_size or raise data.max_tokens"
            )

    def _notes(self) -> list[str]:
        meta, (blank, long) = self._sentences.meta, self._order.left_out()
        words, unknown = meta["num_words"], meta["num_unknown"]
        used = len(self._sentences) - blank - long
        notes = [
            f"data.train has {used:,} sentences and {words:,} {meta['units']}, of which "
            f"{100 * unknown / words:.2f} % are not in the vocabulary (<unk>)"
        ]
        if long:
            notes.append(
                f"{long} of its sentences are left out: they have more than data.max_tokens = "
                f"{self._config.max_tokens} tokens"
            )
        return notes
