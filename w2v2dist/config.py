"""YAML and `key=value` overrides to frozen dataclasses, with errors that name the nearest key."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import json
import os
import re
import types
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")
PAPER = Path(__file__).with_name("paper.yaml")
TAGS = ("int", "float", "timestamp")  # of YAML 1.1, which Loader reads in its own way


class _Int(int):
    """A whole number that remembers how it was written: in a field of text that is its value."""

    text: str


class _Float(float):
    text: str


class Loader(yaml.SafeLoader):
    """YAML as people mean it: 24:00:00 is no number of base 60, 0010 none of base 8, and
    2026-11-21 no date but text; a key stands once, and nothing is in itself."""

    # A copy: the lists of the base class stay
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.split(":")[-1] not in TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As the base class, deep at once: it refuses an anchor that is in itself only so."""
        return super().construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, which takes the last of several keys of one name."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _construct(loader: Loader, node: yaml.ScalarNode) -> Any:
    out: Any
    if node.tag.endswith("int"):
        out = _Int(loader.construct_yaml_int(node))
    else:
        out = _Float(loader.construct_yaml_float(node))
    out.text = node.value
    return out


INT = r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"
FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.[0-9_]+)$|\.nan$"
for _tag, _pattern in (("int", INT), ("float", FLOAT)):
    _name = f"tag:yaml.org,2002:{_tag}"
    Loader.add_implicit_resolver(_name, re.compile(_pattern), list("-+.0123456789"))
    Loader.add_constructor(_name, _construct)


class ConfigError(ValueError):
    """A configuration that cannot be used; it names the key, the value, the rule and the remedy."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file, over the file that its `base:` key names by a path relative to it."""
    contents = [content for _, content in layers(path)]
    return functools.reduce(merge, reversed(contents))


def layers(path: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A YAML file, its base, the base of that, and so on: where they lie, and what is in them but
    for the key `base`. Raises ConfigError."""
    seen: list[Path] = []
    following: Path | None = Path(path)
    while following is not None:
        if (place := Path(os.path.realpath(following))) in seen:
            files = " -> ".join(map(str, [*seen[seen.index(place) :], place]))
            raise ConfigError(
                f"configuration {path} has a file that is its own base ({files}): take the line "
                "`base:` out of one of them"
            )
        seen.append(place)
        content = _read_one(following)
        base = content.pop("base", None)
        yield place, content
        following = None if base is None else following.parent / str(base)


def _read_one(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"configuration {path} does not exist{hint}") from None
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
            raise  # the place may be right
        reason = f"cannot be read ({error.strerror})"
        raise ConfigError(f"configuration {path} {reason}: name a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # also of bytes that are no text
        raise ConfigError(f"configuration {path} is not valid YAML: {error}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys to values")
    return content


@functools.cache
def read_paper(section: str) -> dict[str, Any]:
    """A section of the papers' numbers (paper.yaml), to be read only."""
    values: dict[str, Any] = read_yaml(PAPER)[section]
    return values


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Overlay nested mappings: a value of `over` wins, mappings are merged key by key."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def parse_overrides(overrides: list[str], cls: type[Any] | None = None) -> dict[str, Any]:
    """`["data.seed=1", "model.num_layers=2"]` to nested mappings; values are read as YAML, those of
    keys that are text in `cls` as they are written. Raises ConfigError."""
    out: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"override {text!r} must have the form key=value, for example data.num_workers=4"
            )
        node: Any = None
        if _is_text(cls, key) and value not in ("", "null", "~"):
            node = value
        elif value:
            try:
                node = yaml.load(value, Loader)
            except yaml.YAMLError as error:
                reason = str(error).split("\n")[0]
                raise ConfigError(f"override {text!r} has no value of YAML: {reason}") from None
        for part in reversed(key.split(".")):
            node = {part: node}
        out = merge(out, node)
    return out


def _is_text(cls: type[Any] | None, key: str) -> bool:
    """Whether a dotted key is of text."""
    hint: Any = cls
    for part in key.split("."):
        hint = get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint is str or str in get_args(hint)


