"""Emissions: a model's log-probabilities of a data set, computed once and kept, so that decoding
repeats without the model. Each utterance is heard alone: nothing depends on a batch, or on how many
processes there are."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TextColumn

from w2v2dist.config import ConfigError, from_dict, to_dict
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.batch import Rows, SpeechBatch, core, encode_labels, pad
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.loader import MicroBatches, iterate
from w2v2dist.data.source import open_index
from w2v2dist.decode.chunks import hear
from w2v2dist.interop.open import OpenedModel
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import console, read_jsonl

Emission = NDArray[np.float32]  # log-probabilities (T, num_tokens) of an utterance

VERSION = 1


@dataclass(frozen=True, slots=True)
class Utterance:
    """What was said, as the alphabet writes it, and how long it took."""

    key: str
    reference: str
    num_frames: int
    seconds: float


class Emissions:
    """Kept log-probabilities of `utterances`; `skipped` are the records of those that could not be
    used. log_probs.npy has natural logarithms (frames of all, num_tokens) in fp16, less the best of
    their frame, where fp16 is the finest: what is nearly as probable stays apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "emissions.json").read_bytes())
        self.alphabet = Alphabet.from_dict(self.meta["alphabet"])
        self.model = from_dict(Wav2Vec2Config, self.meta["config"])
        self.utterances = [Utterance(**r) for r in read_jsonl(folder / "utterances.jsonl")]
        self.skipped = read_jsonl(folder / "skipped.jsonl")
        shape = (sum(u.num_frames for u in self.utterances), self.alphabet.num_tokens)
        path = folder / "log_probs.npy"
        self._ends = np.cumsum([0, *(u.num_frames for u in self.utterances)])
        self._values = np.load(path, mmap_mode="r") if shape[0] else np.zeros(shape, np.float16)
        if self._values.shape != shape:
            raise ConfigError(
                f"{path} is {self._values.shape} but must be {shape}: remove {folder}, and it is "
                "computed again"
            )

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, number: int) -> Emission:
        """Log-probabilities (num_frames, num_tokens) of one utterance."""
        first, last = self._ends[number : number + 2]
        values = np.array(self._values[first:last], np.float32)
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{self.folder} holds NaN or infinity for {self.utterances[number].key}: remove "
                "it, and it is computed again"
            )
        out: Emission = values - np.log(np.exp(values).sum(-1, keepdims=True))
        return out


@dataclass(kw_only=True, slots=True)
class LabelledBatch(SpeechBatch):
    """An utterance with its key and what was said; none where it cannot be used."""

    keys: list[str]
    texts: list[str]


@dataclass(frozen=True, slots=True)
class LabelledCollate:
    """Waveforms with their labels as the alphabet writes them; runs in a worker."""

    alphabet: Alphabet

    def __call__(self, rows: Rows | None) -> LabelledBatch:
        assert rows is not None, "there are no empty slots"
        targets = encode_labels(rows, self.alphabet, None)
        return LabelledBatch(
            **core(rows, float(len(rows.keys))),
            waveforms=pad(rows.waveforms)[0] if rows.keys else torch.zeros(0, 0),
            keys=rows.keys,
            texts=[self.alphabet.decode(ids, collapse=False) for ids in targets],
        )


def is_kept(folder: Path) -> bool:
    """Whether a folder holds emissions."""
    return (folder / "emissions.json").is_file()


def kept_emissions(
    opened: OpenedModel, config: DataConfig, data: str, kept: Path, world: World
) -> Emissions:
    """The emissions of `opened` on shards, found below `kept` or computed and left there; the
    folder's name has the fingerprints of both. Collective. Raises ConfigError, ValueError."""
    alphabet = opened.recogniser()[1]
    index = open_index(data, "--data")
    meta = {
        "version": VERSION,
        "model": world.gather(fingerprint(opened) if world.is_main else "")[0],
        "data": index.fingerprint,
        "source": str(opened.source),
        "shards": data,
        "config": to_dict(opened.module.config),
        "alphabet": alphabet.to_dict(),
    }
    folder = kept / f"{meta['model']}-{meta['data']}"
    if not world.gather(folder.is_dir())[0]:
        index.check_shard_sizes()
        part = kept / f".{folder.name}.{world.gather(os.getpid())[0]}.tmp"
        part.mkdir(parents=True, exist_ok=True)
        try:
            listed, skipped = _compute(opened, config, index, part, world)
            if world.is_main:
                _join(part, meta, listed, skipped)
                with contextlib.suppress(OSError):  # another process was faster
                    part.rename(folder)
            world.barrier()
        finally:
            if world.is_main:
                shutil.rmtree(part, ignore_errors=True)
    return Emissions(folder)


