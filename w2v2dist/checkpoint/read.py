"""Read checkpoints: into the ranges of a training, or in one process as plain tensors."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader

from w2v2dist.checkpoint.folders import read_meta, verify
from w2v2dist.checkpoint.together import CheckpointError, host_group, reason, together
from w2v2dist.config import ConfigError
from w2v2dist.runtime.distributed import World


def load(
    folder: Path,
    world: World,
    state: Mapping[str, Tensor],
    check: Callable[[dict[str, Any]], None] = lambda meta: None,
) -> dict[str, Any]:
    """Read a checkpoint of any world size into `state`, in place; returns its meta, which `check`
    may refuse first. Raises CheckpointError, and ConfigError where it was imported."""
    # Reading is collective: all or none begin it
    meta = together(lambda: read_meta(folder))[0]
    together(lambda: verify(folder, world.rank, world.size))
    if "imported_from" in meta:
        raise ConfigError(
            f"{folder} was imported and holds no optimizer: it can only be fine-tuned, with "
            "pretrained= and another run_dir"
        )
    check(meta)
    try:
        together(
            lambda: state_dict_loader.load(
                dict(state), checkpoint_id=folder, process_group=host_group()
            )
        )
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from None
    return meta


def read_parameters(folder: Path) -> dict[str, Tensor]:
    """Every parameter (flat, fp32) and buffer of a checkpoint by name, in one process."""
    read_meta(folder)
    verify(folder)
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    for name, entry in entries.items():
        kind = name.split("/", 1)[0]
        if kind in ("fp32", "buffer"):
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
    try:
        with warnings.catch_warnings():  # that there is one process is meant
            warnings.filterwarnings("ignore", "torch.distributed is")
            state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {reason(error)}") from error
    return {name.split("/", 1)[1]: value for name, value in state.items()}


def load_into(module: nn.Module, values: dict[str, Tensor], source: str) -> None:
    """Let the values take the places of those in `module` (which may be on the meta device), which
    must have the same names and sizes. Raises CheckpointError that lists what does not fit."""
    wanted, given = module.state_dict(), values
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    shapes = sorted(
        n for n in wanted.keys() & given.keys() if wanted[n].numel() != given[n].numel()
    )
    if missing or unexpected or shapes:
        parts = {"missing": missing, "unexpected": unexpected, "of another size": shapes}
        text = "; ".join(
            f"{k}: {', '.join(v[:5])}{' …' if len(v) > 5 else ''}" for k, v in parts.items() if v
        )
        raise CheckpointError(
            f"the weights of {source} do not fit the configured model ({text}): compare model.*"
        )
    fitting = {name: given[name].view(tensor.shape) for name, tensor in wanted.items()}
    module.load_state_dict(fitting, assign=True)
