"""The console script: w2v2dist train | batches | paper | evaluate | status | report | export |
import."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from w2v2dist import __version__
from w2v2dist.config import ConfigError, from_dict, merge, parse_overrides, read_yaml
from w2v2dist.runtime.preemption import EXIT_PREEMPTED, PreemptionFlag


def read_config(path: str, overrides: list[str]) -> Any:
    """The PretrainConfig or FinetuneConfig that a file's `task:` names. Raises ConfigError."""
    from w2v2dist.tasks.finetune import FinetuneConfig
    from w2v2dist.tasks.pretrain import PretrainConfig

    values = merge(read_yaml(path), parse_overrides(overrides))
    tasks: dict[str, type[Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
    task = values.get("task")
    if task not in tasks:
        raise ConfigError(f"{path}: task is {task!r} but must be one of {', '.join(tasks)}")
    return from_dict(tasks[task], values)


def train(config_path: str, overrides: list[str], flag: PreemptionFlag) -> str:
    """Run one rank of a training; returns "finished" or "preempted". `flag` then holds the agreed
    signal."""
    from w2v2dist.checkpoint import candidates
    from w2v2dist.runtime.distributed import World
    from w2v2dist.tasks.finetune import FinetuneTask
    from w2v2dist.tasks.pretrain import PretrainTask
    from w2v2dist.training.loop import fit

    config = read_config(config_path, overrides)
    world = World.from_environment(config.loop.timeout_s)
    task: PretrainTask | FinetuneTask
    if config.task == "pretrain":
        task = PretrainTask(config)
    else:  # a run that has saved needs its pre-trained model no more
        resumes = bool(candidates(Path(config.run_dir) / "checkpoints"))
        task = FinetuneTask(config, skip_pretrained=resumes)
    try:
        status = fit(task, world, flag)
    except ValueError:  # all ranks have it; a group left open can end a process with abort()
        world.close()
        raise
    world.close()
    return status


def print_batches(config_path: str, overrides: list[str], step: int, slot: int | None) -> None:
    """Print one JSON line a slot: the keys, crops and mask fractions of a step, from the index
    alone."""
    import numpy as np

    from w2v2dist.data.loader import Rows
    from w2v2dist.data.order import DataOrder
    from w2v2dist.tasks.finetune import FinetuneCollate
    from w2v2dist.tasks.pretrain import PretrainCollate
    from w2v2dist.training.alarms import read_rollbacks, seed_at
    from w2v2dist.training.loop import open_index
    from w2v2dist.training.run_folder import sample_record

    config = read_config(config_path, overrides)
    index = open_index(config.data.train, "data.train")
    crop = config.task == "pretrain"
    seed = seed_at(read_rollbacks(Path(config.run_dir)), config.seed, step)
    order = DataOrder(index, config.data, seed, crop)
    slots = range(config.data.virtual_world_size) if slot is None else [slot]
    if step < 1 or not all(0 <= s < config.data.virtual_world_size for s in slots):
        raise ConfigError(
            f"step is {step} and slot {slot} but steps count from 1 and slots from 0 to "
            f"{config.data.virtual_world_size - 1} (data.virtual_world_size - 1)"
        )
    collate = (
        PretrainCollate(config.model, seed, config.data.min_samples, True)
        if crop
        else FinetuneCollate(config.model, config.data.tokens, seed, True)
    )
    for s in slots:
        micro = order.micro_batch(step, s)
        # Masks depend on lengths alone: silence stands in for the audio
        rows = Rows(
            micro, position=list(range(len(micro.ids))), keys=[index.key(int(i)) for i in micro.ids]
        )
        rows.waveforms = [np.zeros(int(n), np.float32) for n in micro.num_samples]
        print(json.dumps(sample_record(collate.audio_batch(rows))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="w2v2dist", description="Pre-train and fine-tune wav2vec 2.0."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    p = add(
        "train",
        "Train one rank (any launcher that sets RANK and WORLD_SIZE); the same command resumes "
        "the run.",
        "torchrun --nproc-per-node 2 -m w2v2dist.cli train configs/tiny_pretrain.yaml "
        "data.train=shards/train",
    )
    _config_arguments(p)
    p = add(
        "batches",
        "Print the samples of a step (keys, crops, mask fractions) without reading audio.",
        "w2v2dist batches configs/tiny_pretrain.yaml data.train=demo/shards/train --step 7",
    )
    _config_arguments(p)
    p.add_argument("--step", type=int, required=True, help="update, 1 is the first")
    p.add_argument("--slot", type=int, help="one slot only (default: all)")
    p = add(
        "paper",
        "Compare a configuration with the paper and fairseq's released files: audio hours a step, "
        "a warning where the learning rate belongs to a much larger batch, every deviation.",
        "w2v2dist paper configs/base_ls960.yaml data.virtual_world_size=1",
    )
    _config_arguments(p)
    p.add_argument("--reference", help="for example base_ls960 (default: the most similar one)")
    p = add(
        "evaluate",
        "Transcribe shards with a fine-tuned run (greedy) and print its error rates.",
        "w2v2dist evaluate runs/base_10h --data shards/test-clean",
    )
    p.add_argument("run", help="run folder of a fine-tuning")
    p.add_argument("--data", help="folder of shards (default: the run's data.valid)")
    p.add_argument(
        "--checkpoint", choices=["best", "latest"], default="best", help="which one (default: best)"
    )
    p = add(
        "report",
        "Write report.html with the curves of one or more runs.",
        "w2v2dist report runs/base_ls960",
    )
    p.add_argument("runs", nargs="+", help="run folders")
    p.add_argument("--output", help="file (default: RUN/report.html of the first run)")
    p = add(
        "status",
        "Print state, progress, speed and lost time of a run that trains, ended or died.",
        "w2v2dist status runs/base_ls960",
    )
    p.add_argument("run", help="run folder")
    p = add(
        "export",
        "Write a run's model for another library; a run of any ZeRO stage, no GPU needed.",
        "w2v2dist export runs/base_10h --format huggingface --output exported/base_10h\n\n"
        "formats:\n"
        "  fairseq      PATH is a .pt file with fairseq's keys and configuration\n"
        "  huggingface  PATH is a folder for Wav2Vec2ForCTC (or Wav2Vec2ForPreTraining) and\n"
        "               Wav2Vec2Processor.from_pretrained\n"
        "  torchaudio   PATH is a state dict for torchaudio.models.wav2vec2_model, whose\n"
        "               arguments are in PATH.json; of a pre-training run the body alone",
    )
    p.add_argument("run", help="run folder, or one of its checkpoints/step_* folders")
    p.add_argument(
        "--format", required=True, choices=["fairseq", "huggingface", "torchaudio"], help="below"
    )
    p.add_argument("--output", required=True, metavar="PATH", help="what is written; must be new")
    p.add_argument(
        "--checkpoint", choices=["best", "latest"], help="which one (default: best, else latest)"
    )
    p = add(
        "import",
        "Make a run folder from a checkpoint of fairseq or Hugging Face, to be fine-tuned.",
        "w2v2dist import wav2vec_small.pt --output runs/imported_base\n"
        "  w2v2dist train configs/finetune/base_10h.yaml pretrained=runs/imported_base",
    )
    p.add_argument(
        "source", help=".pt of fairseq, or folder of Hugging Face (config.json, model.safetensors)"
    )
    p.add_argument("--output", required=True, metavar="DIR", help="run folder to make; must be new")
    p.add_argument(
        "--task",
        choices=["pretrain", "finetune"],
        default="pretrain",
        help="what the checkpoint has to be; finetune: a CTC model on letters or phones, which "
        "`w2v2dist evaluate` reads too (default: pretrain)",
    )
    p.add_argument(
        "--config", help="YAML file whose model: replaces the configuration in the checkpoint"
    )
    p.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read files that hold more than data. This runs code that came with the file: only "
        "for files from people you trust",
    )
    return parser


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example loop.max_steps=1000"
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 75 saved after a signal (run again to continue), 2 a mistake of the
    user, 1 another failure."""
    from w2v2dist.checkpoint import CheckpointError
    from w2v2dist.runtime.logging import console
    from w2v2dist.training.run_folder import InUseError

    args = _parse(argv)
    try:
        if args.command == "train":
            with PreemptionFlag().installed() as flag:
                return (
                    EXIT_PREEMPTED if train(args.config, args.overrides, flag) == "preempted" else 0
                )
        if args.command == "batches":
            print_batches(args.config, args.overrides, args.step, args.slot)
        elif args.command == "paper":
            from w2v2dist.reporting.paper import compare

            config = read_config(args.config, args.overrides)
            for line in compare(config, args.config, args.overrides, args.reference):
                console.print(line, markup=False)
        elif args.command == "evaluate":
            from w2v2dist.decode.evaluate import evaluate

            result = evaluate(args.run, args.data, args.checkpoint)
            console.print(
                f"WER {100 * result['wer']:.2f} %   letter errors {100 * result['cer']:.2f} %   "
                f"{result['num_utterances']} utterances, {result['seconds'] / 3600:.2f} h   "
                f"(see {args.run}/hypotheses.tsv)"
            )
        elif args.command == "report":
            from w2v2dist.reporting.report import write_report

            runs = [Path(run) for run in args.runs]
            console.print(
                f"wrote {write_report(runs, Path(args.output or runs[0] / 'report.html'))}"
            )
        elif args.command == "status":
            from w2v2dist.reporting.status import format_status, read_status

            print(format_status(read_status(args.run)))
        elif args.command == "export":
            from w2v2dist.interop.export import export_run

            source = export_run(args.run, args.format, args.output, args.checkpoint)
            console.print(f"wrote {args.output} from {source}")
        elif args.command == "import":
            from w2v2dist.interop.export import import_checkpoint

            normalize = import_checkpoint(
                args.source,
                args.output,
                task=args.task,
                config_path=args.config,
                trust_pickle=args.trust_pickle,
            )
            console.print(
                f"wrote {args.output}: fine-tune it with pretrained={args.output} "
                f"data.normalize={str(normalize).lower()}"
            )
    except (ValueError, CheckpointError, InUseError, OSError) as error:
        training_failed = args.command == "train" and isinstance(error, OSError)
        if training_failed and not isinstance(error, FileNotFoundError):
            raise  # not a mistake of the user: where it happened matters
        print(f"w2v2dist: {error}", file=sys.stderr)
        # What may have passed when the job runs again is no mistake of the user
        passing = isinstance(error, (CheckpointError, InUseError))
        return 1 if passing and args.command == "train" else 2
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """key=value may stand before or after the options."""
    args, rest = _parser().parse_known_args(argv)
    strangers = [r for r in rest if r.startswith("-") or "=" not in r]
    if strangers or (rest and not hasattr(args, "overrides")):
        _parser().error(f"unrecognized arguments: {' '.join(strangers or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


if __name__ == "__main__":
    sys.exit(main())