def expand_paths(config: T, prefix: str = "") -> T:
    """The configuration with ~ and $VARIABLES in its paths (fields of `path`) replaced. Raises
    ConfigError for a variable that is not set."""
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value, key = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            changed[item.name] = expand_paths(value, f"{key}.")
        elif item.metadata.get("path") and isinstance(value, str):
            names = [os.path.expanduser(os.path.expandvars(name)) for name in value.split(",")]
            changed[item.name] = ",".join(names)
            if unset := re.search(r"\$\{?\w+\}?", changed[item.name]):
                raise ConfigError(
                    f"{key} is {value!r}, but the environment has no {unset[0]}: set it, or write "
                    "the path itself"
                )
    return dataclasses.replace(config, **changed) if changed else config  # type: ignore[type-var]


def from_dict(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """The (nested) dataclass `cls` of plain values. Raises ConfigError, a line for each mistake."""
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [f.name for f in fields]
    kwargs: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
            known = f"the keys are: {', '.join(names)}"
            hint = f"did you mean {prefix}{near[0]}?" if near else known
            problems.append(f"{prefix}{key} is not a configuration key; {hint}")
            continue
        try:
            kwargs[key] = _convert(hints[key], value, f"{prefix}{key}")
        except ConfigError as error:
            problems.append(str(error))
    problems += [
        f"{prefix}{f.name} is missing: add it to the file or pass {prefix}{f.name}=VALUE"
        for f in fields
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        return cls(**kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix.rstrip('.') or 'configuration'}: {error}") from None


def may_change(default: Any, *, path: bool = False) -> Any:
    """A field that a resumed run may change, because no number and no data depend on it."""
    return dataclasses.field(default=default, metadata={"may_change": True, "path": path})


def at_least(config: Any, least: int, names: str) -> None:
    """Raise ValueError for the first of these fields (separated by blanks) that is smaller."""
    for name in names.split():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)} but must be at least {least}")


def changeable(cls: type[Any], prefix: str = "") -> list[str]:
    """The dotted keys of `cls` that a resumed run may change; "alarms" stands for all below it."""
    hints, out = get_type_hints(cls), []
    for item in dataclasses.fields(cls):
        if item.metadata.get("may_change"):
            out.append(prefix + item.name)
        elif dataclasses.is_dataclass(hint := hints[item.name]) and isinstance(hint, type):
            out += changeable(hint, f"{prefix}{item.name}.")
    return out


def is_within(key: str, names: Collection[str]) -> bool:
    """Whether a dotted key, or the section that it is in, is one of the names."""
    return key in names or key.partition(".")[0] in names


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    rule = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint)
    if origin in (Union, types.UnionType):
        options = [a for a in arguments if a is not type(None)]
        optional = len(options) < len(arguments)
        return None if value is None and optional else _convert(options[0], value, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        rule, value = "a mapping", {} if value is None else value
        if isinstance(value, dict):
            return from_dict(hint, value, f"{key}.")
    elif origin is Literal:
        rule = "one of " + ", ".join(map(repr, arguments))
        if value in arguments:
            return value
    elif origin is tuple:
        rule = "a list"
        if isinstance(value, (list, tuple)):
            return tuple(_convert(arguments[0], v, f"{key}[{i}]") for i, v in enumerate(value))
    elif origin is dict:
        rule = "a mapping"
        if isinstance(value, dict):
            if words := [k for k in value if isinstance(k, bool) or k is None]:
                raise ConfigError(
                    f"{key} has the key {words[0]}, as YAML reads a word (yes, no, on, off, null): "
                    "put it into quotes"
                )
            return {str(k): _convert(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
    elif hint not in (int, float, str):
        if hint is Any or isinstance(value, hint):
            return value
    elif hint is str and isinstance(value, bool):
        rule = "text: YAML reads this word as true or false, put it into quotes"
    elif hint is str and isinstance(value, (_Int, _Float)):
        return value.text
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if hint is not int or isinstance(value, int):
                return hint(value)
            if float(value).is_integer():  # PyYAML reads 14e5 as a string
                return int(float(value))
    raise ConfigError(f"{key} is {value!r} but must be {rule or hint}")


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain values that YAML and JSON can hold (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level: `{"a": {"b": 1}}` to `{"a.b": 1}`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys (dotted) whose values differ, with both values."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}
