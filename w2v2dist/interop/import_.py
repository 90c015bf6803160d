"""`w2v2dist import`: a run folder from a checkpoint of another library."""

import argparse
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from w2v2dist import __version__, checkpoint
from w2v2dist.config import ConfigError, from_dict, read_yaml, to_dict
from w2v2dist.data.config import DataConfig
from w2v2dist.interop.load import read_fairseq, read_huggingface
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
    add("source", help=".pt of fairseq, or folder of Hugging Face (config.json, model.safetensors)")
    add("--output", required=True, metavar="DIR", help="run folder to make; must be new")
    task = "what the checkpoint has to be; finetune: a CTC model on letters or phones, which "
    task += "`w2v2dist evaluate` reads too (default: pretrain)"
    add("--task", choices=["pretrain", "finetune"], default="pretrain", help=task)
    add("--config", help="YAML file whose model: replaces the configuration in the checkpoint")
    trust = "read files that hold more than data. This runs code that came with the file: only "
    trust += "for files from people you trust"
    add("--trust-pickle", action="store_true", help=trust)


def run(args: argparse.Namespace) -> None:
    """Make a run folder from a checkpoint of fairseq or Hugging Face, to be fine-tuned.

    example:
      w2v2dist import wav2vec_small.pt --output runs/imported_base
      w2v2dist train configs/finetune/base_10h.yaml pretrained=runs/imported_base
    """
    source, output, task = args.source, args.output, args.task
    read = read_huggingface if Path(source).is_dir() else read_fairseq
    foreign = read(source, args.trust_pickle)
    given = read_yaml(args.config) if args.config else {}
    # The file may be a training's; a key that nearly is one of ours is a mistake in it
    ours = {k: v for k, v in given.items() if difflib.get_close_matches(str(k), ("model", "data"))}
    checked = from_dict(Given, ours)
    model = foreign.model(checked.model if given.get("model") else None, task)
    data: dict[str, Any] = {"normalize": foreign.normalize, "tokens": foreign.tokens}
    data |= {key: getattr(checked.data, key) for key in data if key in (given.get("data") or {})}
    if data["normalize"] is None:
        raise ConfigError(
            f"{source} does not say whether its audio was normalised (preprocessor_config.json): "
            "say so with --config, a YAML file with `data: {normalize: true}` (as models with "
            "layer norm in the feature encoder have it) or false"
        )
    if task == "finetune" and data["tokens"] is None:
        raise ConfigError(
            f"{source} is not known to be on letters or phones in the order of w2v2dist: if it is, "
            "say so with --config, a YAML file with `data: {tokens: letters}`"
        )
    data["tokens"] = data["tokens"] or checked.data.tokens
    values = {"task": task, "run_dir": output, "model": to_dict(model.config), "data": data}
    meta = {"version": __version__, "imported_from": source, "config": values}
    with replacing(Path(output), folder=True) as temporary:
        temporary.mkdir()
        text = yaml.safe_dump(values, sort_keys=False)
        (temporary / "config.yaml").write_text(text, encoding="utf-8")
        (temporary / "checkpoints").mkdir()
        checkpoint.write_parameters(temporary / "checkpoints", model.state_dict(), meta)
    console.print(
        f"wrote {output}: fine-tune it with pretrained={output} "
        f"data.normalize={str(data['normalize']).lower()}"
    )
