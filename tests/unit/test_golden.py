"""The compact reference numbers are their source's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden.make import HERE, KEPT, NUM_SAMPLES, TEXTS, pack, sample


def test_the_numbers_are_small() -> None:
    assert sum(path.stat().st_size for path in HERE.iterdir() if path.is_file()) < 4e6


def test_what_is_unpacked_has_every_file_and_its_metadata(golden_dir: Path) -> None:
    assert {p.name for p in golden_dir.iterdir()} == {*KEPT, *TEXTS}
    gradients = [
        tensor.size
        for path in golden_dir.iterdir()
        if path.suffix == ".safetensors"
        for name, tensor in load_file(path).items()
        if name.startswith(("grad.", "gradsample."))
    ]
    assert max(gradients) == NUM_SAMPLES


def test_a_sample_has_both_ends() -> None:
    values = sample(np.arange(10_001).reshape(73, 137))
    assert (len(values), values[0], values[-1]) == (NUM_SAMPLES, 0, 10_000)
    assert set(np.diff(values)) == {39, 40}


@pytest.mark.shared("golden")
def test_the_numbers_are_what_make_writes(full_golden_dir: Path) -> None:
    for name, content in pack(full_golden_dir).items():
        assert (HERE / name).read_bytes() == content, name


@pytest.mark.shared("golden")
def test_what_is_unpacked_is_the_source(full_golden_dir: Path, golden_dir: Path) -> None:
    for name in KEPT:
        ours, source = load_file(golden_dir / name), load_file(full_golden_dir / name)
        for key, tensor in ours.items():
            if key.startswith("gradmax."):
                expected = np.abs(source[key.replace("max", "")]).max()
            elif key.startswith("gradsample."):
                expected = sample(source[key.replace("sample", "")])
            else:
                expected = source[key]
            assert tensor.dtype == expected.dtype
            np.testing.assert_array_equal(tensor, expected)
    for name in TEXTS:
        assert (golden_dir / name).read_text() == (full_golden_dir / name).read_text()
