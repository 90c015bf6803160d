"""`w2v2dist train`: one rank of the training that a configuration's `task:` names."""

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v2dist.config import (
    ConfigError,
    expand_paths,
    from_dict,
    merge,
    parse_overrides,
    read_yaml,
)
from w2v2dist.runtime.preemption import EXIT_PREEMPTED, PreemptionFlag

if TYPE_CHECKING:
    from w2v2dist.data.source import SpeechSource
    from w2v2dist.data.text_source import TextSource
    from w2v2dist.training.loop import Outcome
    from w2v2dist.unsupervised.gan_source import GanSource

# What trains is imported late: a signal during the seconds that this takes must not be lost


def read_config(path: str, overrides: list[str]) -> Any:
    """The configuration of the task that a file's `task:` names. Raises ConfigError."""
    from w2v2dist.tasks import finetune, language_model, pretrain
    from w2v2dist.unsupervised.config import UnsupervisedConfig

    written = read_yaml(path)
    named = [text for text in overrides if text.startswith("task=")]
    tasks: dict[Any, type[Any]] = {
        "pretrain": pretrain.PretrainConfig,
        "finetune": finetune.FinetuneConfig,
        "language_model": language_model.LanguageModelingConfig,
        "unsupervised": UnsupervisedConfig,
    }
    task = merge(written, parse_overrides(named)).get("task")
    if task is None and "grid" in written:
        raise ConfigError(
            f"{path} is a sweep, whose trainings are of {written.get('config')}: give that file, "
            "or start the sweep with `launch/submit.py --sweep`"
        )
    if task not in tasks:
        raise ConfigError(f"{path}: task is {task!r} but must be one of {', '.join(tasks)}")
    values = merge(written, parse_overrides(overrides, tasks[task]))
    return expand_paths(from_dict(tasks[task], values))


def open_source(config: Any) -> "SpeechSource | TextSource | GanSource":
    """The data of a configuration, without its model, to see what is drawn."""
    from w2v2dist.data.alphabet import alphabet
    from w2v2dist.data.text_source import TextSource
    from w2v2dist.tasks import finetune, language_model, pretrain, unsupervised

    if config.task == "pretrain":
        return pretrain.pretrain_source(config)
    if config.task == "unsupervised":
        return unsupervised.unsupervised_source(config)
    if config.task == "language_model":
        return TextSource(config.data, config.seed, language_model.encoded_texts(config))
    return finetune.finetune_source(config, alphabet("letters"))  # what is drawn depends on none


def train(config_path: str, overrides: list[str], flag: PreemptionFlag) -> "Outcome":
    """Run one rank of a training."""
    from w2v2dist.checkpoint import CheckpointError
    from w2v2dist.data.index_writer import check_place
    from w2v2dist.runtime.distributed import World
    from w2v2dist.tasks import finetune, language_model, pretrain, unsupervised
    from w2v2dist.tasks.alphabet import agreed_alphabet
    from w2v2dist.training.loop import fit
    from w2v2dist.training.run_folder import has_saved
    from w2v2dist.training.task import Task

    config = read_config(config_path, overrides)
    check_place(Path(config.run_dir), "run_dir")  # before the data are read
    world = World.from_environment(config.loop.timeout_s)
    # A run that has saved needs its pre-trained model no more
    resumes = has_saved(Path(config.run_dir))
    task: Task
    probe = None
    try:
        if config.task == "pretrain":
            if config.probe.every:
                from w2v2dist.tasks.probe import LettersProbe

                probe = LettersProbe(config.probe, config.data, config.model, world)
            task = pretrain.PretrainTask(config)
        elif config.task == "language_model":
            task = language_model.LanguageModelTask(
                config, language_model.agreed_texts(config, world)
            )
        elif config.task == "unsupervised":
            source = unsupervised.unsupervised_source(config)
            task = unsupervised.UnsupervisedTask(config, source)
        else:
            tokens = agreed_alphabet(config, world)
            task = finetune.FinetuneTask(config, tokens, skip_pretrained=resumes)
        outcome = fit(config, task, world, flag, probe)
    except (ValueError, CheckpointError, OSError):
        # All ranks have it; a group left open can end a process with abort()
        world.close()
        raise
    world.close()
    return outcome


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG [key=value …], for `read_config`."""
    add, example = parser.add_argument, "for example loop.max_steps=1000"
    add("config", help="YAML file")
    add("overrides", nargs="*", metavar="key=value", help=example)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist train` takes."""
    config_arguments(parser)
    # The launcher of DeepSpeed passes it; LOCAL_RANK says the same
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Train one rank (any launcher that sets RANK and WORLD_SIZE); the same command resumes it. All
    tasks train so, `unsupervised` (wav2vec-U) in one process.

    example:
      torchrun --nproc-per-node 2 -m w2v2dist.cli train configs/tiny_pretrain.yaml \\
        data.train=demo/shards/unlabelled data.valid=demo/shards/valid
      w2v2dist train configs/unsupervised/v2.yaml data.train=features/train data.text=phones
    """
    from w2v2dist.checkpoint import CheckpointError
    from w2v2dist.training.lock import InUseError
    from w2v2dist.training.loop import Preempted

    try:
        with PreemptionFlag().installed() as flag:
            outcome = train(args.config, args.overrides, flag)
    except (CheckpointError, InUseError) as error:
        print(f"w2v2dist: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError:
        raise
    except OSError:
        traceback.print_exc()  # where it happened matters
        return 1
    return EXIT_PREEMPTED if isinstance(outcome, Preempted) else 0
