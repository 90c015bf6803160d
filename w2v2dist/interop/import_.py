"""`w2v2dist import`: a run folder from a checkpoint of another library."""

import argparse
import difflib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from w2v2dist import __version__, checkpoint
from w2v2dist.config import ConfigError, diff, from_dict, read_yaml, to_dict
from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.data.alphabet_file import OURS, read_alphabet
from w2v2dist.data.config import DataConfig
from w2v2dist.interop.foreign import KINDS, ForeignCheckpoint
from w2v2dist.interop.open import FOREIGN, TRUST, read_foreign
from w2v2dist.interop.save import replacing
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.logging import console


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a file says of a checkpoint that does not say it itself."""

    model: Wav2Vec2Config = field(default_factory=Wav2Vec2Config)
    data: DataConfig = field(default_factory=DataConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist import` takes."""
    add = parser.add_argument
    add("source", metavar="MODEL", help=FOREIGN)
    add("--output", required=True, metavar="DIR", help="run folder to make; must be new")
    task = "what the checkpoint has to be: a pre-trained model, or one with CTC (default: either, "
    add("--task", choices=[*KINDS], help=task + "or an encoder alone)")
    config = (
        "YAML file: its model: replaces the configuration in the checkpoint, its data: may have "
    )
    add("--config", help=config + "normalize, tokens, units and text")
    add("--trust-pickle", action="store_true", help=TRUST)


def run(args: argparse.Namespace) -> None:
    """Make a run folder from a checkpoint of fairseq or Hugging Face, to be fine-tuned from, scored
    or exported. (`pretrained=`, `evaluate` and `export` also take such a checkpoint as it is.)

    example:
      w2v2dist import wav2vec_small.pt --output runs/imported_base
      w2v2dist train configs/finetune/base_10h.yaml pretrained=runs/imported_base
    """
    source, output = args.source, args.output
    foreign = read_foreign(source, args.trust_pickle)
    given = read_yaml(args.config) if args.config else {}
    # The file may be a training's; a key that nearly is one of ours is a mistake in it
    ours = {k: v for k, v in given.items() if difflib.get_close_matches(str(k), ("model", "data"))}
    checked, stated = from_dict(Given, ours), given.get("data") or {}
    model = foreign.model(checked.model if given.get("model") else None, args.task)
    normalize = checked.data.normalize if "normalize" in stated else foreign.normalize
    if normalize is None:
        raise ConfigError(
            f"{source} does not say whether its audio was normalised (preprocessor_config.json): "
            "say so with --config, a YAML file with `data: {normalize: true}` (as models with "
            "layer norm in the feature encoder have it) or false"
        )
    spelled = _alphabet(foreign, checked.data if "tokens" in stated else None)
    if spelled is not None and "text" in stated:
        spelled = replace(spelled, text=checked.data.text)
    other = diff(to_dict(foreign.config), to_dict(model.config)) if foreign.config else {}
    if other:
        changes = ", ".join(f"{key} {new} (was {old})" for key, (old, new) in other.items())
        foreign.notes.append(f"--config replaces what the checkpoint says: {changes}")
    tokens = "letters" if spelled is None else _name(spelled) or str(Path(output) / OURS)
    values = {
        "task": "finetune" if foreign.kind == "ctc" else "pretrain",
        "run_dir": output,
        "model": to_dict(model.config),
        "data": {"normalize": normalize, "tokens": tokens},
    }
    meta = {"version": __version__, "imported_from": source, "kind": foreign.kind}
    _write(Path(output), values, meta, spelled, model.state_dict())
    for note in foreign.notes:
        console.print(f"note: {note}")
    kind = foreign.kind if spelled is None else f"{foreign.kind}: {spelled}"
    console.print(
        f"wrote {output} ({kind}): fine-tune it with pretrained={output} "
        f"data.normalize={str(normalize).lower()}"
    )


def _write(
    output: Path,
    values: dict[str, Any],
    meta: dict[str, Any],
    spelled: Alphabet | None,
    weights: dict[str, Tensor],
) -> None:
    """The run folder, at once."""
    with replacing(output, folder=True) as temporary:
        temporary.mkdir()
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (temporary / "config.yaml").write_text(text, encoding="utf-8")
        meta = {**meta, "config": values}
        if spelled is not None:
            meta["alphabet"] = spelled.to_dict()
            text = json.dumps(meta["alphabet"], ensure_ascii=False, indent=1)
            (temporary / OURS).write_text(text, encoding="utf-8")
        (temporary / "checkpoints").mkdir()
        checkpoint.write_parameters(temporary / "checkpoints", weights, meta)


def _alphabet(foreign: ForeignCheckpoint, data: DataConfig | None) -> Alphabet | None:
    """The alphabet of a CTC model: its own, else the one that `data` names. Raises ConfigError
    where there is none, or it is of another size."""
    if foreign.kind != "ctc":
        return None
    outputs = len(foreign.state["token_projection.weight"])
    spelled = foreign.alphabet
    stated = _stated(data) if data and data.tokens != "auto" else None
    if spelled is None:
        spelled = stated
    elif data and stated and data.tokens != "letters" and not stated.agrees(spelled):
        raise ConfigError(
            f"{foreign.source} has an alphabet of its own ({spelled}), which data.tokens="
            f"{data.tokens} is not: leave it out"
        )
    if spelled is not None and spelled.num_tokens == outputs:
        return spelled
    what = "is on an alphabet that is not known"
    if spelled is not None and data:
        what = f"the alphabet {data.tokens} {spelled.num_tokens} symbols"
    raise ConfigError(
        f"{foreign.source} has {outputs} outputs and {what}: put its vocab.json (fairseq: "
        "dict.ltr.txt) beside it, or name it with --config, a YAML file with "
        "`data: {tokens: FILE}` (or letters, or phones)"
    )


def _stated(data: DataConfig) -> Alphabet:
    """The alphabet that the file names."""
    if data.tokens in ("letters", "phones"):
        return alphabet(data.tokens, data.text)
    if not Path(data.tokens).exists():
        raise ConfigError(
            f"data.tokens is {data.tokens!r}, which does not exist: give letters, phones or a file"
        )
    return read_alphabet(Path(data.tokens), data.units, data.text).check()


def _name(spelled: Alphabet) -> str | None:
    """`letters` or `phones`, where it is that alphabet."""
    return next((n for n in ("letters", "phones") if alphabet(n).agrees(spelled)), None)
