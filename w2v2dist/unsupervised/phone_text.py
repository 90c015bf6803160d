"""A text of phones as ids in memory-mapped files: what the discriminator sees as real, in whatever
phones a language has. Written once, whole or not at all, and opened by every run."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v2dist.config import ConfigError
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.data.sentences import GrowingColumn
from w2v2dist.lm.lines import decoded, lines

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in fairseq's dictionaries
BOS, PAD, EOS, UNKNOWN = range(len(SPECIAL))
SILENCE = "<SIL>"  # the last id
VERSION = 1
MUCH = 0.1  # of the phones of labels
DICTIONARY, META = "dict.phn.txt", "meta.json"
Ids = NDArray[np.int64]


class PhoneText:
    """The lines of a folder that `write_phone_text` wrote, each a row of ids into `symbols`: four
    special ones, the phones by falling count, `<SIL>`. `meta` says how the text was made."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ConfigError where the folder holds none, or one that is not whole."""
        self.folder = folder = Path(folder)
        if folder.is_file():
            raise ConfigError(
                f"{folder} is a file, but a text of phones is a folder, which `w2v2dist "
                "unsupervised text` makes: name one"
            )
        if not (folder / META).is_file():
            raise ConfigError(
                f"{folder} holds no text of phones ({META} is missing): make one with "
                "`w2v2dist unsupervised text TEXT --lexicon FILE --output FOLDER`"
            )
        try:
            self.meta: dict[str, Any] = json.loads((folder / META).read_text("utf-8"))
            if self.meta["version"] != VERSION:
                raise ValueError(f"its version is {self.meta['version']}, not {VERSION}")
            self.symbols = read_symbols(folder / DICTIONARY)
            self.fingerprint = str(self.meta["fingerprint"])
            columns = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "ends"))
            self._ids, self._ends = columns
            if int(self._ends[-1]) != len(self._ids) or len(self) != self.meta["num_lines"]:
                raise ValueError("its columns have other sizes than meta.json says")
            if len(self.symbols) != self.meta["num_symbols"]:
                raise ValueError(f"{DICTIONARY} has other symbols than meta.json says")
        except (OSError, EOFError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the text of phones in {folder} is damaged ({error}): remove the folder and make "
                "it again"
            ) from None

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return PhoneText, (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return len(self._ends)

    def line(self, i: int) -> Ids:
        """The ids of line `i`, never none."""
        first = int(self._ends[i - 1]) if i else 0
        return np.asarray(self._ids[first : int(self._ends[i])], np.int64)

    @property
    def silence(self) -> int:
        """The id of `<SIL>`."""
        return len(self.symbols) - 1

    def lm_path(self, with_silence: bool, order: int = 4) -> Path:
        """The phone n-gram that `unsupervised text` put beside it: of lines with `<SIL>`, or of the
        phones alone."""
        return self.folder / f"{order}gram{'_sil' if with_silence else ''}.arpa"


def write_phone_text(
    folder: Path,
    counts: dict[str, int],
    rows: Iterable[Sequence[int]],
    meta: dict[str, Any],
) -> PhoneText:
    """Write rows of ids and their dictionary: `counts` has the phones in the order of their ids,
    without the special ones and `<SIL>`. Empty rows are left out. `meta` is read behind the last
    row, so that making them may count in it. Raises ConfigError where no row is left."""
    symbols = check_symbols([*SPECIAL, *counts, SILENCE], folder)
    kind = "<u1" if len(symbols) <= 1 << 8 else "<u2" if len(symbols) <= 1 << 16 else "<u4"
    made(folder, "--output")
    (folder / META).unlink(missing_ok=True)  # what is written over is not whole
    digest = hashlib.sha256("\n".join(symbols).encode())
    with atomic(folder / "ids.npy") as ids_file, atomic(folder / "ends.npy") as ends_file:
        ids, ends = GrowingColumn(ids_file, kind), GrowingColumn(ends_file, "<u8")
        for row in rows:
            if len(row):
                ids.extend(row)
                ends.append(len(ids))
                digest.update(np.asarray(row, "<u4").tobytes() + b"\xff\xff\xff\xff")
        ids.finish()
        ends.finish()
        if not len(ends):
            raise ConfigError(f"no line of phones is left to write to {folder}")
    with atomic(folder / DICTIONARY) as file:
        file.writelines(f"{phone} {count}\n".encode() for phone, count in counts.items())
        file.write(f"{SILENCE} 0\n".encode())
    known = {
        "version": VERSION,
        "fingerprint": digest.hexdigest()[:16],
        "num_lines": len(ends),
        "num_ids": len(ids),
        "num_symbols": len(symbols),
    }
    with atomic(folder / META) as file:  # last: with it the folder is whole
        file.write(json.dumps({**known, **meta}, ensure_ascii=False, indent=1).encode() + b"\n")
    return PhoneText(folder)


def read_symbols(path: Path) -> list[str]:
    """The symbols of a dictionary (`phone count` a line, `<SIL>` last), the special ones first.
    Raises ConfigError."""
    symbols = [*SPECIAL]
    for number, line in enumerate(lines(path), 1):
        fields = decoded(line, path, number).split(" ")
        if len(fields) != 2 or not fields[1].isdigit():
            raise ConfigError(
                f"{path}, line {number}, is {' '.join(fields)!r} but must be a phone, a blank and "
                "a count"
            )
        symbols.append(fields[0])
    return check_symbols(symbols, path)


def strange_labels(labels: Iterable[dict[str, str]], symbols: Sequence[str]) -> str:
    """What to say where a tenth of the phones of labels, or more, are none of the symbols: errors
    counted against them mean nothing; "" where they fit."""
    counts = Counter(phone for label in labels for phone in label.get("phones", "").split())
    strange = {p: n for p, n in counts.most_common() if p not in symbols}
    share = sum(strange.values()) / max(1, counts.total())
    if share < MUCH:
        return ""
    return (
        f"{share:.0%} of the phones that the features have as labels are none of the text's "
        f"({' '.join([*strange][:8])}): the phone error rate counts them as errors, and says "
        "nothing of the reading"
    )


def check_symbols(symbols: list[str], path: Path) -> list[str]:
    """Themselves. Raises ConfigError where they are no symbols of a text of phones: some twice or
    with a blank, the special ones not first, `<SIL>` not last, no phone."""
    wrong = next((s for s in symbols if len(s.split()) != 1 or symbols.count(s) > 1), None)
    if wrong is not None:
        raise ConfigError(
            f"{path}: the phone {wrong!r} is there twice, has a blank, or is called as the special "
            f"ones are ({' '.join((*SPECIAL, SILENCE))}): rename it"
        )
    if tuple(symbols[: len(SPECIAL)]) != SPECIAL or symbols[-1] != SILENCE:
        raise ConfigError(
            f"{path} must have {' '.join(SPECIAL)} first and {SILENCE} last, but begins with "
            f"{' '.join(symbols[: len(SPECIAL)])} and ends with {symbols[-1]}"
        )
    if len(symbols) == len(SPECIAL) + 1:
        raise ConfigError(f"{path} has no phone")
    return symbols
