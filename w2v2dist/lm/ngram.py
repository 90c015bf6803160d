"""`w2v2dist lm ngram`: an n-gram language model of a text."""

import argparse
import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from w2v2dist.config import ConfigError
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.lm.arpa import MARKS
from w2v2dist.lm.kneser_ney import FALLBACK, Corpus, estimate, read_corpus, write_arpa
from w2v2dist.lm.lines import decoded, lines, named, progress, text_files
from w2v2dist.runtime.logging import console

ENDS = (".arpa", ".arpa.gz", ".bin")
LOWEST, HIGHEST = 2, 6  # KenLM's, as decoders are built: it reads no unigrams
BYTES_A_TOKEN = 30  # and order, of our estimator at its peak
SMALLEST, BYTES_A_BYTE = 200 << 20, 40  # of lmplz: for its tables, and to sort n-grams in memory
RESERVED = frozenset(mark.encode() for mark in MARKS)
BUILD = "https://kheafield.com/code/kenlm; its lmplz works on the disk, with texts of any size"


@dataclass(frozen=True, slots=True)
class Settings:
    """Of an n-gram model: `prune[k]`, how often an n-gram of order k + 1 may be there and is left
    out all the same (the last holds for higher orders, too); the words that are known (None: all of
    the text)."""

    order: int
    prune: tuple[int, ...] = (0,)
    vocabulary: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not LOWEST <= self.order <= HIGHEST:
            raise ConfigError(
                f"--order is {self.order} but must be from {LOWEST} to {HIGHEST}, which KenLM, and "
                "so a decoder, reads"
            )
        if len(self.prune) > self.order or [*self.prune] != sorted(self.prune):
            raise ConfigError(
                f"--prune is {' '.join(map(str, self.prune))} but must be up to {self.order} "
                "numbers, one an order, none smaller than the one before it"
            )
        if self.prune[0] < 0:
            raise ConfigError(f"--prune is {self.prune[0]} but must be at least 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist lm ngram` takes."""
    add = parser.add_argument
    text = "files of text (also .gz) as `lm text` writes them: a sentence a line, words between "
    add("text", nargs="+", metavar="TEXT", help=text + "blanks; - for standard input")
    add("--order", type=int, default=4, metavar="N", help="the longest n-grams (default: 4)")
    target = "FILE.arpa, .arpa.gz, or .bin (KenLM's binary; needs its build_binary on the PATH)"
    add("--output", required=True, type=Path, metavar="FILE", help=target)
    prune = "leave out n-grams that are there so often or less, a number an order; the last holds "
    prune += "for higher orders, too (0 0 1: trigrams and longer ones that are there once)"
    add("--prune", type=int, nargs="+", default=[0], metavar="COUNT", help=prune)
    vocabulary = "a dict.txt (`lm text`) or a word a line: other words are unknown (<unk>)"
    add("--vocabulary", type=Path, metavar="FILE", help=vocabulary)
    how = "KenLM's lmplz, or our own in memory; auto: lmplz where it is on the PATH"
    add("--estimator", choices=("auto", "lmplz", "own"), default="auto", help=how)


def run(args: argparse.Namespace) -> int:
    """Estimate an interpolated modified Kneser-Ney n-gram: by KenLM's lmplz where it is on the
    PATH, else in memory with the same numbers. In memory, a million words of order 4 need 0.1 GB
    and 3 s (each order a quarter of it).

    example:
      w2v2dist lm ngram lm/words/text.txt --order 4 --prune 0 0 1 --output lm/words/4gram.arpa
      w2v2dist lm ngram lm/letters/text.txt --order 6 --output lm/letters/6gram.arpa.gz
    """
    if not str(args.output).endswith(ENDS):
        raise ConfigError(f"--output is {args.output} but must end in {', '.join(ENDS)}")
    if args.output.exists():
        raise ConfigError(f"{args.output} exists: remove it or choose another --output")
    words = None if args.vocabulary is None else _vocabulary(args.vocabulary)
    settings = Settings(args.order, tuple(args.prune), words)
    lmplz = shutil.which("lmplz") if args.estimator != "own" else None
    if args.estimator == "lmplz" and lmplz is None:
        raise ConfigError(
            f"KenLM's lmplz is not on the PATH: leave --estimator out, or build KenLM ({BUILD})"
        )
    binary = args.output.suffix == ".bin"
    if binary and not shutil.which("build_binary"):
        raise ConfigError(
            f"--output is {args.output}, but KenLM's build_binary is not on the PATH: write "
            ".arpa.gz, which decoders read as well, or build KenLM"
        )
    paths = text_files(args.text)
    made(args.output.parent, "--output")
    with _target(args.output) as file:
        if lmplz is None:
            if args.estimator == "auto":
                console.print("lmplz is not on the PATH: estimating in memory")
            notes = _in_memory(paths, settings, file)
        else:
            notes = _by_lmplz(lmplz, paths, settings, file, args.output.parent)
    for note in notes:
        console.print(f"note: {note}", style="yellow")
    console.print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def checked(paths: list[str]) -> Iterator[bytes]:
    """The sentences of texts, with a progress bar; empty lines are none. Raises ConfigError where
    there is none, or a line is not UTF-8 or has a mark that is the model's own."""
    bar, of = progress("reading texts", paths)
    count = 0
    with bar:
        for path in paths:
            for number, line in enumerate(lines(path, of(path)), 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not line.isascii():
                    decoded(line, path, number)
                words = line.replace(b"\0", b" ").split()  # to lmplz it is a blank
                if b"<" in line and (found := RESERVED.intersection(words)):
                    mark = min(found).decode()
                    raise ConfigError(
                        f"{named(path)}, line {number}, has the word {mark}, which means something "
                        "else in language models: remove it (`w2v2dist lm text` leaves such "
                        "sentences out)"
                    )
                if words:
                    count += 1
                    yield b" ".join(words)
    if not count:
        raise ConfigError(f"there is no sentence in {', '.join(map(named, paths))}")


def _in_memory(paths: list[str], settings: Settings, file: BinaryIO) -> list[str]:
    """Write the model that our own estimator makes; notes on it."""
    corpus = read_corpus(checked(paths))
    _check_memory(corpus, settings.order)
    words = settings.vocabulary
    allowed = None if words is None else {word.encode() for word in words}
    with console.status("estimating"):
        orders = estimate(corpus, settings.order, settings.prune, allowed)
    with console.status("writing"):
        write_arpa(file, corpus.words, orders)
    return _fell_back([k for k, order in enumerate(orders, 1) if order.fell_back])


def _fell_back(orders: list[int]) -> list[str]:
    shown = ", ".join(f"{amount:g}" for amount in FALLBACK)
    which = ", ".join(map(str, orders))
    why = "the text is too small for its own, or artificial (of letters and phones it is usual)"
    return [f"the discounts of order {which} are {shown}: {why}"] if orders else []


def _by_lmplz(
    lmplz: str, paths: list[str], settings: Settings, file: BinaryIO, folder: Path
) -> list[str]:
    """Write the model that lmplz makes (its temporary files are in `folder`); notes on it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lmplz.") as scratch:
        command = [lmplz, "--order", str(settings.order), "--discount_fallback"]
        command += ["-S", f"{_sorting_memory(paths) >> 20}M", "-T", f"{scratch}/"]
        command += ["--prune", *map(str, settings.prune)]
        if settings.vocabulary is not None:
            words = Path(scratch, "words")
            words.write_text("\n".join(sorted(settings.vocabulary)), encoding="utf-8")
            command += ["--limit_vocab_file", str(words)]
        with Path(scratch, "said").open("w+b") as said:
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said)
            try:
                _through(process, paths, file)
            finally:
                process.kill()  # nothing where it has ended
                status = process.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
    if status:
        raise ConfigError(
            f"lmplz failed (status {status}): {complaint(text)}; --estimator own needs no lmplz"
        )
    orders = re.findall(r"fallback discounts for order (\d+)", text)
    return _fell_back([int(order) + 1 for order in orders])


def complaint(said: str) -> str:
    """What one of KenLM's programs says that is wrong, of its stderr: what follows the exception,
    else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" *\n") not in ("", "ERROR")]
    thrown = [n for n, line in enumerate(lines[:-1], 1) if re.search(r" threw \w+", line)]
    return " ".join(lines[thrown[-1] if thrown else -1 :])


