"""Segments of long transcribed recordings, cut at pauses: a table that shards/build.py reads."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import soundfile

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.decode.words import Word

PADDING_S = 0.3  # of silence kept beside a segment, at most half of what is there
TOLERANCE_S, PART_TOLERANCE_S = 0.1, 0.5  # of a recording's length, and of a part's end
PARTS = {"offset": 1, "start": SAMPLE_RATE}  # of labels, where a part begins, and their unit
UNSTATED = 1 << 60  # frames; FLAC that was written to a pipe does not state its length
COLUMNS = ("path", "offset", "duration", "text", "phones", "speaker", "score", "unwritten")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig:
    """How recordings are cut."""

    least_s: float = 2.0
    most_s: float = 30.0
    min_score: float = 0.0  # the mean probability of a segment's symbols
    max_unwritten: float = 0.2  # the share of what is heard in it that its text has not

    def __post_init__(self) -> None:
        if not 0 < self.least_s < self.most_s:
            raise ConfigError(
                f"segments of {self.least_s:g} to {self.most_s:g} s cannot be cut: the least must "
                "be positive, and less than the most"
            )
        # What is longer than a segment may be has to make two of them, with silence beside them
        if self.most_s < (least := 2 * self.least_s + 2 * PADDING_S):
            raise ConfigError(
                f"segments of {self.least_s:g} to {self.most_s:g} s cannot be cut, most of the "
                f"speech would be lost: with {self.least_s:g} s at least, let them have up to "
                f"{least:g} s or more"
            )
        limits = {"--min-score": self.min_score, "--max-unwritten": self.max_unwritten}
        for option, share in limits.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{option} is {share:g} but must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word as it was written, and where it is said; `scores` of its symbols."""

    text: str
    start: float
    end: float
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a recording, in seconds from its start, with its text."""

    offset: float
    duration: float
    text: str
    score: float
    unwritten: float


def as_written(text: str, symbols: list[Word], alphabet: Alphabet) -> list[Spoken]:
    """The words of a text as it came, case and punctuation with it, with the times of the symbols
    that an alignment found for it. What stands for no symbol belongs to the word before. Where the
    text is read otherwise than its words one by one, they are those of the alphabet."""
    written = _written(text, alphabet)
    if [t for _, tokens in written for t in tokens] != [symbol.text for symbol in symbols]:
        words = alphabet.normalized(text).split() if _between(alphabet) else []
        written = [(word, _symbols(word, alphabet)) for word in words]
        written = written or [(symbol.text, [symbol.text]) for symbol in symbols]
    out: list[Spoken] = []
    blank, before, at = _between(alphabet), "", 0
    for part, tokens in written:
        said = symbols[at : at + len(tokens)]
        at += len(tokens)
        if said:
            scores = [symbol.confidence for symbol in said]
            out.append(Spoken(before + part, said[0].start, said[-1].end, scores))
            before = ""
        elif out:
            out[-1] = replace(out[-1], text=f"{out[-1].text}{blank}{part}")
        else:
            before += f"{part}{blank}"
    return out


def _between(alphabet: Alphabet) -> str:
    return " " if alphabet.has_words or alphabet.units == "phones" else ""


def _written(text: str, alphabet: Alphabet) -> list[tuple[str, list[str]]]:
    """The words of a text (characters with their marks, where the alphabet has no words), each with
    its symbols."""
    parts = text.split()
    if not _between(alphabet):
        parts = []
        for c in text:
            if parts and unicodedata.category(c)[0] == "M":
                parts[-1] += c
            else:
                parts.append(c)
    try:
        return [(part, _symbols(part, alphabet)) for part in parts]
    except ValueError:  # part of what data.text replaces
        return []


def _symbols(text: str, alphabet: Alphabet) -> list[str]:
    return [alphabet.tokens[i] for i in alphabet.encode(text) if i != alphabet.delimiter]


def cut(
    words: list[Spoken],
    seconds: float,
    alphabet: Alphabet,
    config: SegmentConfig,
    unwritten: Callable[[float, float], float] = lambda start, end: 0.0,
) -> tuple[list[Segment], Counter[str]]:
    """The segments of a recording, and how many were left out for which reason; `unwritten`: how
    much of what is heard from one second to another the text lacks. Each is cut at the
    longest pause within the limits; half of it, but not more than PADDING_S, goes to each side."""
    out: list[Segment] = []
    left_out: Counter[str] = Counter()
    first = 0
    while first < len(words):
        last = _last(words, first, config)
        before = words[first - 1].end if first else None
        after = words[last].start if last < len(words) else None
        low, high = words[first].start, words[last - 1].end
        low -= min(PADDING_S, low if before is None else (low - before) / 2)
        high += min(PADDING_S, seconds - high if after is None else (after - high) / 2)
        said = words[first:last]
        scores = [score for word in said for score in word.scores]
        score, text = sum(scores) / len(scores), _between(alphabet).join(w.text for w in said)
        extra = unwritten(low, high)
        if high - low < config.least_s:
            left_out[f"shorter than {config.least_s:g} s"] += 1
        elif high - low > config.most_s:
            left_out[f"longer than {config.most_s:g} s, without a pause"] += 1
        elif score < config.min_score:
            left_out[f"a score below {config.min_score:g}"] += 1
        elif extra > config.max_unwritten:
            left_out[f"more than {config.max_unwritten:g} of what is heard is not written"] += 1
        else:
            times = round(low, 3), round(high - low, 3)
            out.append(Segment(*times, text.strip(), round(score, 4), extra))
        first = last
    return out, left_out


def _last(words: list[Spoken], first: int, config: SegmentConfig) -> int:
    """The last word + 1 of the segment that begins with a word."""
    start, end = words[first].start, words[-1].end
    most = config.most_s - 2 * PADDING_S
    if end - start <= most:
        return len(words)
    best, longest = first + 1, (False, -1.0)
    for k in range(first + 1, len(words)):
        if words[k - 1].end - start > most:
            break
        enough = words[k - 1].end - start >= config.least_s and (
            end - words[k].start >= config.least_s
        )
        # Too short is better as late as possible, else the longest pause
        pause = (enough, round(words[k].start - words[k - 1].end, 3) if enough else 0.0)
        if pause >= longest:
            best, longest = k, pause
    return best


class NotFoundError(ConfigError):
    """A recording is not found; `reason`, in a few words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Sources:
    """Finds the recordings that shards were made of, below the folders that `shards/build.py` read
    them from, or below others if they have moved."""

    def __init__(self, roots: list[Path]) -> None:
        self.roots = roots

    def find(self, labels: Mapping[str, Any], seconds: float) -> Path:
        """The path of the recording that an utterance of so many seconds was made of. Raises
        NotFoundError where it is not there, there are several, or it has another length."""
        source = str(labels.get("source"))
        roots = self.roots or [Path("/")]  # a table may have named it in full
        places = [folder / source for root in roots for folder in (root, root / "clips")]
        found = [*dict.fromkeys(path.resolve() for path in places if path.is_file())]
        fitting = [path for path in found if _fits(path, labels, seconds)]
        if len(fitting) == 1:
            return fitting[0]
        looked = ", ".join(map(str, self.roots)) or "no folder"
        what = "is not there" if not found else f"is there {len(fitting)} times"
        if found and not fitting:
            what = "has another length, so it is another one"
        raise NotFoundError(
            what,
            f"the recording {source} {what} (looked in {looked}): name the folder that the shards "
            "were made of with --audio-root",
        )


def _fits(path: Path, labels: Mapping[str, Any], seconds: float) -> bool:
    """Whether a recording has the length of what was made of it: the whole, or a part ("offset" of
    a segment, "start" of a piece). One whose header does not state its length fits."""
    try:
        stated = soundfile.info(path)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return True
    if not 0 < stated.frames < UNSTATED:
        return True
    if parts := [float(labels[name]) / unit for name, unit in PARTS.items() if name in labels]:
        return bool(stated.duration > sum(parts) + seconds - PART_TOLERANCE_S)
    return bool(abs(stated.duration - seconds) <= TOLERANCE_S)


def rows(
    found: list[Segment], labels: dict[str, Any], path: Path, alphabet: Alphabet
) -> Iterator[dict[str, Any]]:
    """The rows of a recording's segments, as the table has them."""
    for segment in found:
        said = "phones" if alphabet.units == "phones" else "text"
        yield {
            "path": str(path),
            "offset": round(segment.offset + float(labels.get("offset", 0.0)), 3),
            "duration": segment.duration,
            said: segment.text,
            "speaker": labels.get("speaker"),
            "score": segment.score,
            "unwritten": segment.unwritten,
        }
