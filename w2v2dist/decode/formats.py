"""The files that transcripts are written as."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from w2v2dist.decode.words import Transcript, captions


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


def write(target: Path, text: str) -> None:
    """A file that is whole, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)
