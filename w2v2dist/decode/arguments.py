"""How to decode, on the command line of every command that does."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError
from w2v2dist.decode.beam_config import WEIGHTS, BeamConfig
from w2v2dist.decode.decoders import DecodingConfig
from w2v2dist.decode.language_models import LM
from w2v2dist.decode.tune import NUM_TRIALS, read_weights

# What the paper tuned with, and about what it found: weights of log10, and of natural logarithms
NGRAM = {"beam_size": 500, "lm_weight": 2.0}
TRANSFORMER = {"beam_size": 50, "lm_weight": 0.9}


def decoding_arguments(parser: argparse.ArgumentParser, *, num_best: bool = True) -> None:
    """How to decode, for `decoding_from`; with `num_best`, how many readings to keep."""
    parser.set_defaults(nbest=1)
    group = parser.add_argument_group("decoding")
    add = group.add_argument
    add(
        "--decoder",
        choices=["greedy", "beam", "rescore"],
        help="default: beam with --lm or --lexicon, rescore with --rescore-lm, else greedy",
    )
    add("--lm", help=f"language model in the search: {LM}")
    add(
        "--lexicon",
        metavar="FILE",
        help="words and their spelling (default: those of --lm); none: tokens, not words",
    )
    add("--rescore-lm", metavar="LM", help="what reads the best of the search once more")
    add("--weights", type=Path, metavar="FILE", help="weights.json that --tune wrote")
    add(
        "--lm-weight",
        type=float,
        help="default 2 (an n-gram's log10) or 0.9 (a Transformer's nats)",
    )
    add("--word-score", type=float, help="added for each word (default 0)")
    add("--rescore-weight", type=float, help="default 0.5")
    add("--beam-size", type=int, help="default 500 with an n-gram, 50 with a Transformer")
    add("--beam-size-token", type=int, help="most probable tokens of a frame (default 32)")
    add("--beam-threshold", type=float, help="worse hypotheses are dropped (default 50)")
    if num_best:
        add("--nbest", type=int, help="readings of an utterance to keep (default 1)")
    add("--workers", type=int, default=0, help="processes of a search (default: all cores)")


def decoding_from(args: argparse.Namespace) -> DecodingConfig:
    """The settings that the arguments of `decoding_arguments` make. Raises ConfigError."""
    searches = "beam" if args.lm or args.lexicon else "greedy"
    decoder: Any = args.decoder or ("rescore" if args.rescore_lm else searches)
    names = ("beam_size", "beam_size_token", "beam_threshold", *WEIGHTS)
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if decoder == "greedy" and (given or args.weights):
        named = ", ".join(
            f"--{name.replace('_', '-')}" for name in [*given, *["weights"][: bool(args.weights)]]
        )
        raise ConfigError(
            f"{named} is of a search, but nothing is searched: name a language model with --lm, or "
            "--decoder beam"
        )
    usual: dict[str, Any] = TRANSFORMER if _is_neural(args.lm) else NGRAM
    beam = BeamConfig(**usual)
    if args.weights:
        beam = read_weights(args.weights, beam)
    return DecodingConfig(
        decoder=decoder,
        lm=args.lm,
        lexicon=args.lexicon,
        beam=dataclasses.replace(beam, **given),
        num_best=args.nbest,
        rescore_lm=args.rescore_lm,
        num_workers=args.workers,
        trust_pickle=args.trust_pickle,
    )


def tuning_arguments(add: Callable[..., object], metavar: str, text: str) -> None:
    """--tune, with this help, and --trials, for `num_trials`."""
    add("--tune", metavar=metavar, help=text)
    add("--trials", type=int, metavar="N", help=f"of --tune (default {NUM_TRIALS})")


def num_trials(args: argparse.Namespace) -> int:
    """How many trials the arguments of `tuning_arguments` ask for. Raises ConfigError."""
    if args.trials is None:
        return NUM_TRIALS
    if args.tune is None:
        raise ConfigError(f"--trials {args.trials} is of --tune, which is not there: add it")
    if args.trials < 1:
        raise ConfigError(f"--trials is {args.trials} but must be at least 1")
    return int(args.trials)


def _is_neural(lm: str | None) -> bool:
    return lm is not None and (Path(lm).is_dir() or lm.endswith((".pt", ".pth")))
