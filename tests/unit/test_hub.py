"""Models by an id of the Hugging Face hub: the real client against a small hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.test_interop import LAYER, assert_same_bits, make
from w2v2dist.interop import load_huggingface, save_huggingface

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs; `folders`: id -> folder."""

    folders: dict[str, Path]

    def log_message(self, *arguments: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        folder = self.folders.get(repo)
        if folder is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if api:
            files = sorted(path.name for path in folder.iterdir())
            listed = [{"rfilename": name, "type": "file", "path": name} for name in files]
            if "tree" in parts:
                sizes = [
                    {**f, "size": (folder / f["path"]).stat().st_size, "oid": "x"} for f in listed
                ]
                return self.answer(200, json.dumps(sizes).encode(), {})
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": listed, "tags": []}
            return self.answer(200, json.dumps(info).encode(), {})
        path = folder / parts[-1]
        if not path.exists():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A hub with some repositories; the variables with which the client talks to it."""
    root = tmp_path_factory.mktemp("hub")
    model = make(LAYER, ctc=True)
    for name in ("safe", "pickles", "half"):
        save_huggingface(model, root / name, normalize=True)
    weights = load_huggingface(root / "safe").state_dict()
    saved = root / "pickles" / "model.safetensors"
    saved.unlink()
    theirs = {
        k: v for k, v in torch.load(_bin(root / "safe", root / "bin"), weights_only=True).items()
    }
    assert len(theirs) >= len(weights) - 1
    torch.save(theirs, root / "pickles" / "pytorch_model.bin")
    cut = root / "half" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    (root / "safe" / "flax_model.msgpack").write_bytes(b"not needed")
    (root / "safe" / "code.py").write_text("raise SystemExit('never fetched')")
    handler = type("Here", (Hub,), {"folders": {f"org/{p.name}": p for p in root.iterdir()}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(root / "cache"),
            "HF_HUB_DISABLE_XET": "1",
        }
        server.shutdown()


def _bin(folder: Path, target: Path) -> Path:
    """The folder's safetensors as torch.save writes them."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), target)
    return target


def export(
    hub: dict[str, str], repo: str, output: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """`w2v2dist export REPO` in a process of its own: the client reads its variables once."""
    command = [sys.executable, "-m", "w2v2dist.cli", "export", repo, "--format", "huggingface"]
    return subprocess.run(
        [*command, "--output", str(output), *more],
        env={**os.environ, **hub},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=output.parent,
    )


def test_a_repository_is_fetched_once_and_then_read_from_the_cache(
    hub: dict[str, str], tmp_path: Path
) -> None:
    done = export(hub, "org/safe", tmp_path / "online")
    assert done.returncode == 0, done.stderr
    fetched = {p.name for p in Path(hub["HF_HOME"]).rglob("*") if "snapshots" in str(p.parent)}
    assert "model.safetensors" in fetched
    assert not fetched & {"flax_model.msgpack", "code.py"}
    # without a network: the address of the hub leads nowhere
    away = {**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = export(away, "org/safe", tmp_path / "offline")
    assert done.returncode == 0, done.stderr
    assert_same_bits(load_huggingface(tmp_path / "online"), load_huggingface(tmp_path / "offline"))
    done = export(away, "org/other", tmp_path / "x")
    assert done.returncode == 2
    assert (
        "'org/other' is no file or folder here, and as an id of the Hugging Face hub it"
        in done.stderr
    )
    assert "hf download org/other" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_had_says_why(hub: dict[str, str], tmp_path: Path) -> None:
    done = export(hub, "org/nothing", tmp_path / "x")
    assert done.returncode == 2
    assert "it does not exist (or is private): compare its spelling" in done.stderr
    done = export(hub, "org/half", tmp_path / "x")
    assert done.returncode == 2
    assert "model.safetensors is truncated, damaged" in done.stderr
    done = export(hub, "org/pickles", tmp_path / "x")
    assert done.returncode == 2
    assert "org/pickles has no model.safetensors" in done.stderr
    assert "--trust-pickle" in done.stderr
    assert not [p for p in Path(hub["HF_HOME"]).rglob("*.bin")]
    done = export(hub, "org/pickles", tmp_path / "trusted", "--trust-pickle")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trusted" / "model.safetensors").exists()
