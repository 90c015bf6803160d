"""Utterances that a page plays: audio of shards as it lies there, where they are at hand."""

import base64
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from w2v2dist.data.index import ShardIndex
from w2v2dist.reporting import logs
from w2v2dist.reporting.evaluations import Evaluation

BUDGET = 1_500_000  # characters of a page's audio
MOST_UTTERANCES = 2_000_000  # of an index that is searched for a key
TYPES = {b"fLaC": "audio/flac", b"RIFF": "audio/wav", b"OggS": "audio/ogg"}


@dataclass(slots=True)
class Clips:
    """The audio of a page as data URIs; an utterance of several evaluations stands there once."""

    budget: int = BUDGET
    uris: list[str] = field(default_factory=list)
    _known: dict[tuple[str, str], int | None] = field(default_factory=dict)

    def add(self, evaluation: Evaluation, worst: list[logs.Record], share: int) -> dict[str, int]:
        """Add what of `worst` is at hand, at most `share` characters; the number of each clip by
        the utterance's key."""
        found: dict[str, int] = {}
        wanted = [row for row in worst if (evaluation.data, row["key"]) not in self._known]
        contents = _audio(evaluation, wanted)
        for row in worst:
            name = evaluation.data, row["key"]
            if name not in self._known:
                uri = _uri(contents.get(row["key"], b""))
                if len(uri) > min(share, self.budget):
                    continue  # a shorter one may still fit
                share, self.budget = share - len(uri), self.budget - len(uri)
                self._known[name] = len(self.uris) if uri else None
                self.uris += [uri] * bool(uri)
            if (number := self._known[name]) is not None:
                found[row["key"]] = number
        return found


def _uri(content: bytes) -> str:
    kind = TYPES.get(content[:4])
    return f"data:{kind};base64,{base64.b64encode(content).decode()}" if kind else ""


def _audio(evaluation: Evaluation, rows: list[logs.Record]) -> dict[str, bytes]:
    """The files of utterances by key, of those that are there: {} where the shards are gone."""
    keys = {row["key"] for row in rows}
    index = _index(evaluation) if keys else None
    if index is None or len(index) > MOST_UTTERANCES:
        return {}
    found: dict[str, bytes] = {}
    for i, key in enumerate(index.keys()):
        if key in keys and key not in found:
            path = index.shard_path(int(index.shard[i]))
            with contextlib.suppress(OSError), path.open("rb") as file:
                found[key] = os.pread(file.fileno(), int(index.size[i]), int(index.offset[i]))
            if len(found) == len(keys):
                break
    return found


def _index(evaluation: Evaluation) -> ShardIndex | None:
    """The index of an evaluation's shards: where it was named from this folder, or from one above
    the run. None where there is none, or one of other utterances."""
    folders = [f.strip() for f in evaluation.data.split(",") if f.strip()]
    for base in (Path(), *evaluation.folder.resolve().parents):
        with contextlib.suppress(ValueError, OSError, TypeError, AttributeError):
            if folders and all((base / folder / "index.json").is_file() for folder in folders):
                return ShardIndex.load_many(",".join(str(base / folder) for folder in folders))
    return None
