"""Files of alphabets: Hugging Face's vocab.json, fairseq's dict.ltr.txt, a symbol a line, ours."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from w2v2dist.data.alphabet import DELIMITER, Alphabet, Units, of_symbols
from w2v2dist.data.text import TextConfig, describe

OURS = "alphabet.json"
# Names under which the special symbols are known, where nothing says which they are
BLANKS = ("<pad>", "[PAD]", "<blank>", "<blk>")
OTHERS = ("<s>", "</s>", "<unk>", "[UNK]", "[CLS]", "[SEP]", "<bos>", "<eos>")
ROLES = ("pad_token", "unk_token", "bos_token", "eos_token")  # the blank first
BLANK_LINES = (" ", "<space>", "<SPACE>")  # a blank between words, in files of lines
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # what its dictionaries begin with; <s> is the blank


def read_alphabet(
    path: Path, units: Units = "characters", text: TextConfig | None = None
) -> Alphabet:
    """The alphabet of a file, or of a folder that has one (a run's, Hugging Face's). `units` and
    `text` are what the file does not say. Raises ValueError or OSError that name the file."""
    if path.is_dir():
        names = (OURS, "vocab.json", "dict.ltr.txt", "dict.phn.txt")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise ValueError(f"{path} has no alphabet: none of {', '.join(names)} is in it")
        path = found
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    try:
        if path.suffix.lower() == ".json":
            return _of_json(content, path.parent, units, text)
        return _of_lines(content, path.name, units, text)
    except ValueError as error:
        raise ValueError(f"the alphabet in {path} cannot be used: {error}") from None


def write_alphabet(path: Path, alphabet: Alphabet) -> None:
    """Write it as the name says: alphabet.json with all that it is, other .json as vocab.json,
    dict.* as fairseq does, else one symbol a line, without the special ones."""
    content = in_lines(alphabet, fairseq=path.name.startswith("dict."))
    if path.suffix == ".json":
        values = alphabet.to_dict() if path.name == OURS else vocabulary(alphabet)
        content = json.dumps(values, ensure_ascii=False, indent=1)
    path.write_text(content, encoding="utf-8")


def in_lines(alphabet: Alphabet, *, fairseq: bool) -> str:
    """A symbol a line, without the special ones; as `fairseq` writes its dictionaries, or plain."""
    blank = None if alphabet.delimiter is None else alphabet.tokens[alphabet.delimiter]
    symbols = [DELIMITER if symbol == blank else symbol for symbol in alphabet.symbols]
    return "".join(f"{symbol} 1\n" if fairseq else f"{symbol}\n" for symbol in symbols)


def vocabulary(alphabet: Alphabet) -> dict[str, int]:
    """Hugging Face's vocab.json: symbol to id."""
    return {token: i for i, token in enumerate(alphabet.tokens)}


def of_vocabulary(
    ids: Mapping[str, int], roles: Mapping[str, Any], units: Units, text: TextConfig | None = None
) -> Alphabet:
    """The alphabet of a vocab.json; `roles` is what tokenizer_config.json says of it. Ids without a
    symbol get a special one. Raises ValueError."""
    by_id: dict[int, str] = {}
    for symbol, i in ids.items():
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise ValueError(
                f"{describe(symbol)} has the id {i!r}, which is no whole number from 0"
            )
        if i in by_id:
            raise ValueError(
                f"{describe(by_id[i])} and {describe(symbol)} both have the id {i}: "
                "give each its own"
            )
        by_id[i] = symbol
    if len(by_id) <= max(by_id, default=0) - 1000:
        raise ValueError(f"its highest id is {max(by_id)} but it has {len(by_id)} symbols")
    named = {role: _content(roles.get(role)) for role in ROLES}
    blank = named["pad_token"]
    if blank not in ids:
        blank = next((symbol for symbol in BLANKS if symbol in ids), None)
    if blank is None:
        raise ValueError(
            f"it has no blank for CTC: none of its symbols is {', '.join(BLANKS)}, and there is no "
            "tokenizer_config.json beside it whose pad_token is one of them"
        )
    delimiter = _content(roles.get("word_delimiter_token", DELIMITER))
    if delimiter not in ids:
        delimiter = next((symbol for symbol in (DELIMITER, " ") if symbol in ids), None)
    tokens = [by_id.get(i, f"<unused-{i}>") for i in range(max(by_id) + 1)]
    aside = {blank, *named.values(), *BLANKS, *OTHERS}
    special = {i for i, token in enumerate(tokens) if token in aside or i not in by_id}
    delimited = units == "characters" and delimiter is not None
    return Alphabet(
        tokens=tuple(tokens),
        blank=ids[blank],
        special=frozenset(special),
        delimiter=ids[str(delimiter)] if delimited else None,
        units=units,
        text=text or TextConfig(),
    )


