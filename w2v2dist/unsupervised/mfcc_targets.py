"""Auxiliary targets of wav2vec-U 2.0 (section 3.3): clusters of MFCCs, one a frame of the model.
S samples, T frames of the model, M frames of 10 ms."""

import numpy as np
import torch
from numpy.typing import NDArray

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE, Waveform
from w2v2dist.unsupervised.clustering import Clusters
from w2v2dist.unsupervised.feature_store import Frames

DIM = 39
SHIFT = SAMPLE_RATE // 100  # samples of Kaldi's frame shift
LEAST = SAMPLE_RATE // 40  # samples of its window
NONE = -1  # a target that is not counted


def mfcc(waveform: Waveform) -> Frames:
    """Kaldi's MFCCs (M, 39) of (S,): 13 with C0 instead of the energy, their first and second
    differences, every 10 ms (HuBERT's); of no frames where there are less than 25 ms."""
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

    if len(waveform) < LEAST:
        return np.zeros((0, DIM), np.float32)
    wave = torch.from_numpy(np.ascontiguousarray(waveform))[None]
    base = kaldi.mfcc(wave, sample_frequency=SAMPLE_RATE, use_energy=False).T  # (13, M)
    first = compute_deltas(base)
    out: Frames = torch.cat([base, first, compute_deltas(first)]).T.contiguous().numpy()
    return out


def check_stride(stride: int) -> None:
    """Raise ConfigError where targets cannot be given at a model's frames, `stride` samples each"""
    if stride % SHIFT:
        raise ConfigError(
            f"the model's frames are {1000 * stride / SAMPLE_RATE:g} ms apart, but targets are "
            "found every 10 ms and must fall on them: use version 1"
        )


def targets(
    waveform: Waveform, clusters: Clusters, num_frames: int, stride: int
) -> NDArray[np.int64]:
    """The clusters (T,) of every `stride` samples of (S,), for a model that has `num_frames` frames
    there; -1 past the last MFCC."""
    found = clusters.assign(mfcc(waveform))[:: stride // SHIFT][:num_frames]
    return np.concatenate([found, np.full(num_frames - len(found), NONE)])
