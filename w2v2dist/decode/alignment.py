"""Where in a recording its text is said: CTC forced alignment of a text of any length."""

import itertools
import math
from dataclasses import dataclass

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchaudio.functional import forced_align

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.words import Symbol, Word, frame_s, runs, spoken
from w2v2dist.model import Wav2Vec2Config

# Frames x (2 x tokens + 1) that are aligned at once, of a byte each: some 7 minutes of speech
CELLS = 1 << 28
PIECE = 6_000  # frames of a piece of a longer text, about: two minutes
RUN = 3  # words (or symbols, where there are no words) heard as they are written: an anchor
SYMBOLS_RUN = 8
NEAR = 20  # words (or symbols) within which a repetition makes an anchor doubtful

NOTHING, WRITTEN, UNWRITTEN = range(3)

Token = tuple[int, ...]  # the ids of a word, or of one symbol


@dataclass(frozen=True, slots=True)
class Alignment:
    """The symbols of a text and its words with their times; where the alphabet has no words, each
    symbol is one. `score`: the mean probability of the symbols, low where the text has what is not
    said. `heard`: of each frame, what a greedy reader hears: NOTHING, or a symbol that is WRITTEN
    or is not."""

    symbols: list[Word]
    words: list[Word]
    score: float
    heard: bytes
    frame_s: float

    def unwritten(self, start: float = 0.0, end: float = math.inf) -> float:
        """The share of symbols heard from `start` to `end` (seconds), by their frames, where the
        text has none: high where it lacks what is said."""
        last = len(self.heard) if end == math.inf else round(end / self.frame_s)
        part = self.heard[round(start / self.frame_s) : last]
        extra = part.count(UNWRITTEN)
        return round(extra / max(1, extra + part.count(WRITTEN)), 4)


def align(
    log_probs: Tensor, text: str, alphabet: Alphabet, config: Wav2Vec2Config, cells: int = CELLS
) -> Alignment:
    """Align a label with log-probabilities (T, num_tokens) on the CPU. Times are of the frames in
    which the model says a symbol, as a transcript has them. A text that takes more than `cells` is
    cut at anchors first (`pieces`). Raises ValueError that says why it cannot be aligned."""
    ids = alphabet.encode(text)
    if not ids:
        raise ValueError("its label has no symbol: it is blank, or punctuation alone")
    if log_probs.isnan().any():
        raise ValueError("the model's outputs are not finite (NaN)")
    if len(log_probs) * (2 * len(ids) + 1) <= cells:
        said = _said(log_probs, ids, alphabet)
    else:
        said = _in_pieces(log_probs, ids, alphabet, frame_s(config), cells)
    heard = _heard(log_probs, said, alphabet)
    left = iter(said)
    words = [[*itertools.islice(left, len(word))] for word in _tokens(ids, alphabet)]
    return Alignment(
        symbols=[spoken([symbol], alphabet, config) for symbol in said],
        words=[spoken(word, alphabet, config) for word in words],
        score=round(sum(symbol.confidence for symbol in said) / len(said), 4),
        heard=heard,
        frame_s=frame_s(config),
    )


def best_path(log_probs: Tensor, ids: list[int], blank: int) -> list[int]:
    """The most probable path (T,) that reads these ids. Raises ValueError for too few frames."""
    needed = len(ids) + sum(a == b for a, b in itertools.pairwise(ids))  # blanks between twins
    if needed > len(log_probs):
        raise ValueError(
            f"its label of {len(ids)} tokens needs {needed} frames but its audio has only "
            f"{len(log_probs)}"
        )
    targets = torch.tensor([ids], dtype=torch.int32)
    paths, _ = forced_align(log_probs[None].float().contiguous(), targets, blank=blank)
    return [int(token) for token in paths[0].tolist()]


def _said(
    log_probs: Tensor, ids: list[int], alphabet: Alphabet, first_frame: int = 0
) -> list[Symbol]:
    """The symbols of the best path, without delimiters, each with the mean probability of its
    frames; not the best, as in a transcript: one that does not belong is drawn out."""
    path = best_path(log_probs, ids, alphabet.blank)
    at = torch.tensor(path)[:, None]
    probabilities = log_probs.gather(1, at)[:, 0].exp().tolist()
    out = []
    for token, first, last, _ in runs(path, probabilities, alphabet):
        if token != alphabet.delimiter:
            sure = sum(probabilities[first:last]) / (last - first)
            out.append(Symbol(token, first_frame + first, first_frame + last, sure))
    return out


def _heard(log_probs: Tensor, said: list[Symbol], alphabet: Alphabet) -> bytes:
    """What is heard in each frame, beside what is said there by the text."""
    silent = {*alphabet.special, alphabet.delimiter}
    best = log_probs.argmax(-1).tolist()
    out = bytearray(NOTHING if token in silent else UNWRITTEN for token in best)
    for symbol in said:
        for frame in range(symbol.first, symbol.last):
            out[frame] = min(out[frame], WRITTEN)
    return bytes(out)


