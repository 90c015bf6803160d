"""Runs to checkpoints of other libraries, and those to run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from w2v2dist import __version__, checkpoint
from w2v2dist.config import ConfigError, from_dict, read_yaml, to_dict
from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.order import DataConfig
from w2v2dist.interop import save_fairseq, save_huggingface, save_torchaudio
from w2v2dist.interop.load import Model, TaskName, read_fairseq, read_huggingface
from w2v2dist.interop.save import replacing
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining
from w2v2dist.tasks.finetune import FinetuneConfig
from w2v2dist.training.loop import TrainingConfig


def export_run(run: str, library: str, output: str, which: str | None = None) -> Path:
    """Write the model of a run folder (its best checkpoint, else its latest) or step folder for
    "fairseq", "huggingface" or "torchaudio"; returns the step folder. Raises CheckpointError, and
    ValueError where the library cannot hold the model or `output` exists."""
    best = (Path(run) / "checkpoints" / "best").exists()
    folder = checkpoint.find(Path(run), which or ("best" if best else "latest"))
    saved = checkpoint.read_meta(folder)["config"]
    config = from_dict(Wav2Vec2Config, saved["model"], "model.")
    tokens, normalize = saved["data"]["tokens"], saved["data"]["normalize"]
    model: Model = Wav2Vec2ForPretraining(config)
    if saved["task"] == "finetune":
        model = Wav2Vec2ForCTC(config, alphabet(tokens).num_tokens)
    checkpoint.load_into(model, checkpoint.read_parameters(folder), str(folder))
    if library == "torchaudio":
        save_torchaudio(model, output)
    else:
        save = {"fairseq": save_fairseq, "huggingface": save_huggingface}[library]
        save(model, output, normalize=normalize, tokens=tokens)
    return folder


def import_checkpoint(
    source: str,
    output: str,
    *,
    task: TaskName = "pretrain",
    config_path: str | None = None,
    trust_pickle: bool = False,
) -> bool:
    """Make the run folder `output`, which `pretrained:` of a fine-tuning accepts, from a fairseq
    file or Hugging Face folder; returns its data.normalize, which the fine-tuning has to share.

    `config_path` is a YAML file whose `model:` (and data.normalize, data.tokens) replace what came
    with the weights. Raises FileNotFoundError, and ValueError where the checkpoint is not of
    `task`, does not fit, or is on tokens that are not ours.
    """
    read = read_huggingface if Path(source).is_dir() else read_fairseq
    foreign = read(source, trust_pickle)
    given = read_yaml(config_path) if config_path else {}
    checked = from_dict(FinetuneConfig, {**given, "task": "finetune", "run_dir": output})
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
    known = {key: value for key, value in data.items() if value is not None}
    kind = FinetuneConfig if task == "finetune" else TrainingConfig
    config = kind(run_dir=output, model=model.config, data=from_dict(DataConfig, known, "data."))
    values = {"task": task, **to_dict(config)}
    meta = {"version": __version__, "imported_from": source, "config": values}
    with replacing(Path(output), folder=True) as temporary:
        temporary.mkdir()
        text = yaml.safe_dump(values, sort_keys=False)
        (temporary / "config.yaml").write_text(text, encoding="utf-8")
        (temporary / "checkpoints").mkdir()
        checkpoint.write_parameters(temporary / "checkpoints", model.state_dict(), meta)
    return config.data.normalize
