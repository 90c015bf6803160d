"""`w2v2dist unsupervised decode`: what a trained generator reads in stored features, and its phone
errors where the features have labels."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from w2v2dist.config import ConfigError, read_yaml
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.arguments import (
    decoding_arguments,
    decoding_from,
    num_trials,
    tuning_arguments,
)
from w2v2dist.decode.beam_config import Hypothesis
from w2v2dist.decode.decoders import DecodingConfig, identity, make_decoder
from w2v2dist.decode.emissions import Emission
from w2v2dist.decode.language_models import NO_LEXICON
from w2v2dist.decode.results import Line, own_folder, score, write
from w2v2dist.lm.arpa import MARKS, arpa_words, sniff
from w2v2dist.runtime.files import unwritable
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised.feature_store import FeatureStore
from w2v2dist.unsupervised.phone_text import (
    DICTIONARY,
    META,
    SILENCE,
    SPECIAL,
    PhoneText,
    strange_labels,
)
from w2v2dist.unsupervised.trained import Trained, open_trained
from w2v2dist.unsupervised.tune import Judge, Search, tune

NGRAM = "4gram.arpa"
PAIRED = (
    "{} holds pairs of segments; a search reads version 1 better in segments before they are "
    "paired: `w2v2dist unsupervised audio --segments` keeps them"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How outputs become phones: `<SIL>` is an optional blank between two, as in CTC."""

    search: DecodingConfig
    stride: int  # frames an output; it may be another than the training's
    silence_weight: float = 0.0  # added to the logit of <SIL>

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"--stride is {self.stride} but must be at least 1")
        if not np.isfinite(self.silence_weight):
            raise ConfigError(f"--silence-weight is {self.silence_weight} but must be finite")


def alphabet_of(symbols: list[str]) -> Alphabet:
    """The symbols as decoders know them: `<SIL>` is the blank, the special ones cannot be."""
    silence = len(symbols) - 1
    special = frozenset({*range(len(SPECIAL)), silence})
    return Alphabet(tokens=tuple(symbols), blank=silence, special=special, units="phones")


def emissions(
    trained: Trained, store: FeatureStore, stride: int, silence_weight: float = 0.0
) -> Iterator[Emission]:
    """Log-probabilities (O, V) of every utterance, in the order of the store. Each is heard alone:
    padding of a batch would change the last outputs of version 2. Raises ConfigError for features
    of another kind than the training's."""
    trained.check(store)
    for i in range(len(store)):
        frames = torch.from_numpy(store.frames(i)).unsqueeze(0)
        padding = torch.zeros(frames.shape[:2], dtype=torch.bool)
        with torch.no_grad():
            logits = trained.generator(frames, padding, stride).logits[0]
        logits[:, -1] += silence_weight
        yield logits.log_softmax(-1).numpy()


def decode(trained: Trained, store: FeatureStore, decoding: Decoding) -> list[Line]:
    """What is read in every utterance: phones between blanks, with the words of a lexicon beside
    them. Raises ConfigError for a language model or lexicon of other phones."""
    letters = alphabet_of(trained.symbols)
    _check_lm(decoding.search, trained.symbols)
    decoder = make_decoder(decoding.search, letters, torch.device("cpu"))
    for note in decoder.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    heard = emissions(trained, store, decoding.stride, decoding.silence_weight)
    beam = decoding.search.beam
    if decoding.search.decoder == "greedy":
        found: Iterable[list[Hypothesis]] = decoder.decode(heard, beam)
    else:
        found = decoder.decode(
            [*heard], beam
        )  # before processes are forked: they must not use torch
    shown = track(found, "decoding", len(store), console=console, transient=True)
    lines = [
        _line(store, key, best[0], letters) for key, best in zip(store.keys, shown, strict=True)
    ]
    decoder.close()
    return lines


def _line(store: FeatureStore, key: str, best: Hypothesis, letters: Alphabet) -> Line:
    phones = (store.labels.get(key) or {}).get("phones", "").split()
    truth = " ".join(phone for phone in phones if phone != SILENCE)
    more = {"lexicon_words": " ".join(best.words)} if best.words else {}
    score = {"score": round(best.score, 4)}
    return Line(key, truth, letters.decode(best.path), {**score, **more})


