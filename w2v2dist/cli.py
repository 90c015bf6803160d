"""The console script: which commands there are. A command's module has `add_arguments(parser)`, and
`run(args)`, whose docstring is the help, with an example; it returns the exit status (None: 0)."""

import argparse
import importlib
import inspect
import os
import sys
from types import ModuleType

from w2v2dist import __version__

# group -> command -> its module, and its line in the overview
COMMANDS = {
    "prepare": {
        "alphabet": ("reporting.alphabet", "the symbols of texts, and the alphabet that they need"),
        "import": (
            "interop.import_",
            "make a run folder of another library's model",
        ),
        "paper": ("reporting.paper", "list how a configuration deviates from the paper, and why"),
    },
    "lm": {
        "lm text": ("lm.text", "texts, vocabulary and lexicon for a language model"),
        "lm ngram": ("lm.ngram", "an n-gram of a text: Kneser-Ney, as KenLM estimates it"),
    },
    "train": {"train": ("tasks.train", "train one rank; the same command resumes the run")},
    "look": {
        "status": ("reporting.status", "state, progress, speed and lost time of a run"),
        "table": ("reporting.table", "the papers' tables with a recipe's results beside them"),
        "report": ("reporting.report", "report.html with the curves and events of runs"),
        "batches": ("reporting.batches", "what a step trains on: utterances, crops, masks"),
        "codes": ("reporting.codes", "which codes stand for which phones: P(phone | code)"),
    },
    "unsupervised": {
        "unsupervised audio": ("unsupervised.audio", "features of recordings, for wav2vec-U"),
        "unsupervised text": ("unsupervised.text", "a text of phones, for training without labels"),
        "unsupervised synthetic": ("unsupervised.synthetic", "made languages to try a training on"),
        "unsupervised select": ("unsupervised.select", "the best run of a sweep, without labels"),
        "unsupervised decode": ("unsupervised.decode", "phones that a trained generator reads"),
        "unsupervised label": ("unsupervised.label", "what was read as transcripts of shards"),
    },
    "use": {
        "transcribe": ("decode.transcribe", "text of recordings, by any fine-tuned model"),
        "evaluate": ("decode.evaluate", "error rates of any fine-tuned model on shards"),
        "align": ("decode.align", "times of words in transcribed shards; cuts long recordings"),
        "export": ("interop.export", "the model for fairseq, Hugging Face or torchaudio"),
    },
}
# Groups that the overview has in one line: `w2v2dist unsupervised --help` lists their commands
FAMILIES = {"lm": "for language models", "unsupervised": "without labels"}
EXIT_BROKEN_PIPE = 128 + 13  # as a shell reports a program that SIGPIPE ended
MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 75 saved on a signal (run again), 2 a user's mistake, 1 a failure."""
    command, args = parse(sys.argv[1:] if argv is None else argv)
    try:
        status = command.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # such as `| head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return EXIT_BROKEN_PIPE
    except _mistakes() as error:
        print(f"w2v2dist: {error}", file=sys.stderr)
        return 2


def _mistakes() -> tuple[type[Exception], ...]:
    """What a person can mend. A command that did not import torch does not wait for it here."""
    checkpoint = sys.modules.get("w2v2dist.checkpoint")
    return ValueError, OSError, *([checkpoint.CheckpointError] if checkpoint else [])


def parse(argv: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The module of the command, the only one that is imported, and the arguments for its `run`."""
    if argv and argv[0].startswith("--local_rank="):  # of DeepSpeed, as LOCAL_RANK
        argv = argv[1:]
    family = argv[0] if argv and argv[0] in FAMILIES else None  # `unsupervised --help`
    groups = [family] if family else [*COMMANDS]
    lines = [line for group in groups for line in _lines(group, family)]
    overview = argparse.ArgumentParser(
        prog="w2v2dist",
        usage="w2v2dist COMMAND ...    (w2v2dist COMMAND --help: how, and an example)",
        description="\n".join(lines),
        epilog="and: python shards/build.py (recordings to shards), launch/submit.py (jobs)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    overview.add_argument("--version", action="version", version=__version__)
    overview.add_argument("command", choices=MODULES, metavar="COMMAND", help=argparse.SUPPRESS)
    words = 2 if " ".join(argv[:2]) in MODULES else 1  # such as `lm text`
    shown = argv[1:2] if family and words == 1 and argv[1:2] in (["-h"], ["--help"]) else None
    name = overview.parse_args(shown or ([" ".join(argv[:words])] if argv else [])).command
    command = importlib.import_module(f"w2v2dist.{MODULES[name]}")
    description, _, example = (inspect.getdoc(command.run) or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=f"w2v2dist {name}",
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    # key=value may stand before or after the options
    return command, parser.parse_intermixed_args(argv[words:])


def _lines(group: str, family: str | None) -> list[str]:
    """The commands of a group, a line each; a family's in one, unless it was asked for."""
    commands = COMMANDS[group]
    if group in FAMILIES and group != family:
        names = ", ".join(name.removeprefix(f"{group} ") for name in commands)
        return [f"{group} {names}: {FAMILIES[group]}"]
    width = 14 if family else 9
    return [
        f"{group if name == next(iter(commands)) else '':<{width}}"
        f"{name.removeprefix(f'{group} '):<12}{summary}"
        for name, (_, summary) in commands.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
