"""Features of a frozen model: the output of one Transformer block for each utterance, heard alone,
after its silence was cut out. S samples, T frames, C channels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2v2dist.config import ConfigError, to_dict
from w2v2dist.data.audio import SAMPLE_RATE, Waveform
from w2v2dist.data.batch import Batch, Rows, core
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.loader import MicroBatches, iterate
from w2v2dist.decode.chunks import heard
from w2v2dist.decode.emissions import alone, digest_of
from w2v2dist.interop.open import OpenedModel
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.training.bad_samples import most_frequent
from w2v2dist.unsupervised import mfcc_targets
from w2v2dist.unsupervised.clustering import Clusters
from w2v2dist.unsupervised.feature_store import Frames
from w2v2dist.unsupervised.silence import Silence
from w2v2dist.unsupervised.store_writer import PART, FeatureStoreWriter, Label

MIN_FRAMES = 3  # of an utterance: shorter ones are left out (fairseq's)
LABELS = ("text", "phones")  # that shards may have


class BlockFeatures:
    """The output of Transformer block `block` (1: the first), without the norm after the last one.
    Raises ConfigError where the model has no such block, or its files do not say whether its audio
    is normalised."""

    def __init__(self, opened: OpenedModel, block: int, device: torch.device) -> None:
        config = opened.encoder.config
        if not 1 <= block <= config.num_layers:
            raise ConfigError(
                f"--block is {block}, but {opened.source} has the blocks 1 to {config.num_layers}: "
                "name one of them (of LARGE the paper takes 15; the first and the last are poor)"
            )
        if opened.normalize is None:
            raise ConfigError(
                f"{opened.source}: whether its audio is normalised is not known "
                f"({'; '.join(opened.notes) or 'no file says'}): import it with --config, which "
                "can say it"
            )
        self.config: Wav2Vec2Config = config
        self.block, self.normalized = block, opened.normalize
        # what is after the block takes no part
        said = [to_dict(config), opened.normalize]
        self.fingerprint = digest_of(said, opened.encoder)
        self._encoder, self._device = opened.encoder.to(device).eval(), device
        self.dim, self.rate_hz = config.embed_dim, SAMPLE_RATE / config.total_stride

    @torch.no_grad()
    def __call__(self, waveform: Waveform) -> Frames:
        """(T, C) of (S,), of no frames where it is shorter than one. Over 60 s it is heard in
        overlapping pieces, as `w2v2dist evaluate` does."""
        found = [np.zeros((0, self.dim), np.float32)]
        for part, kept in heard(waveform, self.config, self.normalized, self._device):
            out = self._encoder(part, block=self.block).features[0, kept]
            found.append(out.float().cpu().numpy())
        return np.concatenate(found)


@dataclass(kw_only=True, slots=True)
class SpokenBatch(Batch):
    """What is said in an utterance; no key where it cannot be used."""

    key: str | None
    heard: Tensor  # speech (S,), or its MFCCs (M, 39)
    targets: Tensor | None  # (T,) int64
    label: Label


@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenCollate:
    """An utterance without its silence, as it is or as MFCCs, and its targets where there are
    `clusters` of them; runs in a worker."""

    silence: Silence
    config: Wav2Vec2Config  # of the model
    mfccs: bool = False
    clusters: Clusters | None = None

    def __call__(self, rows: Rows | None) -> SpokenBatch:
        assert rows is not None, "there are no empty slots"
        about = core(rows, float(len(rows.keys)))
        if not rows.keys:
            return SpokenBatch(**about, key=None, heard=torch.zeros(0), targets=None, label={})
        speech = self.silence.removed(rows.waveforms[0])
        num_frames = self.config.num_frames(len(speech))
        targets = None
        if self.clusters is not None:
            stride = self.config.total_stride
            targets = torch.from_numpy(
                mfcc_targets.targets(speech, self.clusters, num_frames, stride)
            )
        label = rows.labels[0]
        return SpokenBatch(
            **about,
            key=rows.keys[0],
            heard=torch.from_numpy(mfcc_targets.mfcc(speech) if self.mfccs else speech),
            targets=targets,
            label={k: v for k in LABELS if isinstance(v := label.get(k), str) and v},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Speech:
    """The utterances of shards, in parts."""

    index: ShardIndex
    data: DataConfig
    collate: SpokenCollate

    @property
    def num_parts(self) -> int:
        return -(-len(self.index) // PART)

    def rows(self, part: int) -> range:
        """The utterances of a part, by their places in the index."""
        return range(part * PART, min(len(self.index), (part + 1) * PART))

    def write(
        self,
        writer: FeatureStoreWriter,
        numbers: list[int],
        features: Callable[[Waveform], Frames],
        told: Callable[[float], None],
    ) -> None:
        """These parts of a store, of what `features` makes of each utterance; `told` hears the
        seconds that are done. Raises ConfigError where more utterances than data.max_bad_samples
        are damaged."""
        rows = (i for k in numbers for i in self.rows(k))
        config = replace(self.data, normalize=False)  # where it is heard
        dataset = MicroBatches(self.index, config, self.collate, with_labels=True)
        batches = iterate(
            dataset, alone(self.index, rows), num_workers=config.num_workers, prefetch=4
        )
        bad: list[dict[str, Any]] = []
        try:
            for number, group in groupby(batches, lambda batch: int(batch.slot) // PART):
                with writer.part(number) as part:
                    for batch in group:
                        _add(part, batch, features)
                        told(int(self.index.num_samples[batch.slot]) / SAMPLE_RATE)
                    bad += [r for r in part.skipped if is_damaged(r)]
                check_damage(bad, config.max_bad_samples)
        finally:
            batches.close()


def _add(part: Any, batch: SpokenBatch, features: Callable[[Waveform], Frames]) -> None:
    """An utterance to a part, or why it is left out."""
    for record in batch.bad:
        part.skip(**{**record, "damaged": not str(record["reason"]).startswith("is silent")})
    if batch.key is None:
        return
    frames = features(batch.heard.numpy())
    if len(frames) < MIN_FRAMES:
        what = "is silence alone" if not len(batch.heard) else f"has {len(frames)} frames of speech"
        part.skip(batch.key, f"{what}: at least {MIN_FRAMES} frames are needed")
    elif not np.isfinite(frames.astype(part.dtype)).all():
        reason = "the model's output is not finite (NaN or infinite)"
        part.skip(batch.key, reason, damaged=True)
    else:
        targets = None if batch.targets is None else batch.targets.numpy()
        part.add(batch.key, frames, targets, batch.label)


def is_damaged(record: dict[str, Any]) -> bool:
    """Whether a skipped utterance could not be read or heard; else it has too little speech."""
    return bool(record.get("damaged"))


def check_damage(bad: list[dict[str, Any]], limit: int) -> None:
    """Raise ConfigError where more than `limit` utterances are damaged."""
    if len(bad) > limit:
        raise ConfigError(
            f"{len(bad)} utterances could not be used, more than --max-bad {limit}: "
            f"{most_frequent(bad)}; run shards/verify.py, copy or build the shards again, or raise "
            "the limit"
        )