def _check_lm(search: DecodingConfig, symbols: list[str]) -> None:
    """Raise ConfigError where an n-gram of phones is of other phones than the run's."""
    if search.lm is None:
        return
    path = Path(search.lm)
    if (path / DICTIONARY).is_file():
        raise ConfigError(f"--lm {path} is a text of phones: give its n-gram, {path / NGRAM}")
    if (
        search.lexicon not in (None, NO_LEXICON)
        or not path.is_file()
        or path.suffix in (".pt", ".pth")
        or sniff(path) != "arpa"
    ):
        return
    words, own = {*arpa_words(path)}.difference(MARKS), {*symbols[len(SPECIAL) : -1]}
    if SILENCE in words:
        raise ConfigError(
            f"{path} has {SILENCE}, which a search has as a blank between phones: give the n-gram "
            f"without it ({NGRAM} of `w2v2dist unsupervised text`)"
        )
    if strange := sorted(words - own):
        raise ConfigError(
            f"{path} has {len(strange)} symbols that the run has not ({' '.join(strange[:5])}): it "
            "is of other phones, or of words; give the n-gram of the text of the training, or "
            "with words a --lexicon"
        )


def read_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, its features and how they are decoded, for `read_by`."""
    add = parser.add_argument
    add("--data", metavar="STORE", help="features (default: data.valid of the run)")
    text = "the text of phones that the run was trained on (default: its data.text, where it is)"
    add("--text", metavar="FOLDER", help=text)
    stride = "frames an output (default: the training's; version 2 reads better at 2 with an LM)"
    add("--stride", type=int, metavar="N", help=stride)
    rest = "added to the logit of <SIL> (default 0); more: fewer phones"
    add("--silence-weight", type=float, metavar="X", help=rest)
    before = "find the weights of the search in these features before, without labels"
    tuning_arguments(add, "STORE", before)
    parser.set_defaults(trust_pickle=False)
    decoding_arguments(parser, num_best=False)


@dataclass(frozen=True, slots=True)
class Read:
    """What was read, by what and how."""

    trained: Trained
    store: FeatureStore
    decoding: Decoding
    lines: list[Line]

    @property
    def name(self) -> str:
        """What tells it from other readings of the run."""
        search, parts = self.decoding.search, ["segments"] * (_stage(self.store) == "segments")
        parts += [self.store.folder.resolve().name, search.decoder, f"stride{self.decoding.stride}"]
        return "-".join([*parts, *[Path(n).name for n in (search.lm, search.lexicon) if n]])

    @property
    def asked(self) -> dict[str, Any]:
        """What it is known by."""
        known: dict[str, Any] = {"model": str(self.trained.folder), "data": self.store.fingerprint}
        known |= {"stride": self.decoding.stride, "silence_weight": self.decoding.silence_weight}
        if self.decoding.search.decoder != "greedy":
            known["beam"] = asdict(self.decoding.search.beam)
        return known | identity(self.decoding.search)

    def folder_in(self, run: str) -> Path:
        """Where a run keeps it: other readings stay."""
        return own_folder(Path(run) / "decoded", self.name, self.asked)


def _stage(store: FeatureStore) -> str | None:
    """What its frames are of version 1: pairs, segments."""
    return store.made_by.get("stage")


def read_by(args: argparse.Namespace, check: Callable[[FeatureStore], None] | None = None) -> Read:
    """Decode as the arguments say what passes the check. Raises ConfigError."""
    trials = num_trials(args)
    symbols = PhoneText(args.text).symbols if args.text else None
    trained = open_trained(Path(args.run), symbols)
    data = trained.config.data
    if symbols is None and data.text and (Path(data.text) / META).is_file():
        open_trained(Path(args.run), PhoneText(data.text).symbols)  # it may have been made anew
    given = args.data or data.valid
    if not given:
        raise ConfigError("the run has no data.valid: give features with --data STORE")
    store = FeatureStore(given)
    if check is not None:
        check(store)
    stride = trained.config.model.generator.stride if args.stride is None else args.stride
    search = dataclasses.replace(decoding_from(args), num_best=1)
    decoding = Decoding(search=search, stride=stride, silence_weight=_silence_weight(args))
    if args.tune is not None:
        decoding = _tuned(trained, decoding, args, trials)
        search = decoding.search
    if search.decoder != "greedy" and _stage(store) == "pairs":
        console.print(f"note: {PAIRED.format(store.folder)}", style="yellow", markup=False)
    return Read(trained, store, decoding, decode(trained, store, decoding))


def _silence_weight(args: argparse.Namespace) -> float:
    """The one that is given, else that of --weights, else none."""
    if args.silence_weight is not None or args.weights is None:
        return float(args.silence_weight or 0.0)
    try:
        return float(read_yaml(args.weights).get("silence_weight", 0.0))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"silence_weight of {args.weights} is no number: {error}") from None


def _tuned(trained: Trained, decoding: Decoding, args: argparse.Namespace, trials: int) -> Decoding:
    """The decoding with the weights that are the best in --tune. Raises ConfigError."""
    search = decoding.search
    search.check_tunable()
    text = args.text or trained.config.data.text
    if not text:
        raise ConfigError("--tune needs the text of phones of the training: name it with --text")
    store, phones, letters = FeatureStore(args.tune), PhoneText(text), alphabet_of(trained.symbols)
    _check_lm(search, trained.symbols)
    heard = [*emissions(trained, store, decoding.stride)]
    names = ["lm_weight", *["word_score"] * (search.lexicon not in (None, NO_LEXICON))]
    start = {name: getattr(search.beam, name) for name in names}
    start["silence_weight"] = decoding.silence_weight
    about: dict[str, Any] = {"model": str(trained.folder), "data": store.fingerprint}
    about |= {
        "text": phones.fingerprint,
        "stride": decoding.stride,
        **identity(search),
        "start": start,
    }
    about |= {k: v for k, v in asdict(search.beam).items() if k not in start}
    known = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    name = Read(trained, store, decoding, []).name
    folder = Path(args.run) / "decoded" / f"tuned-{name}-{known}"
    decoder = make_decoder(search, letters, torch.device("cpu"))
    tuned = Search(decoder=decoder, heard=heard, letters=letters, beam=search.beam)
    try:
        found = tune(tuned, Judge.of(phones, tuned.greedy()), about, start, folder, trials)
    finally:
        decoder.close()
    chosen: dict[str, Any] = {name: found[name] for name in start}
    shown = "   ".join(f"--{name.replace('_', '-')} {v:g}" for name, v in chosen.items())
    console.print(f"weights: {shown}   (see {folder / 'weights.json'})", markup=False)
    silence = chosen.pop("silence_weight")
    search = dataclasses.replace(search, beam=dataclasses.replace(search.beam, **chosen))
    return dataclasses.replace(decoding, search=search, silence_weight=silence)


def write_read(read: Read, folder: Path) -> dict[str, Any]:
    """Write what was read as evaluations are written; the scores are of utterances with labels."""
    labelled = [line for line in read.lines if line.reference]
    result = score(labelled, alphabet_of(read.trained.symbols)) if labelled else {}
    about = {
        "checkpoint": str(read.trained.folder),
        "data": str(read.store.folder),
        **result,
        "num_utterances": len(read.lines),
        "num_empty": sum(not line.hypothesis for line in read.lines),
        "asked": read.asked,
    }
    write(folder, read.lines, [], about, "word")
    return about


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised decode` takes."""
    parser.add_argument("run", metavar="RUN", help="run folder of task unsupervised, or a step's")
    read_arguments(parser)
    where = "where the results go (default: RUN/decoded/NAME)"
    parser.add_argument("--output", metavar="DIR", type=Path, help=where)


