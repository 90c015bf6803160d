"""Mutated tables, configurations, indexes, checkpoints' JSON and vocabularies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.manifests import manifest
from shards.recordings import Remarks
from tests.conftest import synthetic_shards
from tests.fuzz import EXAMPLES, fuzz
from tests.unit.test_interop import GROUP, make
from w2v2dist.checkpoint import CheckpointError
from w2v2dist.cli import main
from w2v2dist.config import from_dict, read_yaml
from w2v2dist.data.alphabet import alphabet, of_symbols
from w2v2dist.data.alphabet_file import read_alphabet, write_alphabet
from w2v2dist.data.index import ShardIndex
from w2v2dist.interop import open_model, save_fairseq, save_huggingface
from w2v2dist.jobs.cluster import ClusterConfig
from w2v2dist.tasks.train import read_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.parametrize("examples", EXAMPLES)


def test_manifests(tmp_path: Path, examples: int) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    rows = [{"audio_filepath": "a.wav", "text": "é “x”", "offset": 0.5, "duration": 1}] * 3
    tables = {
        "t.tsv": "path\ttext\toffset\na.wav\tONE\t0\na.wav\tTWO\t1.5\n",
        "t.csv": 'path,text\na.wav,"ONE, ""TWO"""\n',
        "t.jsonl": "\n".join(map(json.dumps, rows)),
    }
    for name, content in tables.items():
        path = tmp_path / name

        def read(changed: bytes, path: Path = path) -> Any:
            path.write_bytes(changed)
            return list(manifest(path, Remarks()))

        fuzz(examples // 2, [content.encode()], read, (ValueError,))


def test_configurations(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "a.yaml"
    names = ("base_ls960", "tiny_finetune", "finetune/own_language")
    bases = [(ROOT / f"configs/{name}.yaml").read_bytes() for name in names]
    (tmp_path / "common_large.yaml").write_text("task: finetune\n")

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        return read_config(str(path), ["loop.max_steps=7"])

    fuzz(examples, bases, read, (ValueError,), lambda config: config.loop.max_steps == 7)


def test_profiles_of_clusters(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "c.yaml"
    bases = [file.read_bytes() for file in (ROOT / "launch/clusters").glob("*.yaml")]

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        return from_dict(ClusterConfig, read_yaml(path))

    fuzz(examples, bases, read, (ValueError,))


def test_alphabets(tmp_path: Path, examples: int) -> None:
    greek = of_symbols("|αβγ")
    for name in ("a.txt", "vocab.json", "dict.ltr.txt", "alphabet.json"):
        write_alphabet(tmp_path / name, greek)
        path, base = tmp_path / name, (tmp_path / name).read_bytes()

        def read(content: bytes, path: Path = path) -> Any:
            path.write_bytes(content)
            return read_alphabet(path)

        def check(found: Any) -> None:
            assert len({*found.tokens}) == found.num_tokens
            assert found.blank in found.special
            assert all(0 <= i < found.num_tokens for i in found.special)

        fuzz(examples // 2, [base], read, (ValueError,), check)


def test_indexes(tmp_path: Path, examples: int) -> None:
    shards = synthetic_shards(tmp_path / "shards")
    path = shards / "index.json"

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        index = ShardIndex.load_many(str(shards))
        index.check_shard_sizes()
        return index

    fuzz(examples, [path.read_bytes()], read, (ValueError,))


def test_models(tmp_path: Path, examples: int) -> None:
    """Hugging Face's JSON and weights, fairseq's file, and a step folder's meta.json."""
    model = make(GROUP, True)
    save_huggingface(model, tmp_path / "hf", normalize=True)
    save_fairseq(model, tmp_path / "model.pt")
    assert main(["import", str(tmp_path / "hf"), "--output", str(tmp_path / "run")]) == 0
    step = next((tmp_path / "run" / "checkpoints").glob("step_*"))
    (step / "SHA256SUMS").unlink()
    files = {
        tmp_path / "hf" / "config.json": tmp_path / "hf",
        tmp_path / "hf" / "vocab.json": tmp_path / "hf",
        tmp_path / "hf" / "tokenizer_config.json": tmp_path / "hf",
        tmp_path / "hf" / "preprocessor_config.json": tmp_path / "hf",
        tmp_path / "hf" / "model.safetensors": tmp_path / "hf",
        tmp_path / "model.pt": tmp_path / "model.pt",
        step / "meta.json": tmp_path / "run",
    }
    (tmp_path / "hf" / "alphabet.json").unlink()
    for path, source in files.items():
        whole = path.read_bytes()

        def read(content: bytes, path: Path = path, source: Path = source) -> Any:
            path.unlink()  # what is mapped stays as it was
            path.write_bytes(content)
            return open_model(source)

        def check(opened: Any) -> None:
            shapes = {n: p.shape for n, p in opened.module.named_parameters()}
            assert all(size for shape in shapes.values() for size in shape)
            assert isinstance(next(opened.module.parameters()), torch.nn.Parameter)

        fuzz(max(8, examples // 10), [whole], read, (ValueError, CheckpointError, OSError), check)
        path.unlink()
        path.write_bytes(whole)
    assert alphabet("letters").agrees(open_model(tmp_path / "hf").alphabet)  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "run")
