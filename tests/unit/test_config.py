"""YAML and overrides to dataclasses: what is read as what, and what the errors say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from w2v2dist.config import (
    ConfigError,
    diff,
    expand_paths,
    flatten,
    from_dict,
    merge,
    parse_overrides,
    read_yaml,
    to_dict,
    to_yaml,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    lr: float = 1e-3
    num_layers: int = 12
    kernels: tuple[int, ...] = (10, 3)
    norm: Literal["group", "layer"] = "group"

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers is {self.num_layers} but must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    run_dir: str
    flag: bool = False
    start: str | None = "x"
    environment: dict[str, str] = field(default_factory=dict)
    leaf: Leaf = field(default_factory=Leaf)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_base_then_file_then_overrides(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "run_dir: a\nleaf: {lr: 3e-4, num_layers: 2}\n")
    path = write(tmp_path / "sub/run.yaml", "base: ../base.yaml\nleaf: {num_layers: 3}\n")
    overrides = parse_overrides(["leaf.norm=layer", "start=null", "leaf.kernels=[5, 2, 2]"])
    config = from_dict(Root, merge(read_yaml(path), overrides))
    leaf = Leaf(lr=3e-4, num_layers=3, kernels=(5, 2, 2), norm="layer")
    assert config == Root(run_dir="a", start=None, leaf=leaf)


@pytest.mark.parametrize("text", ["3e-4", "0.0003", "'3e-4'", "3.0e-4"])
def test_numbers_however_yaml_reads_them(text: str) -> None:
    assert from_dict(Root, {"run_dir": "a", "leaf": yaml.safe_load(f"lr: {text}")}).leaf.lr == 3e-4


@pytest.mark.parametrize("text", ["1_400", "1400", "1.4e+3", "1.4e3", "1400.0"])
def test_whole_numbers(text: str) -> None:
    overrides = [f"leaf.num_layers={text}"]
    assert from_dict(Leaf, parse_overrides(overrides)["leaf"]).num_layers == 1400


WRONG_LEAVES: list[tuple[str, Any, str]] = [
    ("num_layer", 1, "leaf.num_layer is not a configuration key; did you mean leaf.num_layers"),
    ("num_layers", 1.5, "leaf.num_layers is 1.5 but must be a whole number"),
    ("num_layers", True, "leaf.num_layers is True but must be a whole number"),
    ("num_layers", float("inf"), "leaf.num_layers is inf but must be a whole number"),
    ("num_layers", 0, "leaf: num_layers is 0 but must be at least 1"),
    ("lr", "fast", "leaf.lr is 'fast' but must be a number"),
    ("norm", "batch", "leaf.norm is 'batch' but must be one of 'group', 'layer'"),
    ("kernels", 3, "leaf.kernels is 3 but must be a list"),
    ("kernels", [3, "x"], r"leaf.kernels\[1\] is 'x' but must be a whole number"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG_LEAVES)
def test_errors_name_key_value_and_rule(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Root, {"run_dir": "a", "leaf": {key: value}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zzzzqqq": 1}, "zzzzqqq is not a configuration key; the keys are: run_dir, flag"),
        ({"leaf": 3}, "leaf is 3 but must be a mapping"),
        ({"flag": "maybe"}, "flag is 'maybe' but must be true or false"),
        ({"run_dir": None}, "run_dir is None but must be text"),
        ({"environment": [1]}, "environment is .* but must be a mapping"),
        ({}, "run_dir is missing: add it to the file or pass run_dir=VALUE"),
    ],
)
def test_errors_at_the_top(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Root, values)


@pytest.mark.parametrize("text", ["leaf.lr", "=3", "--fast"])
def test_overrides_need_the_form_key_value(text: str) -> None:
    with pytest.raises(ConfigError, match="must have the form key=value"):
        parse_overrides([text])


def test_the_last_override_wins_and_others_stay() -> None:
    assert parse_overrides(["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    assert parse_overrides(["a="]) == {"a": None}
    assert parse_overrides(["path=s3://x?y=z"]) == {"path": "s3://x?y=z"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1, c: 2, b: 3}", r"the key 'b' stands there twice(.|\n)*line 1"),
        ("a: 1\nb: 2\na: 3", r"the key 'a' stands there twice(.|\n)*line 3"),
        ("a: &x {b: *x}", "recursive"),
        ("a: &x [*x]", "recursive"),
        ("a: b\0", "not valid YAML"),
    ],
)
def test_keys_that_stand_twice_and_values_in_themselves(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path / "x.yaml", text))


def test_a_mapping_may_win_over_the_one_that_it_takes_in(tmp_path: Path) -> None:
    text = "a: &x {k: 1, l: [1]}\nb: {<<: *x, k: 2}\nc: *x"
    found = read_yaml(write(tmp_path / "x.yaml", text))
    assert found == {"a": {"k": 1, "l": [1]}, "b": {"k": 2, "l": [1]}, "c": {"k": 1, "l": [1]}}


def test_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path / "base_ls960.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"does not exist; did you mean base_ls960\.yaml"):
        read_yaml(tmp_path / "base_ls90.yaml")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(write(tmp_path / "broken.yaml", "a: [1"))
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Too many levels of symbolic links"):
        read_yaml(tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match="must be a mapping"):
        read_yaml(write(tmp_path / "list.yaml", "- 1"))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(write(tmp_path / "code.yaml", "a: !!python/object/apply:os.getcwd []"))
    assert read_yaml(write(tmp_path / "empty.yaml", "")) == {}


leaves = st.builds(
    Leaf,
    lr=st.floats(1e-9, 1.0),
    num_layers=st.integers(1, 10**9),
    kernels=st.lists(st.integers(), max_size=3).map(tuple),
    norm=st.sampled_from(["group", "layer"]),
)
roots = st.builds(
    Root,
    run_dir=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z"]), min_size=1),
    flag=st.booleans(),
    start=st.none() | st.just("runs/a"),
    environment=st.dictionaries(st.sampled_from("AB"), st.sampled_from(["1", "off", "x y"])),
    leaf=leaves,
)


@given(config=roots)
def test_yaml_and_back(config: Root) -> None:
    assert from_dict(Root, yaml.safe_load(to_yaml(config))) == config


@given(a=roots, b=roots)
def test_diff_is_what_changed(a: Root, b: Root) -> None:
    changed = diff(to_dict(a), to_dict(b))
    assert (changed == {}) == (to_dict(a) == to_dict(b))
    flat = flatten(to_dict(a))
    assert all(flat.get(key) == old for key, (old, _) in changed.items())


def test_merge_leaves_its_arguments_alone() -> None:
    old: dict[str, Any] = {"a": {"b": 1}, "c": 2}
    assert merge(old, {"a": {"d": 3}, "c": {"e": 4}}) == {"a": {"b": 1, "d": 3}, "c": {"e": 4}}
    assert old == {"a": {"b": 1}, "c": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    name: str = ""
    folder: str | None = field(default=None, metadata={"path": True})
    count: int = 0
    options: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    "text",
    ["2026_11_21", "0010", "2026-11-21", "24:00:00", "1e3", "@x", "'", "~/x", "1.50", "[x", "0x10"],
)
def test_text_is_what_was_written(tmp_path: Path, text: str) -> None:
    """On the command line whatever it is; in a file what needs no quotes there."""
    assert from_dict(Paths, parse_overrides([f"name={text}"], Paths)).name == text
    if text[0] not in "@'[":
        path = write(tmp_path / "a.yaml", f"name: {text}\noptions: {{a: {text}}}\n")
        found = from_dict(Paths, read_yaml(path))
        assert (found.name, found.options) == (text, {"a": text})


def test_numbers_are_still_numbers(tmp_path: Path) -> None:
    for text, number in (
        ("400_000", 400_000),
        ("0010", 10),
        ("0x10", 16),
        ("1e3", 1000),
        ("-3", -3),
    ):
        assert (
            from_dict(Paths, read_yaml(write(tmp_path / "a.yaml", f"count: {text}"))).count
            == number
        )
        assert from_dict(Paths, parse_overrides([f"count={text}"], Paths)).count == number
    with pytest.raises(ConfigError, match="count is '24:00:00' but must be a whole number"):
        from_dict(Paths, parse_overrides(["count=24:00:00"]))
    with pytest.raises(ConfigError, match=r"name is True .*put it into quotes"):
        from_dict(Paths, read_yaml(write(tmp_path / "b.yaml", "name: yes")))
    with pytest.raises(ConfigError, match="options has the key False, as YAML reads a word"):
        from_dict(Paths, read_yaml(write(tmp_path / "b.yaml", "options: {no: x}")))
    for text in ("count=@x", "count=[1", "count='"):
        with pytest.raises(ConfigError, match="has no value of YAML"):
            parse_overrides([text], Paths)


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_HERE", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    config = Paths(folder="~/a b,$SCRATCH_HERE/b,${SCRATCH_HERE}/c", name="$SCRATCH_HERE")
    assert expand_paths(config).folder == "/home/me/a b,/scratch/me/b,/scratch/me/c"
    assert expand_paths(config).name == "$SCRATCH_HERE"  # no path
    assert expand_paths(Paths()) == Paths()
    with pytest.raises(ConfigError, match=r"folder is '\$NOT_SET/x', but the environment has no"):
        expand_paths(Paths(folder="$NOT_SET/x"))


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\): name a YAML file"):
        read_yaml(tmp_path)


def test_a_file_that_is_its_own_base_is_named(tmp_path: Path) -> None:
    for chain in (["a"], ["a", "b"], ["a", "b", "c"]):
        for name, base in zip(chain, [*chain[1:], chain[-1]], strict=True):
            (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml\n", encoding="utf-8")
        last = tmp_path / f"{chain[-1]}.yaml"
        message = rf"its own base \({last} -> {last}\): take the line"
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("base: ./b.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\(.*b\.yaml -> .*c\.yaml -> .*b\.yaml\)"):
        read_yaml(tmp_path / "a.yaml")
