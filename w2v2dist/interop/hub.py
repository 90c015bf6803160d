"""Models of the Hugging Face hub, by their id: downloaded once, then from the cache."""

import re
from pathlib import Path

from w2v2dist.interop.weights import PICKLED, SAFETENSORS

# Data alone; of the other files of a repository some are copies in other formats, some are code
PATTERNS = ["*.json", "model*.safetensors"]
TRUSTED = ["pytorch_model*.bin"]


def is_hub_id(source: str) -> bool:
    """Whether a name has the form of an id of the hub, `org/name`."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source))


def fetch(repo: str, trust_pickle: bool = False) -> Path:
    """The folder of a repository's configuration, vocabulary and safetensors; pickled weights only
    where trusted and there are no others. Raises ValueError where it does not exist, cannot be
    reached and is not in the cache, or has no such weights."""
    from huggingface_hub import snapshot_download  # late: a second
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    what = f"{repo!r} is no file or folder here, and as an id of the Hugging Face hub it"
    try:
        folder = Path(snapshot_download(repo, allow_patterns=PATTERNS))
        if not _has(folder, SAFETENSORS) and trust_pickle:
            folder = Path(snapshot_download(repo, allow_patterns=[*PATTERNS, *TRUSTED]))
    except GatedRepoError:
        raise ValueError(
            f"{what} is only for those who asked: log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(f"{what} does not exist (or is private): compare its spelling") from None
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{what} cannot be fetched and is not in the cache ({reason}): connect to the network, "
            f"or fetch it elsewhere (`hf download {repo} --local-dir FOLDER`) and give the folder"
        ) from None
    if not _has(folder, SAFETENSORS) and not (trust_pickle and _has(folder, PICKLED)):
        raise ValueError(
            f"{repo} has no {SAFETENSORS}, or it is not in the cache ({folder}) and the hub cannot "
            "be reached. Pickled weights, if there are any, are read only from those you trust, "
            "for they may be code: `w2v2dist import --trust-pickle` (in Python trust_pickle=True)"
        )
    return folder


def _has(folder: Path, name: str) -> bool:
    """Whether a folder has weights, whole or in parts."""
    return (folder / name).exists() or (folder / f"{name}.index.json").exists()
