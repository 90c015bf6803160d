"""Files that Kaldi reads, for its HMM stage on pseudo-labels."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.data.reader import ShardReader

REST = "SIL"


def write_kaldi(folder: Path, index: ShardIndex, units: Literal["phones", "words"]) -> None:
    """Write a data folder of Kaldi (text, wav.scp, utt2spk, spk2utt), sorted as it wants them, and
    of phones what its dictionary is made of (local/dict). Audio is read from within the tars."""
    made(folder, "--kaldi")
    reader = ShardReader(index)
    rows, speakers = [], dict[str, list[str]]()
    for i in range(len(index)):
        labels, number = reader.labels(i), int(index.speaker[i])
        key = index.key(i).replace("/", "_")
        speaker = index.speakers[number] if number >= 0 else key
        utterance = key if key.startswith(speaker) else f"{speaker}-{key}"  # Kaldi sorts by both
        said = str(labels["phones" if units == "phones" else "text"])
        path = shlex.quote(str(index.shard_path(int(index.shard[i])).resolve()))
        cut = f"tail -c +{int(index.offset[i]) + 1} {path} | head -c {int(index.size[i])}"
        rows.append((utterance, said, f"{cut} | flac -cds - |", speaker))
        speakers.setdefault(speaker, []).append(utterance)
    rows.sort()
    _lines(folder / "text", (f"{u} {said}" for u, said, _, _ in rows))
    _lines(folder / "wav.scp", (f"{u} {command}" for u, _, command, _ in rows))
    _lines(folder / "utt2spk", (f"{u} {speaker}" for u, _, _, speaker in rows))
    _lines(folder / "spk2utt", (f"{s} {' '.join(sorted(speakers[s]))}" for s in sorted(speakers)))
    if units == "phones":
        _dictionary(
            folder / "local/dict", sorted({p for _, said, _, _ in rows for p in said.split()})
        )


def _dictionary(folder: Path, phones: list[str]) -> None:
    """Every phone as a word of itself, and silence of its own."""
    made(folder, "--kaldi")
    rest = REST if REST not in phones else f"<{REST}>"
    _lines(folder / "lexicon.txt", (f"{p} {p}" for p in (rest, *phones)))
    _lines(folder / "nonsilence_phones.txt", phones)
    _lines(folder / "silence_phones.txt", [rest])
    _lines(folder / "optional_silence.txt", [rest])


def _lines(path: Path, lines: Iterable[str]) -> None:
    with atomic(path) as file:
        file.writelines(f"{line}\n".encode() for line in lines)
