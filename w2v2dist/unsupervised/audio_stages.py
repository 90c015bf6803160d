"""From shards to the features that wav2vec-U trains on: what the processes do together."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TextColumn

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import made
from w2v2dist.data.source import open_index
from w2v2dist.decode.evaluated import data_config
from w2v2dist.interop.open import OpenedModel
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import console, read_jsonl
from w2v2dist.training.agreed import agreed
from w2v2dist.training.bad_samples import most_frequent
from w2v2dist.training.lock import InUseError, locked
from w2v2dist.unsupervised import mfcc_targets
from w2v2dist.unsupervised.audio_config import FRAMES, MFCC, TRAIN, AudioConfig
from w2v2dist.unsupervised.audio_folder import AudioFolder, one_after_the_other
from w2v2dist.unsupervised.clustering import check_pca
from w2v2dist.unsupervised.feature_store import FeatureStore, Frames
from w2v2dist.unsupervised.features import (
    MIN_FRAMES,
    BlockFeatures,
    Speech,
    SpokenCollate,
    check_damage,
    is_damaged,
)
from w2v2dist.unsupervised.fitted import Fitted, fit
from w2v2dist.unsupervised.silence import Silence
from w2v2dist.unsupervised.store_writer import PART, FeatureStoreWriter, check_once

TOO_FAST_HZ = 20  # segments: the paper's runs converged at 14 to 16, and failed at 25 to 28
STAGES = {"pairs": "pairs of segments", "segments": "segments"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """All that the processes share while they make a folder."""

    folder: AudioFolder
    indices: dict[str, ShardIndex]  # by split, TRAIN first where it is there
    data: DataConfig
    world: World

    def say(self, text: str) -> None:
        """A line, once."""
        if self.world.is_main:
            console.print(text, markup=False)


def prepare(
    opened: OpenedModel, config: AudioConfig, shards: dict[str, str], output: Path, world: World,
    max_bad: int = 100,
) -> list[FeatureStore]:  # fmt: skip
    """The features of the splits, `shards` by name; collective. What is there is kept, and an
    interrupted call goes on. Raises ConfigError, ValueError."""
    features = BlockFeatures(opened, config.block, world.device)
    if config.version == 2:
        mfcc_targets.check_stride(features.config.total_stride)
    if config.version == 1:
        check_pca(config.pca_dim, features.dim)
    indices = {name: open_index(folders, _option(name)) for name, folders in shards.items()}
    folder = AudioFolder(path=output, config=config, features=features, source=str(opened.source))
    data = dataclasses.replace(data_config(opened), max_bad_samples=max_bad)
    work = Preparation(folder=folder, indices=indices, data=data, world=world)
    with contextlib.ExitStack() as stack:
        agreed(lambda: _begin(work, stack), world)
        fitted = folder.fitted(indices.get(TRAIN)) or _fitted(work)
        stores = [_features(work, name, fitted) for name in indices]
        work.say(f"features in {output}: {', '.join(indices)}")
        return stores


def _begin(work: Preparation, stack: contextlib.ExitStack) -> None:
    """All that can be said before the first utterance is heard."""
    folder = work.folder
    stack.enter_context(_held(folder.path))
    folder.check()
    fitted = folder.fitted(work.indices.get(TRAIN))
    for name, index in work.indices.items():
        check_once(index.keys(), f"{_option(name)} {index.folders}: ")
        index.check_shard_sizes()
    needed = folder.needed_bytes(work.indices, fitted is not None)
    work.say(f"{folder.path} needs {folder.check_disk(needed)}")


def _fitted(work: Preparation) -> Fitted:
    """Fit on the training set; the first process does, the others wait."""
    config, world, folder = work.folder.config, work.world, work.folder
    index = work.indices[TRAIN]
    if config.version == 1:
        store = _frames(work, TRAIN)
    else:
        writer = one_after_the_other(world, lambda: folder.mfccs(index))
        collate = _collate(work, mfccs=True)
        store = _heard(work, TRAIN, writer, collate, lambda mfccs: mfccs, "MFCCs")
    made_by = {"data": index.fingerprint, **folder.made_by}
    many = config.num_clusters if config.version == 1 else config.num_targets
    work.say(f"looking for {many} clusters in {TRAIN} (one process, one thread)")
    agreed(lambda: fit(store, config, made_by).save(folder.path), world)
    found = Fitted.load(folder.path)
    assert found is not None
    work.say("; ".join(found.about["notes"]))
    if world.is_main:
        shutil.rmtree(folder.path / MFCC, ignore_errors=True)
    return found


def _features(work: Preparation, name: str, fitted: Fitted) -> FeatureStore:
    """The finished store of a split."""
    folder, world = work.folder, work.world
    writer = one_after_the_other(
        world, lambda: folder.features_of(work.indices[name], name, fitted)
    )
    if writer.complete:
        store = FeatureStore(writer.folder)
    elif folder.config.version == 1:
        store = _pooled(work, name, writer, fitted.pooled)
    else:
        collate = _collate(work, clusters=fitted)
        store = _heard(work, name, writer, collate, folder.features, "hearing")
    if world.is_main:
        _tell(work, name, store)
    if folder.config.segments:
        _segments(work, name, fitted)
    return store


def _segments(work: Preparation, name: str, fitted: Fitted) -> None:
    """Version 1: the segments of a split before they are paired."""
    folder = work.folder
    writer = one_after_the_other(
        work.world, lambda: folder.segments(work.indices[name], name, fitted)
    )
    if not writer.complete:
        _pooled(work, name, writer, fitted.segments)
    work.say(f"{name}: segments before they are paired are in {writer.folder}")


def _frames(work: Preparation, name: str) -> FeatureStore:
    writer = one_after_the_other(work.world, lambda: work.folder.frames(work.indices[name], name))
    return _heard(work, name, writer, _collate(work), work.folder.features, "hearing")


def _collate(
    work: Preparation, *, mfccs: bool = False, clusters: Fitted | None = None
) -> SpokenCollate:
    return SpokenCollate(
        silence=Silence(work.folder.config.silence),
        config=work.folder.features.config,
        mfccs=mfccs,
        clusters=None if clusters is None else clusters.clusters(),
    )


def _heard(
    work: Preparation,
    name: str,
    writer: FeatureStoreWriter,
    collate: SpokenCollate,
    features: Callable[[Any], Any],
    what: str,
) -> FeatureStore:
    """A store of what `features` makes of each utterance, every process its share of the parts."""
    index = work.indices[name]
    speech = Speech(index=index, data=work.data, collate=collate)
    own = _own(work.world, writer, speech.num_parts)
    num_samples = sum(int(index.num_samples[i]) for k in own for i in speech.rows(k))
    with _bar(f"{what} {name}", num_samples / SAMPLE_RATE, work.world, " × real time") as told:
        speech.write(writer, own, features, told)
    return _finished(work, writer, speech.num_parts, name)


def _pooled(
    work: Preparation, name: str, writer: FeatureStoreWriter, pool: Callable[..., Frames]
) -> FeatureStore:
    """Version 1: what `pool` makes of the frames (and a device)."""
    frames, stage = _frames(work, name), STAGES[writer.about["meta"]["made_by"]["stage"]]
    num_parts = -(-len(frames) // PART)
    own = _own(work.world, writer, num_parts)
    with _bar(f"pooling {name} to {stage}", len(own) * PART, work.world, " utterances/s") as told:
        for number in own:
            with writer.part(number) as part:
                for i in range(number * PART, min(len(frames), (number + 1) * PART)):
                    key = frames.keys[i]
                    pooled = pool(frames.frames(i), work.world.device)
                    if len(pooled) < MIN_FRAMES:
                        reason = f"has {len(pooled)} {stage}"
                        part.skip(key, f"{reason}: at least {MIN_FRAMES} are needed")
                    else:
                        part.add(key, pooled, label=frames.labels.get(key))
                    told(1)
    return _finished(work, writer, num_parts, name)


def _own(world: World, writer: FeatureStoreWriter, num_parts: int) -> list[int]:
    """The missing parts that are this process's. Parts with damage are tried again: shards may have
    been mended since."""
    missing = writer.missing(num_parts, again=is_damaged) if world.is_main else []
    return list(world.gather(missing)[0][world.rank :: world.size])


def _finished(
    work: Preparation, writer: FeatureStoreWriter, num_parts: int, name: str
) -> FeatureStore:
    """The store of all parts. Raises ConfigError where too much was damaged, or nothing is left."""
    index = work.indices[name]

    def finish() -> None:
        count, skipped = writer.summary(num_parts)
        check_damage([r for r in skipped if is_damaged(r)], work.data.max_bad_samples)
        if not count:
            raise ConfigError(
                f"no utterance of {_option(name)} {index.folders} is left: "
                f"{most_frequent(skipped) or 'it holds none'}"
            )
        writer.finish(num_parts)

    work.world.barrier()
    agreed(finish, work.world)
    return FeatureStore(writer.folder)


@contextlib.contextmanager
def _bar(what: str, total: float, world: World, unit: str) -> Iterator[Callable[[float], None]]:
    """A progress bar over this process's share; called with what was done of it."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=console, transient=True, disable=not world.is_main) as bar:
        task = bar.add_task(what, total=total, speed="")

        def told(amount: float) -> None:
            bar.advance(task, amount)
            done, elapsed = bar.tasks[0].completed, bar.tasks[0].elapsed or 0.0
            bar.update(task, speed=f"{world.size * done / max(elapsed, 1e-3):.0f}{unit}")

        yield told


