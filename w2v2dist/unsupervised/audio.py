"""`w2v2dist unsupervised audio`: from recordings to the features that wav2vec-U trains on."""

import argparse
import signal
import sys
from pathlib import Path

from w2v2dist.config import ConfigError
from w2v2dist.interop.open import model_arguments, opened_from
from w2v2dist.runtime.distributed import World
from w2v2dist.unsupervised.audio_config import AudioConfig, splits
from w2v2dist.unsupervised.audio_stages import prepare
from w2v2dist.unsupervised.silence import DETECTORS

DAY_S = 86_400  # processes wait for each other: one of them finds the clusters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised audio` takes."""
    defaults = AudioConfig()
    model_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="SHARDS", help="training set: clusters and PCA are fitted on it alone")
    valid = "another set, with what was fitted on the training set; may be given again"
    add("--valid", metavar="[NAME=]SHARDS", action="append", default=[], help=valid)
    add("--output", required=True, type=Path, metavar="DIR", help="where the features go")
    add("--version", type=int, choices=(1, 2), default=defaults.version,
        help="1: segments of frames after PCA; 2 (default): frames, with targets")  # fmt: skip
    block = f"Transformer block whose output is taken, 1 the first (default: {defaults.block})"
    add("--block", type=int, metavar="N", default=defaults.block, help=block)
    silence = "what finds silence, which is cut out (default: webrtc; rvad needs rVADfast)"
    add("--silence", choices=DETECTORS, default=defaults.silence, help=silence)
    numbers = {
        "--clusters": (defaults.num_clusters, "version 1: clusters of frames"),
        "--pca": (defaults.pca_dim, "version 1: channels after PCA"),
        "--targets": (defaults.num_targets, "version 2: clusters of MFCCs"),
        "--max-frames": (defaults.max_frames, "frames that clusters are found in, in memory"),
        "--seed": (defaults.seed, "of the clusters"),
        "--max-bad": (100, "damaged utterances of a set that are left out; more are an error"),
    }
    for name, (value, what) in numbers.items():
        add(name, type=int, default=value, metavar="N", help=f"{what} (default: {value:,})")
    add("--dtype", choices=("float16", "float32"), default=defaults.dtype, help="of what is kept")
    segments = "version 1: also keep segments before they are paired, for a search with an n-gram"
    add("--segments", action="store_true", help=segments)


def run(args: argparse.Namespace) -> None:
    """Make the features that wav2vec-U trains on: silence is cut out, a frozen model hears each
    utterance, and the output of one of its blocks is kept, of version 1 as segments (k-means, PCA,
    pooling), of version 2 with targets (clusters of MFCCs). Clusters are those of the training set
    for every set. The same command goes on after an interruption; with another --valid it adds a
    set. Transcripts that the shards have are kept beside the features, for watching alone.

    example:
      w2v2dist unsupervised audio runs/large --data data/ls100 --valid data/dev --output features
      w2v2dist unsupervised audio runs/large --valid data/test_clean --output features
      torchrun --nproc-per-node 8 -m w2v2dist.cli unsupervised audio runs/large --version 1 \\
        --data data/ls100 --output features/v1
    """
    shards = splits(args.data, args.valid)
    if not shards:
        raise ConfigError("there are no shards: name the training set with --data")
    if args.max_bad < 0:
        raise ConfigError(f"--max-bad is {args.max_bad} but must not be negative")
    config = AudioConfig(
        version=args.version,
        block=args.block,
        silence=args.silence,
        num_clusters=args.clusters,
        pca_dim=args.pca,
        num_targets=args.targets,
        max_frames=args.max_frames,
        seed=args.seed,
        dtype=args.dtype,
        segments=args.segments,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is half written goes
    world = World.of_command(DAY_S)
    try:
        prepare(opened_from(args), config, shards, args.output, world, args.max_bad)
    finally:
        world.close()
