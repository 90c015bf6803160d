"""How often a quantizer's codes stand together with phones and with speakers: counts of frames, and
what is measured of them. T frames, G codebooks, V entries in each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from w2v2dist.decode.phone_times import Timed
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.keyed import keyed_rng

Ints = NDArray[np.int64]
DELETED, NOTHING = -1, -2  # a frame of a phone that the fold deletes, and one without a label


def frame_labels(
    phones: Sequence[Timed], ids: Sequence[int], num_frames: int, config: Wav2Vec2Config
) -> Ints:
    """The label (T,) of each frame: the phone that most of its receptive field is of, as in the
    paper's appendix D; of equal ones that at its centre. `ids` are those of the phones, DELETED of
    one that is deleted; NOTHING where no phone has as much as is unlabelled."""
    field_size, stride = config.receptive_field, config.total_stride
    out = np.full(num_frames, NOTHING, np.int64)
    kinds = [*dict.fromkeys(ids)]
    if not kinds or not num_frames:
        return out
    starts, ends = (np.array([p[k] for p in phones], np.int64) for k in (0, 1))
    column = np.array([kinds.index(i) for i in ids])
    first = np.maximum(0, -((field_size - 1 - starts) // stride))  # the frames that a phone is in
    last = np.minimum(num_frames - 1, (ends - 1) // stride)
    count = np.maximum(0, last - first + 1)
    which = np.repeat(np.arange(len(ids)), count)
    frame = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
    low, high = frame * stride, frame * stride + field_size
    shared = np.maximum(0, np.minimum(ends[which], high) - np.maximum(starts[which], low))
    votes = np.zeros((num_frames, len(kinds) + 1), np.int64)
    np.add.at(votes, (frame, column[which]), 2 * shared)
    votes[:, -1] = np.maximum(0, 2 * field_size - votes.sum(1))
    centre = low + field_size // 2
    at_centre = (starts[which] <= centre) & (centre < ends[which])
    np.add.at(votes, (frame[at_centre], column[which][at_centre]), 1)
    out[:] = np.array([*kinds, NOTHING])[votes.argmax(1)]
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How codes agree with something that frames are of (phones, speakers): HuBERT's measures
    (section 4.3 of arXiv 2106.07447). Entropies in bits."""

    num_frames: int
    num_codes: int
    num_classes: int
    most_frequent: float  # the share of the most frequent class: the purity of a single code
    purity: float  # share of frames that are of the most frequent class of their code
    cluster_purity: float  # that are of the most frequent code of their class
    entropy: float  # of the classes
    code_entropy: float
    mutual_information: float
    normalized: float  # the share of the entropy that codes tell (with phones: PNMI)


def agreement(code: Ints, other: Ints, count: Ints) -> Agreement:
    """Of `count` frames that are of a code and of a class each; pairs are distinct."""
    codes, a = np.unique(code, return_inverse=True)
    classes, b = np.unique(other, return_inverse=True)
    total = max(1, int(count.sum()))
    of_code, of_class = np.bincount(a, count), np.bincount(b, count)
    best_of_code, best_of_class = np.zeros(len(codes)), np.zeros(len(classes))
    np.maximum.at(best_of_code, a, count)
    np.maximum.at(best_of_class, b, count)
    entropies = [bits(of_class / total), bits(of_code / total)]
    shared = max(0.0, sum(entropies) - bits(count / total))
    return Agreement(
        num_frames=int(count.sum()),
        num_codes=len(codes),
        num_classes=len(classes),
        most_frequent=float(of_class.max(initial=0) / total),
        purity=float(best_of_code.sum() / total),
        cluster_purity=float(best_of_class.sum() / total),
        entropy=entropies[0],
        code_entropy=entropies[1],
        mutual_information=shared,
        normalized=shared / entropies[0] if entropies[0] else 0.0,
    )


