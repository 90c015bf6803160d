"""Level 5 of the made languages, the collage: the frames are of real speech, TIMIT's, and their
order alone is made. T frames of an utterance, N of all, C channels."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE, BadSample, Waveform
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.timit import fold
from w2v2dist.decode.phone_times import BadTimesError, Labeller, Timed, checked
from w2v2dist.runtime.logging import console
from w2v2dist.training.bad_samples import most_frequent
from w2v2dist.unsupervised.clustering import Clusters
from w2v2dist.unsupervised.feature_store import Frames, Targets
from w2v2dist.unsupervised.made_language import with_silences
from w2v2dist.unsupervised.mfcc_targets import SHIFT, mfcc
from w2v2dist.unsupervised.phone_text import SILENCE
from w2v2dist.unsupervised.synthetic_language import Rng, Sentence

Hear = Callable[[Waveform], Frames]
STRIDE = SAMPLE_RATE // 50  # samples of a frame, a model's or every second MFCC
FIELD = SAMPLE_RATE // 40  # samples that it hears
MOST_SILENCE = 8  # frames of one <SIL>: some recordings begin with more than a second of it
FRAMES_A_SEGMENT = 5  # of version 1: 100 ms
# TIMIT's 48 classes that CMUdict writes as others. Closures have no phone there: a stop is its
# release, and what is before it is left out
AS = {"ax": "AH", "ix": "IH", "el": "L", "en": "N", "dx": "D", "sil": SILENCE}
LEFT_OUT = ("cl", "vcl", "epi")


def phone_of(symbol: str) -> str | None:
    """The phone of CMUdict, or `<SIL>`, of one of TIMIT's symbols (61 or 48); None where it is left
    out. Raises KeyError where it is none of them."""
    folded = fold(48)[symbol.lower()]
    return None if folded is None or folded in LEFT_OUT else AS.get(folded, folded.upper())


def standard(frames: Frames) -> Frames:
    """Each channel of an utterance (T, C) at mean 0 and variance 1, as recognisers of MFCCs take
    them: of what tells speakers and rooms apart much is gone."""
    deviation = np.maximum(frames.std(0), 1e-3)
    return np.asarray((frames - frames.mean(0)) / deviation, np.float32)


def span_of(phone: Timed, num_frames: int) -> tuple[int, int]:
    """The first of the frames whose centre is in a phone, and one behind the last; of a phone
    between two centres the frame that is nearest to its own."""
    first = max(0, -(-(phone.start - FIELD // 2) // STRIDE))
    last = min(num_frames, -(-(phone.end - FIELD // 2) // STRIDE))
    if first < last:
        return first, last
    nearest = round(((phone.start + phone.end) / 2 - FIELD / 2) / STRIDE)
    nearest = min(num_frames - 1, max(0, nearest))
    return nearest, nearest + 1


@dataclass(kw_only=True, slots=True)
class Pieces:
    """Where each phone is said, in the frames of all utterances end to end."""

    frames: Frames  # (N, C)
    mfccs: Frames  # (N, 39), of which targets are found
    spans: dict[str, NDArray[np.int64]]  # of each phone (occurrences, 2)
    skipped: list[dict[str, str]]
    num_utterances: int


@dataclass(slots=True)
class _Cutting:
    """Pieces that are still being cut."""

    frames: list[Frames] = field(default_factory=list)
    mfccs: list[Frames] = field(default_factory=list)
    spans: defaultdict[str, list[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    num_frames: int = 0

    def add(self, wave: Waveform, phones: Iterable[tuple[Timed, str]], hear: Hear | None) -> None:
        """An utterance and its phones."""
        found = mfcc(wave)[:: STRIDE // SHIFT]
        frames = found if hear is None else hear(wave)
        count = min(len(found), len(frames))
        if not count:
            raise BadSample("is shorter than a frame")
        self.frames.append(standard(frames[:count]))
        self.mfccs.append(found[:count])
        for timed, phone in phones:
            a, b = span_of(timed, count)
            self.spans[phone].append((self.num_frames + a, self.num_frames + b))
        self.num_frames += count


def cut(index: ShardIndex, find: Labeller, hear: Hear | None, option: str) -> Pieces:
    """The phones of shards, heard by a model or (None) as MFCCs. Utterances that cannot be used are
    skipped. Raises ConfigError where none can, or a phone is none of TIMIT's."""
    reader, cutting, skipped = ShardReader(index), _Cutting(), list[dict[str, str]]()
    for i in track(range(len(index)), f"cutting {option}", console=console, transient=True):
        key = index.key(i)
        try:
            labels, wave = reader.labels(i), reader.audio(i)
            phones = find(key, labels)
            if not phones:
                skipped.append({"key": key, "reason": "no phones with times are known of it"})
                continue
            cutting.add(wave, _named(key, checked(phones, len(wave))), hear)
        except (BadSample, BadTimesError) as error:
            skipped.append({"key": key, "reason": str(error)})
    if not cutting.spans:
        raise ConfigError(
            f"none of the {len(index)} utterances of {option} {index.folders} can be cut into "
            f"phones: {most_frequent(skipped) or 'there are none'}. Level 5 needs shards of TIMIT, "
            "with the times of their phones (shards/build.py --layout timit, docs/timit.md), or "
            "such times by --phones"
        )
    return Pieces(
        frames=np.concatenate(cutting.frames),
        mfccs=np.concatenate(cutting.mfccs),
        spans={phone: np.array(spans) for phone, spans in sorted(cutting.spans.items())},
        skipped=skipped,
        num_utterances=len(index) - len(skipped),
    )


