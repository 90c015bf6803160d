"""`w2v2dist import`: a run folder from a checkpoint of another library."""

import argparse
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from w2v2dist import __version__, checkpoint
from w2v2dist.config import ConfigError, from_dict, read_yaml, to_dict
from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.data.alphabet_file import OURS, read_alphabet
from w2v2dist.data.config import DataConfig
from w2v2dist.interop.foreign import KINDS
from w2v2dist.interop.open import MODEL, read_foreign
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
    add("source", metavar="MODEL", help=MODEL.partition("step folder, ")[2])
    add("--output", required=True, metavar="DIR", help="run folder to make; must be new")
    task = "what the checkpoint has to be: a pre-trained model, or one with CTC (default: either, "
    add("--task", choices=[*KINDS], help=task + "or an encoder alone)")
    config = (
        "YAML file: its model: replaces the configuration in the checkpoint, its data: may have "
    )
    add("--config", help=config + "normalize, tokens, units and text")
    trust = "read files that hold more than data. This runs code that came with the file: only "
    trust += "for files from people you trust"
    add("--trust-pickle", action="store_true", help=trust)


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
    checked = from_dict(Given, ours)
    stated = given.get("data") or {}
    model = foreign.model(checked.model if given.get("model") else None, args.task)
    normalize = checked.data.normalize if "normalize" in stated else foreign.normalize
    if normalize is None:
        raise ConfigError(
            f"{source} does not say whether its audio was normalised (preprocessor_config.json): "
            "say so with --config, a YAML file with `data: {normalize: true}` (as models with "
            "layer norm in the feature encoder have it) or false"
        )
    kind = foreign.kind
    spelled = _stated(checked.data) if "tokens" in stated else foreign.alphabet
    if kind == "ctc":
        outputs = len(foreign.state["token_projection.weight"])
        if spelled is None or spelled.num_tokens != outputs:
            has = "is on an alphabet that is not known" if spelled is None else "does not fit it"
            raise ConfigError(
                f"{source} has {outputs} outputs and {has}: put its vocab.json (fairseq: "
                "dict.ltr.txt) beside it, or name it with --config, a YAML file with "
                "`data: {tokens: FILE}` (or letters, or phones)"
            )
    data: dict[str, Any] = {"normalize": normalize}
    data["tokens"] = checked.data.tokens if "tokens" in stated else "letters"
    records: dict[str, Any] = {}
    if kind == "ctc" and spelled is not None:
        records["alphabet"] = spelled.to_dict()
        if "tokens" not in stated:
            data["tokens"] = _name(spelled) or str(Path(output) / OURS)
    values = {
        "task": "finetune" if kind == "ctc" else "pretrain",
        "run_dir": output,
        "model": to_dict(model.config),
        "data": data,
    }
    meta = {"version": __version__, "imported_from": source, "kind": kind, **records}
    with replacing(Path(output), folder=True) as temporary:
        temporary.mkdir()
        text = yaml.safe_dump(values, sort_keys=False)
        (temporary / "config.yaml").write_text(text, encoding="utf-8")
        for name, record in records.items():
            text = json.dumps(record, ensure_ascii=False, indent=1)
            (temporary / f"{name}.json").write_text(text, encoding="utf-8")
        (temporary / "checkpoints").mkdir()
        state = model.state_dict()
        if kind == "encoder":
            state = {name.removeprefix("encoder."): value for name, value in state.items()}
        checkpoint.write_parameters(temporary / "checkpoints", state, {**meta, "config": values})
    for note in foreign.notes:
        console.print(f"note: {note}")
    console.print(
        f"wrote {output} ({kind}{'' if spelled is None else f': {spelled}'}): fine-tune it with "
        f"pretrained={output} data.normalize={str(normalize).lower()}"
    )


def _stated(data: DataConfig) -> Alphabet:
    """The alphabet that the file names."""
    if data.tokens in ("letters", "phones"):
        return alphabet(data.tokens, data.text)
    return read_alphabet(Path(data.tokens), data.units, data.text)


def _name(spelled: Alphabet) -> str | None:
    """`letters` or `phones`, where it is that alphabet."""
    return next((n for n in ("letters", "phones") if alphabet(n).agrees(spelled)), None)