def fingerprint(opened: OpenedModel) -> str:
    """Tells what a model makes of audio from what others make of it."""
    module, alphabet, normalized = opened.recogniser()
    return digest_of([to_dict(module.config), alphabet.to_dict(), normalized], module)


def digest_of(said: list[Any], module: torch.nn.Module) -> str:
    """Tells a module's weights, and what is said of it, from all others."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


Listed = list[tuple[int, Utterance]]  # with the utterance's place in the index
Records = list[tuple[int, dict[str, Any]]]


def _compute(
    opened: OpenedModel, config: DataConfig, index: ShardIndex, part: Path, world: World
) -> tuple[list[Listed], list[Records]]:
    """Write this process's share to `part`; returns what every process has, by rank."""
    alphabet = opened.recogniser()[1]
    opened.module.to(world.device)
    config = dataclasses.replace(config, normalize=False)  # chunks are normalised where heard
    own = range(world.rank, len(index), world.size)
    dataset = MicroBatches(index, config, LabelledCollate(alphabet), with_labels=True)
    batches = iterate(dataset, alone(index, own), num_workers=config.num_workers, prefetch=4)
    listed: Listed = []
    skipped: Records = []
    path = part / f"part-{world.rank:05d}"
    with path.open("wb") as file, contextlib.closing(batches), _bar(index, world) as told:
        for batch in batches:
            number = batch.slot
            skipped += [(number, record) for record in batch.bad]
            told(int(index.num_samples[number]) / SAMPLE_RATE)
            if not batch.keys:
                continue
            wave = batch.waveforms[0].numpy()
            frames = [part.numpy() for part in hear(opened, wave)]
            utterance = Utterance(
                batch.keys[0], batch.texts[0], sum(map(len, frames)), len(wave) / SAMPLE_RATE
            )
            if not all(np.isfinite(f).all() for f in frames):
                reason = "the model's output is not finite (NaN or infinite)"
                skipped.append((number, {"key": utterance.key, "reason": reason}))
                continue
            _write(file, frames)
            listed.append((number, utterance))
    found = world.gather((listed, skipped))
    return [of_rank[0] for of_rank in found], [of_rank[1] for of_rank in found]


def _write(file: BinaryIO, frames: list[Emission]) -> None:
    for values in frames:
        less = values - values.max(-1, keepdims=True, initial=-np.inf)
        # The least of fp16, not minus infinity: sums of it stay numbers
        file.write(np.maximum(less, np.finfo(np.float16).min).astype(np.float16).tobytes())


def alone(index: ShardIndex, rows: Iterable[int]) -> Iterator[MicroBatch]:
    """A micro-batch of each utterance; its slot is its place in the index."""
    for i in rows:
        one = np.array([i]), np.zeros(1, np.int64), index.num_samples[[i]].astype(np.int64)
        yield MicroBatch(0, i, 0, *one, np.array([100]))


@contextlib.contextmanager
def _bar(index: ShardIndex, world: World) -> Iterator[Any]:
    """A progress bar over this process's audio; called with the seconds of an utterance."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=console, transient=True, disable=not world.is_main) as bar:
        total = float(np.sum(index.num_samples[world.rank :: world.size], dtype=np.int64))
        task = bar.add_task("hearing", total=total / SAMPLE_RATE, speed="")

        def told(seconds: float) -> None:
            bar.advance(task, seconds)
            done, elapsed = bar.tasks[0].completed, bar.tasks[0].elapsed or 0.0
            speed = world.size * done / max(elapsed, 1e-3)
            bar.update(task, speed=f"{speed:.0f} × real time")

        yield told


def _join(part: Path, meta: dict[str, Any], listed: list[Listed], skipped: list[Records]) -> None:
    """One file of what the processes wrote, in the order of the index; their parts are removed."""
    width = len(meta["alphabet"]["tokens"])
    utterances = sorted((number, rank, u) for rank, rows in enumerate(listed) for number, u in rows)
    total = sum(u.num_frames for _, _, u in utterances)
    names = [part / f"part-{rank:05d}" for rank in range(len(listed))]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(name.open("rb")) for name in names]
        out = stack.enter_context((part / "log_probs.npy").open("wb"))
        header = {"descr": "<f2", "fortran_order": False, "shape": (total, width)}
        np.lib.format.write_array_header_1_0(out, header)
        for _, rank, utterance in utterances:
            out.write(files[rank].read(2 * width * utterance.num_frames))
    for name in names:
        name.unlink()
    bad = [
        record for _, record in sorted((p for of in skipped for p in of), key=lambda pair: pair[0])
    ]
    lines = {"utterances": [asdict(u) for _, _, u in utterances], "skipped": bad}
    for file_name, records in lines.items():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (part / f"{file_name}.jsonl").write_text(text, encoding="utf-8")
    (part / "emissions.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
