"""Files of weights: read without running their code, and without a second copy in memory."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


def read_file(path: Path, trust: bool) -> Any:
    """What a file holds; its tensors are mapped, not copied, where its format allows. Raises
    ValueError that says why it cannot be read without running its code, and what the risk is."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _load(path, trust)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: give a checkpoint file") from None
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} needs the package {error.name}: install it, or convert the file where it is"
        ) from None
    except Exception as error:  # of many types: the content is not ours
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        if stranger is None or trust:
            raise damaged(path, error) from None
        raise ValueError(
            f"{path} holds an object of the class {stranger[1]}, not only data: to read it is to "
            "run code that came with the file, with all your rights. Only if you trust its makers "
            "and the way it came to you: `w2v2dist import --trust-pickle` makes a run folder of it "
            "(evaluate and export take the option, too; in Python trust_pickle=True)"
        ) from None


def _load(path: Path, trust: bool) -> Any:
    """torch.load, mapped where the file is of the zip format."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    return torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped or None)


def read_folder(folder: Path, trust: bool) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder, whole or in parts, from safetensors where there are.
    Raises FileNotFoundError, and ValueError where a part is missing or damaged."""
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).exists():
            return _checked(folder / name, trust)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _parts(index, trust)
    raise FileNotFoundError(
        f"{folder} has neither {SAFETENSORS} nor {PICKLED}, whole or in parts (*.index.json)"
    )


def _parts(index: Path, trust: bool) -> dict[str, Tensor]:
    """The weights that an index spreads over several files."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map: fetch it again")
    out: dict[str, Tensor] = {}
    for name in sorted({str(place) for place in places.values()}):
        part = index.parent / name
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is no file beside it: do not trust it")
        if not part.exists():
            raise FileNotFoundError(f"{part} is missing, which {index.name} names: fetch it")
        out |= _checked(part, trust)
    if missing := sorted(places.keys() - out.keys()):
        raise ValueError(
            f"{index.parent} lacks {', '.join(missing[:5])}{' …' if missing[5:] else ''}, which "
            f"{index.name} promises: fetch the parts again"
        )
    return out


def _checked(path: Path, trust: bool) -> dict[str, Tensor]:
    weights = read_file(path, trust)
    if not are_weights(weights):
        raise ValueError(f"{path} holds no mapping of names to weights")
    return dict(weights)


def renamed(
    weights: Mapping[str, Tensor], rename: Callable[[str], str], source: str
) -> dict[str, Tensor]:
    """The weights under other names. Raises ValueError where two of one name differ."""
    out: dict[str, Tensor] = {}
    was: dict[str, str] = {}
    for name, tensor in weights.items():
        ours = rename(name)
        if ours in out and not torch.equal(out[ours], tensor):
            raise ValueError(
                f"{source} has {was[ours]} and {name}, two names of one weight, with other values: "
                "remove the one that is not meant"
            )
        out[ours], was[ours] = tensor, name
    return out


def are_weights(content: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether it maps names to tensors."""
    return isinstance(content, Mapping) and all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items()
    )


def read_json(path: Path, remedy: str = "fetch it again") -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError and ValueError with a remedy."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ValueError:
    """The error that says so."""
    reason = str(error).split("\n", 1)[0] or type(error).__name__
    if "weights_only" in reason:  # torch's advice is to run what the file holds
        reason = "torch cannot read it"
    return ValueError(
        f"{path} is truncated, damaged or no checkpoint ({reason}): compare its size with the "
        "source's and fetch it again"
    )
