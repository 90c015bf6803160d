"""`w2v2dist transcribe`: text of recordings, by any CTC model."""

import argparse
import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE, TAKE_SOUND, BadSample
from w2v2dist.data.long_audio import open_audio
from w2v2dist.decode.arguments import decoding_arguments, decoding_from
from w2v2dist.decode.chunks import Sound, hear
from w2v2dist.decode.decoders import DecodingConfig, make_decoder
from w2v2dist.decode.formats import FORMATS, write
from w2v2dist.decode.greedy import Greedy
from w2v2dist.decode.readings import reading
from w2v2dist.decode.stretches import Decoder as RecordingDecoder
from w2v2dist.decode.stretches import InStretches
from w2v2dist.decode.words import Transcript, Word
from w2v2dist.interop.open import OpenedModel, model_arguments, opened_from
from w2v2dist.runtime.logging import console

SOUNDS = {f".{suffix}" for suffix in "flac wav mp3 ogg oga opus aif aiff au caf w64 sph".split()}
VIDEOS = {f".{suffix}" for suffix in "mp4 m4v mkv webm mov m4a avi aac wma wmv amr 3gp".split()}


def transcribe(
    opened: OpenedModel,
    sound: Sound,
    told: Callable[[float], None] = lambda seconds: None,
    decoder: RecordingDecoder | None = None,
) -> Transcript:
    """The transcript of a recording (S,) at 16 kHz, of any length, by a decoder (None: greedy);
    `told` hears the seconds that are done. It is empty where the recording is silent, or shorter
    than a frame. Raises ConfigError where the model cannot transcribe."""
    model, alphabet, _ = opened.recogniser()
    decoder = decoder or Greedy(alphabet, model.config)
    text, words = decoder(hear(opened, sound, told))
    return Transcript(text, round(len(sound) / SAMPLE_RATE, 3), words)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist transcribe` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="files, or folders of them; - for standard input")
    add("--format", choices=FORMATS, help="write files of it instead of text on the screen")
    add("--output", type=Path, metavar="DIR", help="where they go (default: beside each recording)")
    decoding_arguments(parser, num_best=False)


def run(args: argparse.Namespace) -> int:
    """Print what is said in recordings, or write it with the times of words; any format that
    libsndfile reads, any length; greedy, or with a language model (--lm). Exit status 1 where none
    could be read.

    example:
      w2v2dist transcribe runs/base_10h lecture.flac
      w2v2dist transcribe runs/base_10h lecture.flac --lm 4gram.arpa --weights weights.json
      w2v2dist transcribe facebook/wav2vec2-base-960h talks/ --format srt --output subtitles
    """
    if args.output and not args.format:
        raise ConfigError("--output is for files: say with --format which")
    paths = _paths(args.audio)
    targets = _targets(paths, args.format, args.output)
    opened = opened_from(args)
    for note in opened.notes:
        print(f"w2v2dist: note: {note}", file=sys.stderr)
    opened.recogniser()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened.module.to(device)
    decoder = _decoder(decoding_from(args), opened, device)
    failed = 0
    columns = ("{task.description}", "{task.fields[speed]}")
    shown = (*map(TextColumn, columns), BarColumn(), TimeRemainingColumn())
    bar = Progress(*shown, console=Console(stderr=True), transient=True)  # stdout has the text
    with bar:
        for path, target in zip(paths, targets, strict=True):
            try:
                found = _one(opened, path, bar, decoder)
            except BadSample as error:
                failed += 1
                print(f"w2v2dist: {path}: {error}", file=sys.stderr)
                continue
            if target is None:
                print(found.text if len(paths) == 1 else f"{path}\t{found.text}", flush=True)
            else:
                write(target, FORMATS[args.format](path, found))
                console.print(f"wrote {target}")
    if failed:
        print(f"w2v2dist: {failed} of {len(paths)} could not be read", file=sys.stderr)
    return 1 if failed == len(paths) else 0


def _decoder(
    config: DecodingConfig, opened: OpenedModel, device: torch.device
) -> RecordingDecoder | None:
    """The search in stretches of a recording; None: greedy."""
    if config.decoder == "greedy":
        return None
    _, alphabet, _ = opened.recogniser()
    search = make_decoder(dataclasses.replace(config, num_workers=1), alphabet, device)
    for note in search.notes:
        print(f"w2v2dist: note: {note}", file=sys.stderr)

    def decode(log_probs: torch.Tensor, first_frame: int) -> tuple[str, list[Word]]:
        values = log_probs.numpy()
        best = next(iter(search.decode([values], config.beam)))[0]
        return reading(best, values, alphabet, opened.encoder.config, first_frame)

    return InStretches(decode, alphabet)


def _one(
    opened: OpenedModel, path: str, bar: Progress, decoder: RecordingDecoder | None
) -> Transcript:
    with _source(path) as file, open_audio(file) as sound:
        if len(sound) < opened.encoder.config.receptive_field:
            print(f"w2v2dist: {path}: too short to hear a word: empty", file=sys.stderr)
        task = bar.add_task(Path(path).name, total=len(sound) / SAMPLE_RATE, speed="")
        started = time.monotonic()

        def told(seconds: float) -> None:
            times = seconds / max(time.monotonic() - started, 1e-3)
            bar.update(task, completed=seconds, speed=f"{times:.1f} × real time")

        try:
            return transcribe(opened, sound, told, decoder)
        finally:
            bar.remove_task(task)


@contextlib.contextmanager
def _source(path: str) -> Iterator[str]:
    """The file itself, or one of what stands on standard input."""
    if path != "-":
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".audio") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


def _paths(given: list[str]) -> list[str]:
    """The recordings that files and folders name. Raises ConfigError where there is none."""
    out: list[str] = []
    for name in given:
        path = Path(name)
        if name != "-" and path.is_dir():
            out += _in_folder(path)
        elif name == "-" or path.exists():
            out.append(name)
        else:
            raise ConfigError(f"{name!r} does not exist: give a recording, a folder of them, or -")
    return out


def _in_folder(folder: Path) -> list[str]:
    """The recordings of a folder; says how many it holds that are not read."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SOUNDS | VIDEOS)
    found = [str(p) for p in files if p.suffix.lower() in SOUNDS]
    others = Counter(p.suffix.lower().lstrip(".") for p in files if p.suffix.lower() in VIDEOS)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    remedy = f"take their sound out: {TAKE_SOUND.format('FILE', 'FILE')}"
    if not found:
        why = f": its videos ({kinds}) are not read; {remedy}" if kinds else ""
        raise ConfigError(f"{folder} holds no recording ({' '.join(sorted(SOUNDS))}){why}")
    if kinds:
        print(f"w2v2dist: {folder}: {kinds} left out; {remedy}", file=sys.stderr)
    return found


def _targets(paths: list[str], kind: str | None, output: Path | None) -> list[Path | None]:
    """Where each transcript goes; None: to the screen. Raises ConfigError where two would meet."""
    if kind is None:
        return [None] * len(paths)
    names = ["stdin" if path == "-" else Path(path).stem for path in paths]
    folders = [output or (Path() if path == "-" else Path(path).parent) for path in paths]
    targets = [folder / f"{name}.{kind}" for folder, name in zip(folders, names, strict=True)]
    if len({*targets}) < len(targets):
        twin = next(t for t in targets if targets.count(t) > 1)
        raise ConfigError(f"two recordings would be written to {twin}: transcribe them separately")
    return [*targets]