def run(args: argparse.Namespace) -> None:
    """Read stored features with a trained generator: the most likely phone of each output, or a
    search with an n-gram of phones, or of words by a lexicon. Writes what was read with phone
    errors, confusions and the worst utterances where the features have labels.

    example:
      w2v2dist unsupervised decode runs/unsupervised/v1 --data features/test
      w2v2dist unsupervised decode runs/unsupervised/v2 --data features/test --stride 2 \\
        --lm text/4gram.arpa
      w2v2dist unsupervised decode runs/unsupervised/v2 --data features/test --lm text/4gram.arpa \\
        --tune features/dev
      w2v2dist unsupervised decode runs/unsupervised/v2 --lm words.arpa --lexicon text/lexicon.txt
    """
    if args.output and (why := unwritable(args.output / "evaluation.json")):
        raise ConfigError(f"--output: {why}")
    read = read_by(args)
    folder = args.output or read.folder_in(args.run)
    about = write_read(read, folder)
    if strange := strange_labels(read.store.labels.values(), read.trained.symbols):
        console.print(f"note: {read.store.folder}: {strange}", style="yellow", markup=False)
    if "per" in about:
        rate, low, high = (100 * about[name] for name in ("per", "per_low", "per_high"))
        console.print(f"PER {rate:.2f} % ({low:.2f} to {high:.2f})", markup=False)
    empty = f", {about['num_empty']} of them empty" if about["num_empty"] else ""
    console.print(f"{about['num_utterances']} utterances{empty}   (see {folder})", markup=False)
