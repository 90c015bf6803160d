"""From a recipe's compact stages to single ones: loops, {values} and @references. Pure."""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from w2v2dist.config import ConfigError

VALUE = re.compile(r"\{(\w+(?:\.\w+)*)\}")
# At the start of a word, or of a part of one: --data @a,@b   data.train=@a
REFERENCE = re.compile(r"(?:^|(?<=[,=]))@([\w-]+)")
LATER = ("corpora", "out", "folder")  # what a fingerprint must not depend on: put in at last


def expanded(
    group: str, each: Mapping[str, Any], let: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and values of the stages that an entry stands for: GROUP_A_B for each of its
    combinations, the last loop running fastest. Raises ConfigError."""
    lists = [_values(group, name, value, let) for name, value in each.items()]
    for values in itertools.product(*lists):
        named = dict(zip(each, values, strict=True))
        name = "_".join([group, *(spelled(value) for value in values)])
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"stage {name!r}: a name is made of letters, digits, _ and -: give the value an id "
                "of these ({id: 10m, name: 10 min})"
            )
        yield name, {**let, **named}


def _values(group: str, name: str, value: Any, let: Mapping[str, Any]) -> list[Any]:
    """The values of a loop: a list, or the name of one under `let`."""
    found = let.get(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        known = ", ".join(k for k, v in let.items() if isinstance(v, list)) or "none"
        raise ConfigError(
            f"stages.{group}.each.{name} is {value!r} but must be a list, or the name of one under "
            f"let (there: {known}), with at least one value"
        )
    for item in found:
        if isinstance(item, dict) and "id" not in item:
            raise ConfigError(
                f"stages.{group}.each.{name} has {item}, which has no id: add one, the name of the "
                "stages is made of it"
            )
    return found


def spelled(value: Any) -> str:
    """A value as it stands in a text: of a mapping its id."""
    if isinstance(value, dict):
        return spelled(value.get("id"))
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(getattr(value, "text", value))


def filled(value: Any, values: Mapping[str, Any], where: str) -> Any:
    """A value with each {name} in it replaced but for those of LATER; a text that is only one
    becomes that value itself. Raises ConfigError."""
    if isinstance(value, dict):
        return {k: filled(v, values, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [filled(v, values, where) for v in value]
    if not isinstance(value, str):
        return value
    whole = VALUE.fullmatch(value)
    if whole and whole[1].split(".")[0] not in LATER:
        found = _lookup(whole[1], values, where)
        return spelled(found) if isinstance(found, dict) else found
    return VALUE.sub(
        lambda m: m[0] if m[1].split(".")[0] in LATER else spelled(_lookup(m[1], values, where)),
        value,
    )


def _lookup(name: str, values: Mapping[str, Any], where: str) -> Any:
    found: Any = values
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ConfigError(
                f"{where} has {{{name}}}, but there is no such value: the values are "
                f"{', '.join([*values, 'corpora.NAME', 'folder', 'out'])}"
            )
        found = found[part]
    return found


def words(command: Any, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A command line, as one text or as a list of words, as its words; a value is one word, however
    many blanks it has. Raises ConfigError."""
    try:
        parts = shlex.split(command) if isinstance(command, str) else list(command)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where} is {command!r}, which is no command line: {error}") from None
    return tuple(spelled(filled(part, values, where)) for part in parts)


def references(texts: Iterator[str]) -> list[str]:
    """The names behind every @, each once."""
    return list(dict.fromkeys(name for text in texts for name in REFERENCE.findall(text)))


def canonical(command: tuple[str, ...]) -> list[list[str]]:
    """A command without what cannot change its result: the order of its options, and processes."""
    groups: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            groups.append([name, value] if equals else [name])
        else:
            groups[-1].append(word)
    return [groups[0], *sorted(g for g in groups[1:] if g[0] != "--workers")]
