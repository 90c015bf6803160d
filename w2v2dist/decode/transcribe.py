"""`w2v2dist transcribe`: text of recordings, by any CTC model."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE, BadSample, Waveform, load_any
from w2v2dist.decode.chunks import Chunk, chunks, log_probs
from w2v2dist.decode.words import Word, captions, words
from w2v2dist.interop.open import OpenedModel, model_arguments, opened_from
from w2v2dist.model import Wav2Vec2ForCTC
from w2v2dist.runtime.logging import console

SOUNDS = {f".{suffix}" for suffix in "flac wav mp3 ogg oga opus aif aiff au caf w64 sph".split()}
BATCH = 8  # chunks at a time on a GPU


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording."""

    text: str
    seconds: float
    words: list[Word]


def transcribe(
    opened: OpenedModel, waveform: Waveform, told: Callable[[float], None] = lambda seconds: None
) -> Transcript:
    """The transcript (greedy) of a recording (S,) at 16 kHz, of any length, in chunks; `told` hears
    the seconds that are done. Raises ConfigError where the model cannot transcribe."""
    model, alphabet, normalized = opened.recogniser()
    device = next(model.parameters()).device
    found: list[torch.Tensor] = []
    for same in _batches(waveform, model, BATCH if device.type == "cuda" else 1):
        found += log_probs(model, same, normalized, device)
        told(sum(len(part) for part in found) * model.config.total_stride / SAMPLE_RATE)
    path = torch.cat(found) if found else torch.zeros(0, alphabet.num_tokens)
    text = alphabet.decode(path.argmax(-1).tolist())
    said = words(path, alphabet, model.config)
    return Transcript(text, round(len(waveform) / SAMPLE_RATE, 3), said)


def _batches(waveform: Waveform, model: Wav2Vec2ForCTC, most: int) -> Iterator[list[Chunk]]:
    """Chunks in order, together where they are of one length: nothing is padded."""
    batch: list[Chunk] = []
    for chunk in chunks(waveform, model.config):
        if batch and (len(batch) == most or len(batch[0].waveform) != len(chunk.waveform)):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def as_txt(name: str, found: Transcript) -> str:
    """The text."""
    return f"{found.text}\n"


def as_json(name: str, found: Transcript) -> str:
    """Text, length, and each word with its times and confidence."""
    return json.dumps({"file": name, **asdict(found)}, ensure_ascii=False, indent=1) + "\n"


def as_ctm(name: str, found: Transcript) -> str:
    """A line for each word: name, channel, start, duration, word, confidence."""
    stem = "_".join(Path(name).stem.split()) or "-"
    rows = (
        f"{stem} 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} {w.confidence:.4f}\n"
        for w in found.words
    )
    return "".join(rows)


def as_srt(name: str, found: Transcript) -> str:
    """Captions with numbers."""
    return "".join(f"{n}\n{text}\n" for n, text in enumerate(_captions(found, ","), 1))


def as_vtt(name: str, found: Transcript) -> str:
    """Captions for a browser."""
    return "WEBVTT\n\n" + "".join(f"{text}\n" for text in _captions(found, "."))


FORMATS = {"txt": as_txt, "json": as_json, "srt": as_srt, "vtt": as_vtt, "ctm": as_ctm}


def _captions(found: Transcript, point: str) -> Iterator[str]:
    # Where words are symbols of a script without blanks, their text is theirs joined
    blank = "" if found.text == "".join(w.text for w in found.words) else " "
    for caption in captions(found.words):
        times = (_clock(seconds, point) for seconds in (caption[0].start, caption[-1].end))
        yield f"{' --> '.join(times)}\n{blank.join(word.text for word in caption)}\n"


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{point}{milliseconds:03d}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist transcribe` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="files, or folders of them; - for standard input")
    add("--format", choices=FORMATS, help="write files of it instead of text on the screen")
    add("--output", type=Path, metavar="DIR", help="where they go (default: beside each recording)")


def run(args: argparse.Namespace) -> int:
    """Print what is said in recordings (greedy), or write it with the times of words; any format
    that libsndfile reads, any length. Exit status 1 where none could be read.

    example:
      w2v2dist transcribe runs/base_10h lecture.flac
      w2v2dist transcribe facebook/wav2vec2-base-960h talks/ --format srt --output subtitles
    """
    if args.output and not args.format:
        raise ConfigError("--output is for files: say with --format which")
    paths = _paths(args.audio)
    targets = _targets(paths, args.format, args.output)
    opened = opened_from(args)
    for note in opened.notes:
        console.print(f"note: {note}", style="yellow")
    opened.recogniser()
    if torch.cuda.is_available():
        opened.module.to("cuda")
    failed = 0
    columns = ("{task.description}", "{task.fields[speed]}")
    bar = Progress(*map(TextColumn, columns), BarColumn(), TimeRemainingColumn(), transient=True)
    with bar:
        for path, target in zip(paths, targets, strict=True):
            try:
                found = _one(opened, path, bar)
            except BadSample as error:
                failed += 1
                print(f"w2v2dist: {path}: {error}", file=sys.stderr)
                continue
            if target is None:
                print(found.text if len(paths) == 1 else f"{path}\t{found.text}", flush=True)
            else:
                _write(target, FORMATS[args.format](path, found))
    if failed:
        print(f"w2v2dist: {failed} of {len(paths)} could not be read", file=sys.stderr)
    return 1 if failed == len(paths) else 0


def _one(opened: OpenedModel, path: str, bar: Progress) -> Transcript:
    waveform = _load(path)
    task = bar.add_task(Path(path).name, total=len(waveform) / SAMPLE_RATE, speed="")
    started = time.monotonic()

    def told(seconds: float) -> None:
        times = seconds / max(time.monotonic() - started, 1e-3)
        bar.update(task, completed=seconds, speed=f"{times:.1f} × real time")

    found = transcribe(opened, waveform, told)
    bar.remove_task(task)
    return found


def _load(path: str) -> Waveform:
    """A recording, or what stands on standard input."""
    if path != "-":
        return load_any(path)
    with tempfile.NamedTemporaryFile(suffix=".audio") as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        return load_any(file.name)


def _paths(given: list[str]) -> list[str]:
    """The recordings that files and folders name. Raises ConfigError where there is none."""
    out: list[str] = []
    for name in given:
        path = Path(name)
        if name != "-" and path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SOUNDS)
            if not found:
                kinds = " ".join(sorted(SOUNDS))
                raise ConfigError(f"{name} holds no recording ({kinds})")
            out += found
        elif name == "-" or path.exists():
            out.append(name)
        else:
            raise ConfigError(f"{name!r} does not exist: give a recording, a folder of them, or -")
    return out


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


def _write(target: Path, text: str) -> None:
    """A file that is whole, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)
    console.print(f"wrote {target}")
