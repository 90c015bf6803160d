"""What is fitted on the training set and applied to every set: clusters and PCA of version 1,
clusters of MFCCs of version 2. It stays in the output, so that another set can be added later."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from w2v2dist.config import ConfigError
from w2v2dist.data.index_writer import atomic
from w2v2dist.unsupervised.audio_config import AudioConfig
from w2v2dist.unsupervised.clustering import (
    CPU,
    Clusters,
    Projection,
    fit_clusters,
    fit_projection,
    sample,
)
from w2v2dist.unsupervised.feature_store import FeatureStore, Frames
from w2v2dist.unsupervised.segments import pair_means, run_means, run_starts

NAME = "fitted.safetensors"
MEASURED = 64  # utterances that the rate of segments is measured on


@dataclass(frozen=True, slots=True)
class Fitted:
    """Arrays by name, and what they were fitted on ("made_by", and for people "notes")."""

    arrays: dict[str, NDArray[np.float32]]
    about: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """What tells it from others."""
        digest = hashlib.sha256(json.dumps(self.about["made_by"], sort_keys=True).encode())
        for name, values in sorted(self.arrays.items()):
            digest.update(name.encode() + values.tobytes())
        return digest.hexdigest()[:16]

    def clusters(self, device: torch.device = CPU) -> Clusters:
        """Of frames (version 1) or of MFCCs (version 2)."""
        return Clusters(self.arrays["centroids"], device)

    def segments(self, frames: Frames, device: torch.device = CPU) -> Frames:
        """Version 1: frames (T, C) to segments (R, D)."""
        project = Projection(self.arrays["pca_matrix"], self.arrays["pca_offset"])
        return run_means(project(frames), self.clusters(device).assign(frames))

    def pooled(self, frames: Frames, device: torch.device = CPU) -> Frames:
        """Version 1: frames (T, C) to pairs of segments (P, D)."""
        return pair_means(self.segments(frames, device))

    def save(self, folder: Path) -> None:
        """Write it under its name, whole or not at all."""
        metadata = {"about": json.dumps(self.about, sort_keys=True)}
        with atomic(folder / NAME) as file:
            file.write(save(self.arrays, metadata))

    @classmethod
    def load(cls, folder: Path) -> "Fitted | None":
        """The folder's; None where there is none. Raises ConfigError where it is damaged."""
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads(file.metadata()["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}): remove {folder} and make all again, or copy it again"
            ) from None
        fitted = cls(arrays, about)
        if fitted.fingerprint != about["fingerprint"]:
            raise ConfigError(f"{path} was changed after it was made: copy it again, or remove "
                              f"{folder} and make all again")  # fmt: skip
        return fitted


def fit(store: FeatureStore, config: AudioConfig, made_by: dict[str, Any]) -> Fitted:
    """Fit on the frames of the training set: the features of a block, or MFCCs. Raises ConfigError
    where there are too few."""
    frames, num_utterances = sample(store, config.max_frames, config.seed)
    total = int(store.num_frames.sum())
    notes = [f"clusters of {len(frames):,} of {total:,} frames"]
    if num_utterances < len(store):
        notes[0] += (
            f" ({num_utterances:,} of {len(store):,} utterances, drawn by the seed: more frames "
            f"than --max-frames {config.max_frames:,})"
        )
    if config.version == 2:
        arrays = {"centroids": fit_clusters(frames, config.num_targets, config.seed, "mfcc")}
    else:
        projection = fit_projection(_blocks(store), config.pca_dim)
        arrays = {
            "centroids": fit_clusters(frames, config.num_clusters, config.seed),
            "pca_matrix": projection.matrix,
            "pca_offset": projection.offset,
        }
        rate = store.meta["rate_hz"] * _segments_a_frame(store, Clusters(arrays["centroids"]))
        notes.append(f"{rate:.1f} segments a second")
    fitted = Fitted(arrays, {"made_by": made_by, "notes": notes})
    fitted.about["fingerprint"] = fitted.fingerprint
    return fitted


def _blocks(store: FeatureStore) -> Iterator[Frames]:
    return (store.frames(i) for i in range(len(store)))


def _segments_a_frame(store: FeatureStore, clusters: Clusters) -> float:
    measured = range(min(MEASURED, len(store)))
    runs = sum(len(run_starts(clusters.assign(store.frames(i)))) for i in measured)
    return runs / int(store.num_frames[: len(measured)].sum())