def _words(said: list[Symbol], alphabet: Alphabet) -> list[list[Symbol]]:
    """Symbols by words."""
    if not alphabet.has_words:
        return [[symbol] for symbol in said]
    groups = itertools.groupby(said, key=lambda symbol: symbol.token == alphabet.delimiter)
    return [[*word] for between, word in groups if not between]


@dataclass(frozen=True, slots=True)
class Cut:
    """A place between two words that were heard as they are written: before which word of the text,
    and at which frame; `pause`: the frames between them."""

    word: int
    frame: int
    pause: int


def _in_pieces(
    log_probs: Tensor, ids: list[int], alphabet: Alphabet, seconds: float, cells: int
) -> list[Symbol]:
    """The same, piece by piece. Raises ValueError where a piece is too large."""
    written = _tokens(ids, alphabet)
    said: list[Symbol] = []
    delimiter = [alphabet.delimiter] if alphabet.delimiter is not None else []
    places = [Cut(0, 0, 0), *pieces(log_probs, written, alphabet)]
    for here, there in itertools.pairwise([*places, Cut(len(written), len(log_probs), 0)]):
        part = [i for word in written[here.word : there.word] for i in (*delimiter, *word)]
        part = part[len(delimiter) :]
        if (there.frame - here.frame) * (2 * len(part) + 1) > cells:
            least = RUN if alphabet.has_words else SYMBOLS_RUN
            raise ValueError(
                f"from {here.frame * seconds:.0f} to {there.frame * seconds:.0f} s no {least} "
                "words in a row are heard as they are written (or they are the same words again "
                "and again), and so much cannot be aligned at once: does the text belong to the "
                "recording? If so, the model is too weak for it"
            )
        said += _said(log_probs[here.frame : there.frame], part, alphabet, here.frame)
    return said


def _tokens(ids: list[int], alphabet: Alphabet) -> list[Token]:
    """The ids of each word, or of each symbol where there are no words."""
    if not alphabet.has_words:
        return [(i,) for i in ids]
    groups = itertools.groupby(ids, key=lambda i: i == alphabet.delimiter)
    return [tuple(word) for between, word in groups if not between]


def pieces(log_probs: Tensor, written: list[Token], alphabet: Alphabet) -> list[Cut]:
    """Where to cut a long text and its frames into pieces of about PIECE frames: the greedy
    transcript is compared with it, and the cuts are at the longest pauses inside runs of several
    equal words. Fewer where there are no such runs."""
    path = log_probs.argmax(-1).tolist()
    heard = _words([*runs(path, [0.0] * len(path), alphabet)], alphabet)
    found = _anchors(written, heard, RUN if alphabet.has_words else SYMBOLS_RUN)
    out: list[Cut] = []
    start = 0
    while len(path) - start > PIECE and found:
        near = [c for c in found if PIECE // 2 <= c.frame - start <= PIECE]
        early = [c for c in found if 0 < c.frame - start < PIECE // 2]
        if near:
            cut = max(near, key=lambda c: (c.pause, c.frame))
        else:
            late = [c for c in found if c.frame - start > PIECE]
            cut = early[-1] if early else late[0]
        out.append(cut)
        start = cut.frame
        found = [c for c in found if c.frame > start and c.word > cut.word]
    return out


def _anchors(written: list[Token], heard: list[list[Symbol]], least: int) -> list[Cut]:
    """The places inside runs of `least` or more equal words, in order, without doubtful ones."""
    read = [tuple(symbol.token for symbol in word) for word in heard]
    out = []
    for op in Levenshtein.opcodes(written, read):
        if op.tag != "equal" or op.src_end - op.src_start < least:
            continue
        for k in range(1, op.src_end - op.src_start):
            at, there = op.src_start + k, op.dest_start + k
            if _doubtful(written, op.src_start, at, op.src_end):
                continue
            if _doubtful(read, op.dest_start, there, op.dest_end):
                continue
            before, after = heard[there - 1][-1], heard[there][0]
            middle = (before.last + after.first + 1) // 2
            out.append(Cut(at, middle, after.first - before.last))
    return out


def _doubtful(words: list[Token], first: int, cut: int, last: int) -> bool:
    """Whether the run's words before a cut stand once more a little before, or those behind it a
    little behind. Where one of several in a row ("six six six", "two six two six") was not heard,
    or is not written, nobody knows which: the comparison leaves out any, and what is between it and
    the right one has moved."""
    before, behind = words[max(first, cut - NEAR) : cut], words[cut : min(last, cut + NEAR)]
    return any(
        words[cut + p : cut + p + len(behind)] == behind
        or (cut - p >= len(before) and words[cut - p - len(before) : cut - p] == before)
        for p in range(1, NEAR + 1)
    )