def of_fairseq(
    symbols: list[str],
    units: Units,
    text: TextConfig | None = None,
    folding: Literal["timit"] | None = None,
) -> Alphabet:
    """The alphabet of the symbols of a fairseq dictionary."""
    tokens = (*FAIRSEQ, *symbols)
    delimited = units == "characters" and DELIMITER in tokens
    delimiter = tokens.index(DELIMITER) if delimited else None
    return Alphabet(
        tokens=tokens,
        delimiter=delimiter,
        units=units,
        folding=folding,
        text=text or TextConfig(),
    )


def _of_json(content: str, folder: Path, units: Units, text: TextConfig | None) -> Alphabet:
    try:
        values = json.loads(content, object_pairs_hook=_no_twins)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(values, dict) or not values:
        raise ValueError("it is no JSON object of symbols and their ids")
    if isinstance(values.get("tokens"), list):
        ours = Alphabet.from_dict(values)
        return ours if text in (None, TextConfig()) else dataclasses.replace(ours, text=text)
    if "model" in values and "added_tokens" in values:
        raise ValueError("it is a tokenizer.json: give the vocab.json beside it")
    if all(isinstance(v, dict) for v in values.values()):
        raise ValueError(
            f"it holds {len(values)} languages ({', '.join([*values][:5])}, …), as MMS has them: "
            "write the one that you need into a file of its own"
        )
    roles, more = tokenizer_settings(folder)
    phones = {"phone_delimiter_token", "phonemizer_lang"} & roles.keys()
    if phones or "Phoneme" in str(roles.get("tokenizer_class")):
        units = "phones"
    return of_vocabulary(
        {**values, **{k: v for k, v in more.items() if k not in values}}, roles, units, text
    )


def tokenizer_settings(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What the files of a Hugging Face tokenizer say: its settings, and symbols beside vocab.json's
    with their ids."""
    roles: dict[str, Any] = {}
    more: dict[str, int] = {}
    for name in (
        "config.json",  # of the model: the least, where the others do not say
        "special_tokens_map.json",
        "tokenizer_config.json",
        "added_tokens.json",
    ):
        if not (path := folder / name).is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from None
        if name == "config.json":
            roles |= {k: values[k] for k in ("tokenizer_class",) if k in values}
        elif name == "added_tokens.json":
            more |= {k: v for k, v in values.items() if isinstance(v, int)}
        else:
            roles |= values
    added = roles.get("added_tokens_decoder")
    for i, token in added.items() if isinstance(added, dict) else ():
        if str(i).isdigit() and (symbol := _content(token)) is not None:
            more.setdefault(symbol, int(i))
    return roles, more


def _of_lines(content: str, name: str, units: Units, text: TextConfig | None) -> Alphabet:
    lines = [line.rstrip("\r") for line in content.split("\n")]  # str.splitlines knows more ends
    counted = [re.fullmatch(r"(.+) \d+( #fairseq:overwrite)?", line.rstrip(" ")) for line in lines]
    fairseq = name.startswith("dict.") or any(counted)
    symbols = [DELIMITER if line in BLANK_LINES else line.strip(" \t") for line in lines]
    if fairseq:
        for number, (line, match) in enumerate(zip(lines, counted, strict=True), 1):
            if line.strip() and match is None:
                raise ValueError(
                    f"line {number} is {line!r} but must be a symbol, a blank and a count, as in "
                    "all of fairseq's dictionaries: fetch it again"
                )
        symbols = [match[1] for match in counted if match]
    symbols = [symbol for symbol in symbols if symbol]
    if not symbols:
        raise ValueError("it has no symbol: write one a line")
    numbered: dict[str, int] = {}
    for number, symbol in enumerate(symbols, 1):
        if symbol in numbered:
            raise ValueError(
                f"{describe(symbol)} is there twice (symbols {numbered[symbol]} and {number}), and "
                "would have two ids: remove one"
            )
        numbered[symbol] = number
    if fairseq:
        return of_fairseq(symbols, units, text)
    if {*symbols} & {*BLANKS, *OTHERS}:
        return of_vocabulary({s: n - 1 for s, n in numbered.items()}, {}, units, text)
    return of_symbols(symbols, units=units, text=text)


def _content(token: Any) -> str | None:
    """A special token: its text, or a mapping that has it as `content`."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{describe(key)} is there twice: remove one")
        out[key] = value
    return out