def _tell(work: Preparation, name: str, store: FeatureStore) -> None:
    """What became of a split: amounts, rates, what was left out."""
    folder, index = work.folder, work.indices[name]
    hours = float(np.sum(index.num_samples, dtype=np.int64)) / SAMPLE_RATE / 3600
    base = folder.features.rate_hz
    text = f"{name}: {len(store)} of {len(index)} utterances; "
    places = [store.folder]
    if folder.config.version == 1 and (folder.path / FRAMES / name / "store.json").is_file():
        frames = FeatureStore(folder.path / FRAMES / name)
        places.append(frames.folder)
        seconds = int(frames.num_frames.sum()) / base
        rate = int(store.num_frames.sum()) / seconds
        text += f"speech {seconds / 3600:.2f} of {hours:.2f} h; {base:g} Hz to {rate:.1f} Hz"
        if rate > TOO_FAST_HZ:
            text += (
                f" (over {TOO_FAST_HZ}: trainings failed at 25, fewer --clusters make it slower)"
            )
    elif folder.config.version == 2:
        seconds = int(store.num_frames.sum()) / base
        text += f"speech {seconds / 3600:.2f} of {hours:.2f} h; {base:g} Hz"
    size = sum(f.stat().st_size for place in places for f in place.iterdir()) / 1e6
    work.say(f"{text}; {size:,.1f} MB")
    skipped = [r for place in places for r in read_jsonl(place / "skipped.jsonl")]
    if skipped:
        work.say(f"{name}: {len(skipped)} left out, {most_frequent(skipped)} (see skipped.jsonl)")


@contextlib.contextmanager
def _held(output: Path) -> Iterator[None]:
    """The folder for this command alone."""
    try:
        with locked(made(output, "--output")):
            yield
    except InUseError as error:
        raise ConfigError(str(error).replace("run_dir", "--output")) from None


def _option(name: str) -> str:
    return "--data" if name == TRAIN else f"--valid {name}"
