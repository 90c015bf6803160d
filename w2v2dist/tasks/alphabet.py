"""The alphabet of a fine-tuning: the one that `data.tokens` names, or that its run began with."""

from pathlib import Path

from rich.progress import track

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet, UnknownSymbolError, alphabet
from w2v2dist.data.alphabet_file import OURS, read_alphabet
from w2v2dist.data.source import open_index
from w2v2dist.data.texts import count_symbols, read_labels
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import console
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.training.agreed import agreed
from w2v2dist.training.run_folder import has_saved

NAMED = ("letters", "phones")


def agreed_alphabet(config: FinetuneConfig, world: World) -> Alphabet:
    """`training_alphabet` of rank 0, which alone reads; collective. Raises ConfigError in all, also
    where the validation set could not be measured in it."""

    def found() -> Alphabet:
        tokens = training_alphabet(config)
        if not has_saved(Path(config.run_dir)):  # else it has been measured, or the run differs
            check_validation(config, tokens)
        return tokens

    return agreed(found, world)


def check_validation(config: FinetuneConfig, tokens: Alphabet) -> None:
    """Raise ConfigError where data.valid has labels, but the alphabet can spell none of them. Reads
    up to the first that it can."""
    if not config.data.valid:
        return
    first: UnknownSymbolError | None = None
    count = 0
    for label in read_labels(open_index(config.data.valid, "data.valid"), tokens.units):
        try:
            if tokens.encode(label):
                return
        except UnknownSymbolError as error:
            first, count = first or error, count + 1
    if first is not None:
        raise ConfigError(
            f"no utterance of data.valid has a usable label ({count} have one); the first: {first}"
        )


def training_alphabet(config: FinetuneConfig) -> Alphabet:
    """The alphabet of `data.tokens`. One made of texts, or of a file that is gone, is read from the
    run folder once the run has saved. Raises ValueError, OSError."""
    data, kept = config.data, Path(config.run_dir) / OURS
    path = Path(data.tokens)
    if data.tokens == "letters" and data.units == "phones":
        raise ConfigError(
            "data.units is phones but data.tokens letters: name phones (TIMIT's), auto or a file"
        )
    if data.tokens in NAMED:
        return alphabet(data.tokens, data.text)
    if data.tokens != "auto" and path.exists():
        found = read_alphabet(path, data.units, data.text).check()
        if data.units == "phones" and found.units != "phones":
            raise ConfigError(
                f"data.units is phones but the alphabet in {path} is of characters: name one of "
                "phones, or set data.units=characters"
            )
        return found
    if kept.exists() and has_saved(Path(config.run_dir)):
        return read_alphabet(kept)
    if data.tokens != "auto":
        raise ConfigError(
            f"data.tokens is {data.tokens!r}, which does not exist: give letters, phones, auto (of "
            "the training's texts) or a file (`w2v2dist alphabet SHARDS --output FILE` makes one)"
        )
    index = open_index(data.train, "data.train")
    labels = read_labels(index, data.units)
    shown = track(labels, "reading texts", len(index), console=console, transient=True)
    return count_symbols(shown, data.units, data.text).alphabet().check()
