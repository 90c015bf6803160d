"""Read checkpoints of fairseq: pre-trained or CTC, old and new."""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2v2dist.data.alphabet import Alphabet, Units, alphabet
from w2v2dist.data.alphabet_file import read_alphabet
from w2v2dist.interop.foreign import ForeignCheckpoint
from w2v2dist.interop.names import fairseq_name, our_config
from w2v2dist.interop.weights import are_weights, read_file, renamed

MODELS = ("wav2vec2", "wav2vec_ctc", "wav2vec_seq2seq")  # how their names begin


def read_fairseq(
    source: str | Path | Mapping[str, Any], trust_pickle: bool = False
) -> ForeignCheckpoint:
    """Read a `.pt` of fairseq, pre-trained or CTC, with old `args` or new `cfg`; the alphabet is
    that of dict.ltr.txt (or dict.LABELS.txt) beside it. A mapping is the content of one, or its
    weights alone. Raises ValueError where a file is another, damaged, or readable only by running
    its code (`trust_pickle` allows it)."""
    if isinstance(source, Mapping):
        name, content = "the mapping", source if "model" in source else {"model": source}
    else:
        name, content = str(source), read_file(Path(source), trust_pickle)
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not are_weights(weights):
        raise ValueError(f"{name} is not a fairseq checkpoint: it has no weights under 'model'")
    top = plain(content.get("cfg") or content.get("args"))
    settings, inner = model_settings(top), plain(model_settings(top).get("w2v_args"))
    if inner:
        # fine-tuned: the settings of the pre-training, and what replaced them
        over = {**settings, "encoder_layerdrop": settings.get("layerdrop")}
        settings = model_settings(inner)
    kind = settings.get("_name") or settings.get("arch") or MODELS[0]
    if not str(kind).startswith(MODELS):
        raise ValueError(f"{name} is of another architecture: {kind!r}, not {MODELS[0]!r}")
    if inner:
        settings |= {k: v for k, v in over.items() if k in settings and v is not None}
    task = task_settings(top)
    asked = [part["normalize"] for part in (task, task_settings(inner)) if "normalize" in part]
    state = renamed(weights, _ours, name)
    if isinstance(source, Mapping):  # its owner goes on with them
        state = {n: t.clone() for n, t in state.items()}
    out = ForeignCheckpoint(
        source=name,
        library="fairseq",
        state=state,
        config=our_config(settings, "fairseq", name) if "conv_feature_layers" in settings else None,
        normalize=bool(asked[0]) if asked else False if task else None,
    )
    if out.kind != "ctc":
        return out
    labels = str(task.get("labels") or "ltr")
    labels = labels if re.fullmatch(r"\w+", labels) else "ltr"
    places = [] if isinstance(source, Mapping) else [Path(source).parent]
    places += [Path(data)] if isinstance(data := task.get("data"), str) and data else []
    found = _dictionary(out, labels, places)
    if isinstance(saved := content.get("alphabet"), Mapping):  # our own export says its rules too
        ours = Alphabet.from_dict(saved)
        agrees = found is None or ours.symbols == found.symbols
        found = ours if agrees and ours.num_tokens == _outputs(out) else found
    return replace(out, alphabet=found or _guess(out, labels))


def _ours(name: str) -> str:
    """Our name; of a sequence-to-sequence model what stands beside the encoder is a head."""
    return f"seq2seq.{name}" if name.startswith("encoder.proj.") else fairseq_name(name)


def _outputs(read: ForeignCheckpoint) -> int:
    return len(read.state["token_projection.weight"])


def _dictionary(read: ForeignCheckpoint, labels: str, folders: list[Path]) -> Alphabet | None:
    """The dictionary beside the file or where it was trained. Raises ValueError where it is of
    another size than the output layer."""
    for path in (folder / f"dict.{labels}.txt" for folder in folders):
        try:
            if not path.is_file():
                continue
        except OSError:  # another's folder, or no path at all
            continue
        found = read_alphabet(path, _units(labels))
        if found.num_tokens != _outputs(read):
            raise ValueError(
                f"{path} has {found.num_tokens} symbols (with fairseq's four) but {read.source} "
                f"has {_outputs(read)} outputs: it is another model's dictionary"
            )
        return found
    return None


def _units(labels: str) -> Units:
    return "phones" if labels.startswith("ph") else "characters"


def _guess(read: ForeignCheckpoint, labels: str) -> Alphabet | None:
    """The alphabet of so many outputs that is usual; a note says that it is a guess."""
    name = {"ltr": "letters", "phn": "phones"}.get(labels)
    known = None if name is None else alphabet(name)
    if known is None or known.num_tokens != _outputs(read):
        read.notes.append(
            f"its alphabet is not known: put its dictionary beside it, as dict.{labels}.txt"
        )
        return None
    read.notes.append(
        f"no dict.{labels}.txt is beside it: its {_outputs(read)} outputs are taken for the "
        + ("letters of fairseq's dictionary" if name == "letters" else "39 phones of TIMIT")
    )
    return known


def model_settings(top: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model: a section of newer files, all settings of older ones."""
    sections = (Mapping, argparse.Namespace)
    return plain(top["model"] if isinstance(top.get("model"), sections) else top)


def task_settings(top: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the task: in older files its name stands there, and they are with all."""
    return dict(top) if isinstance(top.get("task"), str) else plain(top.get("task"))


def plain(section: Any) -> dict[str, Any]:
    """A section of fairseq's settings: an argparse.Namespace in older files, a mapping in newer,
    JSON in some."""
    if isinstance(section, str):
        try:
            section = json.loads(section)
        except (ValueError, RecursionError):
            section = section or {}
    section = vars(section) if isinstance(section, argparse.Namespace) else section or {}
    if not isinstance(section, Mapping):
        raise ValueError(f"{section!r} stands where fairseq's settings were expected")
    return dict(section)