def _sorting_memory(paths: list[str]) -> int:
    """Bytes that lmplz may reserve: half of what is free, and for a small text no more than it
    needs, since what is reserved costs time."""
    half = max(SMALLEST, available_memory() // 2)
    if "-" in paths:
        return half
    size = sum(Path(path).stat().st_size * (4 if path.endswith(".gz") else 1) for path in paths)
    return min(half, SMALLEST + BYTES_A_BYTE * size)


def _through(process: subprocess.Popen[bytes], paths: list[str], file: BinaryIO) -> None:
    """Give it the text and take the model, which it writes when it has read all."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as stdin:
            for sentence in checked(paths):
                stdin.write(sentence + b"\n")
    except BrokenPipeError:  # it failed: its status says so
        pass
    with console.status("estimating"):
        shutil.copyfileobj(process.stdout, file, 1 << 20)
    process.wait()


@contextmanager
def _target(path: Path) -> Iterator[BinaryIO]:
    """The file that an ARPA text is written to, that `path` may become what its name says."""
    if path.suffix == ".bin":
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".binary.") as folder:
            text, binary = Path(folder, "arpa"), Path(folder, "bin")
            with text.open("wb") as file:
                yield file
            command = ["build_binary", str(text), str(binary)]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode:
                said = complaint(done.stderr.decode(errors="replace"))
                raise ConfigError(f"build_binary failed: {said}")
            with binary.open("rb") as found, atomic(path) as file:
                shutil.copyfileobj(found, file, 1 << 20)
        return
    with atomic(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                yield cast(BinaryIO, packed)
        else:
            yield file


def _vocabulary(path: Path) -> frozenset[str]:
    """The first word of each line."""
    found = (decoded(line, path, n).split(" ")[0] for n, line in enumerate(lines(path), 1))
    words = frozenset(found) - {"", *MARKS}
    if not words:
        raise ConfigError(f"{path} has no word: write one a line, or take a dict.txt")
    return words


def _check_memory(corpus: Corpus, order: int) -> None:
    """Raises ConfigError where the estimate would not fit into memory."""
    needed, free = len(corpus.tokens) * order * BYTES_A_TOKEN, available_memory()
    if needed > free:
        raise ConfigError(
            f"{corpus.num_words:,} words of order {order} need about {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: take a part of the text or a lower --order, or put "
            f"KenLM on the PATH ({BUILD})"
        )


def available_memory() -> int:
    """Bytes that can be used now, on this machine and in this job's control group."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    free = [int(kb) * 1024 for kb in re.findall(r"MemAvailable: +(\d+)", meminfo)]
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii")
        free += [] if limit == "max" else [max(0, int(limit) - int(used))]
    except (OSError, ValueError):  # no such group, or of the first version
        pass
    return min(free, default=1 << 30)