def _named(key: str, phones: Iterable[Timed]) -> list[tuple[Timed, str]]:
    out = []
    for timed in phones:
        try:
            phone = phone_of(timed.phone)
        except KeyError:
            raise ConfigError(
                f"utterance {key} has the phone {timed.phone!r}, which is none of TIMIT's 61 or "
                "48: level 5 makes its language of those"
            ) from None
        if phone is not None:
            out.append((timed, phone))
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Collage:
    """Speaks sentences in pieces of real speech, each phone an occurrence that is drawn. Version 1:
    segments, the means of parts of a piece; version 2: frames, with targets where there are
    `clusters`."""

    pieces: Pieces
    phones: list[str]  # by number; <SIL> is one more
    version: int
    clusters: Clusters | None = None

    def speak(self, sentence: Sentence, rng: Rng) -> tuple[Frames, Targets | None]:
        """Frames (T, C), and their targets."""
        said = with_silences(sentence, len(self.phones), rng)
        rows = [self._draw(int(phone), rng) for phone in said]
        if self.version == 1:
            return np.concatenate([_segments(self.pieces.frames[row]) for row in rows]), None
        row = np.concatenate(rows)
        targets = None if self.clusters is None else self.clusters.assign(self.pieces.mfccs[row])
        return self.pieces.frames[row], targets

    def _draw(self, phone: int, rng: Rng) -> NDArray[np.int64]:
        """The frames of an occurrence."""
        spans = self.pieces.spans[[*self.phones, SILENCE][phone]]
        first, last = spans[rng.integers(len(spans))].tolist()
        if phone == len(self.phones) and last - first > MOST_SILENCE:
            first += int(rng.integers(last - first - MOST_SILENCE + 1))
            last = first + MOST_SILENCE
        return np.arange(first, last)


def _segments(frames: Frames) -> Frames:
    """The means of equal parts, of about FRAMES_A_SEGMENT frames each."""
    count = max(1, round(len(frames) / FRAMES_A_SEGMENT))
    parts = [part.mean(0) for part in np.array_split(frames, count)]
    return np.stack(parts).astype(np.float32)


def words_of(
    lexicon: dict[str, tuple[str, ...]], phones: Iterable[str]
) -> tuple[dict[str, tuple[str, ...]], Counter[str]]:
    """The words that can be said in these phones, and how many each missing phone costs."""
    there, missing = {*phones}, Counter[str]()
    kept = {}
    for word, spoken in lexicon.items():
        lacking = {*spoken} - there
        missing.update(lacking)
        if not lacking:
            kept[word] = spoken
    return kept, missing