def permuted(code: Ints, other: Ints, count: Ints) -> tuple[Ints, Ints, Ints]:
    """As many frames of each code and of each class, put together by chance: one draw, the same for
    the same counts. What `agreement` says of them is what few frames say of nothing."""
    codes, a = np.unique(code, return_inverse=True)
    classes, b = np.unique(other, return_inverse=True)
    drawn = keyed_rng("codes", "chance").permutation(np.repeat(b, count))
    both, counts = np.unique(np.repeat(a, count) * len(classes) + drawn, return_counts=True)
    return codes[both // len(classes)], classes[both % len(classes)], counts


def bits(share: NDArray[np.float64]) -> float:
    """The entropy of a distribution."""
    positive = share[share > 0]
    return max(0.0, float(-(positive * np.log2(positive)).sum()))


@dataclass(kw_only=True, slots=True)
class CodeCounts:
    """Frames by (combination of codes, phone) and by (combination, speaker), an utterance after
    another: in memory is what is distinct. A combination is numbered as losses.code_ids does."""

    num_codebooks: int
    num_entries: int
    phones: dict[str, int] = field(default_factory=dict)  # their numbers
    speakers: dict[str, int] = field(default_factory=dict)
    frames: Counter[int] = field(default_factory=Counter)
    with_phone: Counter[tuple[int, int]] = field(default_factory=Counter)
    with_speaker: Counter[tuple[int, int]] = field(default_factory=Counter)
    num_deleted: int = 0  # frames of phones that the fold deletes
    num_unlabelled: int = 0  # frames of labelled utterances that no phone covers
    num_frames_without: int = 0  # of utterances without labels
    num_overlapping: int = 0  # phones that begin before an earlier one has ended

    def __post_init__(self) -> None:
        if self.num_entries**self.num_codebooks >= 2**63:
            raise ValueError(
                f"{self.num_codebooks} codebooks of {self.num_entries} entries have more "
                "combinations than 64 bits can number"
            )

    def number(self, phone: str | None) -> int:
        """The number of a phone; DELETED of None."""
        return DELETED if phone is None else self.phones.setdefault(phone, len(self.phones))

    def add(self, codes: Ints, labels: Ints | None, speaker: str | None) -> None:
        """An utterance: codes (T, G), labels (T,) or None where it has none."""
        ids = codes @ self.num_entries ** np.arange(self.num_codebooks)
        _count(self.frames, ids)
        if speaker is not None:
            number = self.speakers.setdefault(speaker, len(self.speakers))
            for code, count in zip(*np.unique(ids, return_counts=True), strict=True):
                self.with_speaker[int(code), number] += int(count)
        if labels is None:
            self.num_frames_without += len(ids)
            return
        self.num_deleted += int((labels == DELETED).sum())
        self.num_unlabelled += int((labels == NOTHING).sum())
        known = labels >= 0
        pairs, counts = np.unique(
            np.stack([ids[known], labels[known]], 1), axis=0, return_counts=True
        )
        for (code, phone), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            self.with_phone[code, phone] += count

    def split(self, ids: Ints) -> Ints:
        """(N,) combinations -> (N, G) codes."""
        return ids[:, None] // self.num_entries ** np.arange(self.num_codebooks) % self.num_entries

    def usage(self) -> list[Ints]:
        """Of each codebook how many frames have each of its entries (V,)."""
        ids, counts = _arrays(self.frames)
        return [
            np.bincount(column, counts, self.num_entries).astype(np.int64)
            for column in self.split(ids[:, 0]).T
        ]

    def table(self) -> tuple[Ints, Ints]:
        """Combinations (N,) that have a phone, in order, and the frames (N, P) of each phone."""
        pairs, counts = _arrays(self.with_phone, 2)
        ids, row = np.unique(pairs[:, 0], return_inverse=True)
        out = np.zeros((len(ids), len(self.phones)), np.int64)
        out[row, pairs[:, 1]] = counts
        return ids, out

    def agreements(self, what: Counter[tuple[int, int]]) -> list[tuple[Agreement, Agreement]]:
        """Of combinations, then of each codebook by itself, with phones or speakers: as it is, and
        by chance."""
        pairs, counts = _arrays(what, 2)
        rows = [(pairs[:, 0], pairs[:, 1], counts)]
        for column in self.split(pairs[:, 0]).T:
            both, place = np.unique(np.stack([column, pairs[:, 1]], 1), axis=0, return_inverse=True)
            summed = np.bincount(place.reshape(-1), counts, len(both)).astype(np.int64)
            rows.append((both[:, 0], both[:, 1], summed))
        return [(agreement(*row), agreement(*permuted(*row))) for row in rows]


def _count(counter: Counter[int], ids: Ints) -> None:
    values, counts = np.unique(ids, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        counter[value] += count


def _arrays(counter: Counter[int] | Counter[tuple[int, int]], width: int = 1) -> tuple[Ints, Ints]:
    """Keys (N, width) in order and counts (N,)."""
    rows = sorted(counter.items())
    keys = np.array([key for key, _ in rows], np.int64).reshape(-1, width)
    return keys, np.array([count for _, count in rows], np.int64)


def by_likeliest(counts: Ints, phones: Sequence[str]) -> tuple[list[int], list[int]]:
    """How the paper's figure is laid out, of counts (N, P): the order of the phones, the most
    frequent first, and that of the codes, by their likeliest phone, the surest first."""
    frequent = counts.sum(0)
    columns = sorted(range(len(phones)), key=lambda p: (-frequent[p], phones[p]))
    place = {p: i for i, p in enumerate(columns)}
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    best = [max(range(len(phones)), key=lambda p: (row[p], -place[p])) for row in share]
    rows = sorted(range(len(counts)), key=lambda n: (place[best[n]], -share[n, best[n]], n))
    return columns, rows
