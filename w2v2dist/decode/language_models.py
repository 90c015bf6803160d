"""Language models by their names: n-grams of KenLM, Transformers of ours and of fairseq, and the
lexicon that a search needs with each."""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import torch

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.vocabulary import END, PAD, UNKNOWN, Vocabulary
from w2v2dist.decode.scorer import token_names
from w2v2dist.interop.language_model import open_language_model
from w2v2dist.interop.open import is_run
from w2v2dist.lm.arpa import MARKS, arpa_words, sniff
from w2v2dist.lm.lexicon import Lexicon, read_lexicon
from w2v2dist.model.language_model import TransformerLanguageModel

NO_LEXICON = "none"
ENDS = 1 << 20  # bytes
LM = "KenLM file (.arpa, .arpa.gz, .bin), or a run of a Transformer LM, or fairseq's .pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModel:
    """An opened one. Without a lexicon it is over the tokens of the alphabet."""

    name: str  # as it was given; "" is none
    lexicon: Lexicon | None
    path: Path | None = None  # of an n-gram
    module: TransformerLanguageModel | None = None
    vocabulary: Vocabulary | None = None  # of a Transformer
    notes: list[str] = field(default_factory=list)


def open_lm(
    name: str | None,
    alphabet: Alphabet,
    lexicon: str | None,
    device: torch.device,
    *,
    trust_pickle: bool = False,
) -> LanguageModel:
    """The language model of a name; None: none. `lexicon` is a file, "none" (the model is over
    tokens), or None: of all words of the model that the alphabet can spell, or "none" where these
    are its tokens. Raises ConfigError, ValueError."""
    if name is None:
        spelled = None if lexicon in (None, NO_LEXICON) else _read(lexicon, alphabet)
        return LanguageModel(name="", lexicon=spelled, notes=_said(spelled))
    path = Path(name)
    if not path.exists():
        raise ConfigError(f"the language model {name!r} does not exist: give a {LM}")
    if path.is_file() and path.suffix not in (".pt", ".pth"):
        kind = sniff(path)
        if lexicon is None and kind == "kenlm":
            raise ConfigError(
                f"{name} is a binary of KenLM, which does not list its words: give the lexicon "
                "with --lexicon (`w2v2dist lm text` makes one), or --lexicon none where it is over "
                "the alphabet's own tokens"
            )
        words = [*arpa_words(path)] if kind == "arpa" else []
        spelled = _lexicon(words, alphabet, lexicon)
        _check_known(spelled, words, lexicon, name)
        return LanguageModel(name=name, lexicon=spelled, path=path, notes=_said(spelled))
    opened = open_language_model(name, trust_pickle=trust_pickle)
    words = [*opened.vocabulary.symbols]
    if lexicon is None and opened.vocabulary.units != "words":
        lexicon = NO_LEXICON
    if lexicon == NO_LEXICON and opened.units == "words":
        raise ConfigError(
            f"{name} is a language model of words, but --lexicon none searches over tokens: leave "
            "--lexicon out, or give a language model of the alphabet's tokens"
        )
    spelled = _lexicon(words, alphabet, lexicon)
    if opened.vocabulary.units == "words":
        _check_known(spelled, words, lexicon, name)
    return LanguageModel(
        name=name,
        lexicon=spelled,
        module=opened.module.to(device),
        vocabulary=opened.vocabulary,
        notes=[*opened.notes, *_said(spelled)],
    )


def is_over_tokens(name: str, alphabet: Alphabet) -> bool:
    """Whether a language model is seen to be over the alphabet's own tokens."""
    path = Path(name)
    if path.is_file() and path.suffix not in (".pt", ".pth"):
        return sniff(path) == "arpa" and _lexicon([*arpa_words(path)], alphabet, None) is None
    return path.exists() and open_language_model(name).units == "tokens"


def content(name: str) -> str:
    """A file's or a run's name with what tells its content from another's."""
    path = Path(name)
    if path.is_dir():
        path = checkpoint.find(path) / "SHA256SUMS" if is_run(path) else path / "SHA256SUMS"
    if not path.is_file():
        return name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for at in (0, max(0, path.stat().st_size - ENDS)):  # of gigabytes, their ends
            file.seek(at)
            digest.update(file.read(ENDS))
    return f"{Path(name).name} ({path.stat().st_size} bytes, {digest.hexdigest()[:12]})"


def _lexicon(words: list[str], alphabet: Alphabet, given: str | None) -> Lexicon | None:
    if given == NO_LEXICON:
        return None
    if given is not None:
        return _read(given, alphabet)
    if {*words}.difference(MARKS) <= {*token_names(alphabet)}:
        return None
    return Lexicon.from_words(words, alphabet)


def _check_known(lexicon: Lexicon | None, words: list[str], given: str | None, name: str) -> None:
    """Raise ConfigError where a language model knows none of the words of a lexicon that was given:
    the search would find no word likely."""
    if (
        given is None
        or lexicon is None
        or not words
        or not lexicon.spellings.keys().isdisjoint(words)
    ):
        return
    here, there = (", ".join(map(repr, [*some][:3])) for some in (lexicon.spellings, words))
    raise ConfigError(
        f"{name} knows none of the words of --lexicon {given} ({here} …) but others ({there} …): "
        "give a language model of these words, in the same case (--lexicon none: over tokens)"
    )


def _read(name: str, alphabet: Alphabet) -> Lexicon:
    if not Path(name).is_file():
        raise ConfigError(
            f"the lexicon {name!r} does not exist: give a file with `word<TAB>token token …` in "
            "each line (`w2v2dist lm text` makes one), or none for a search over tokens"
        )
    return read_lexicon(Path(name), alphabet)


def _said(lexicon: Lexicon | None) -> list[str]:
    if lexicon is None:
        return []
    left = f", {lexicon.left_out} that it cannot spell left out" if lexicon.left_out else ""
    return [f"{len(lexicon.spellings):,} words in the alphabet's letters{left}"]


def symbols_of(text: str, alphabet: Alphabet) -> list[str]:
    """A text in the tokens of its alphabet, | between words."""
    names = token_names(alphabet)
    return [names[i] for i in alphabet.encode(text)]


@torch.no_grad()
def transformer_scores(lm: LanguageModel, texts: list[str], alphabet: Alphabet) -> list[float]:
    """Natural logarithms of the probabilities of texts, with their ends, by a Transformer."""
    assert lm.module is not None
    assert lm.vocabulary is not None
    device = next(lm.module.parameters()).device
    rows: list[list[int]] = []
    for text in texts:
        if lm.vocabulary.units == "words":
            rows.append(lm.vocabulary.encode(text))
        else:
            found = (lm.vocabulary.id_of(symbol) for symbol in symbols_of(text, alphabet))
            rows.append([UNKNOWN if i is None else i for i in found])
    width = max(map(len, rows)) + 1
    inputs = torch.full((len(rows), width), PAD)
    targets = inputs.clone()
    for row, ids in enumerate(rows):
        inputs[row, : len(ids) + 1] = torch.tensor([END, *ids])
        targets[row, : len(ids) + 1] = torch.tensor([*ids, END])
    features = lm.module(inputs.to(device))
    keep = (targets != PAD).to(device)
    lost = lm.module.nll(features[keep], targets.to(device)[keep]).cpu()
    ends = [0, *itertools.accumulate(len(ids) + 1 for ids in rows)]
    return [-float(lost[a:b].sum()) for a, b in itertools.pairwise(ends)]
