"""Write checkpoints for other libraries."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from w2v2dist.data.alphabet import SPECIAL, alphabet
from w2v2dist.interop.load import Model
from w2v2dist.interop.names import Library, their_name, their_settings
from w2v2dist.model import Wav2Vec2ForCTC


def save_fairseq(
    model: Model, path: str | Path, *, normalize: bool = False, tokens: str = "letters"
) -> None:
    """Write a `.pt` that fairseq loads; `normalize` and `tokens` as in data.*. Token ids are those
    of fairseq's dict.ltr.txt. Raises ValueError where `path` exists or fairseq lacks the model."""
    config, ctc = model.config, isinstance(model, Wav2Vec2ForCTC)
    state = _their_state(model, "fairseq")
    if config.conv_channels == config.embed_dim and not config.quantize_inputs:
        prefix = "w2v_encoder.w2v_model." if ctc else ""
        weight, bias = (state.pop(f"{prefix}post_extract_proj.{n}") for n in ("weight", "bias"))
        if bias.any() or not torch.equal(weight, torch.eye(config.embed_dim)):
            raise ValueError(
                f"conv_channels and embed_dim are both {config.embed_dim}: there fairseq has no "
                "projection between them, but this model's changes the features: use another format"
            )
    settings = their_settings(config, "fairseq")
    audio = {"data": "", "normalize": normalize, "sample_rate": 16_000}
    task: dict[str, Any] = {"_name": "audio_pretraining", **audio}
    cfg = {"model": {"_name": "wav2vec2", **settings}, "task": task}
    if ctc:
        names = "dropout attention_dropout activation_dropout dropout_input feature_grad_mult"
        names += " mask_prob mask_length mask_channel_prob mask_channel_length"
        over = {name: settings[name] for name in names.split()}
        over |= {"layerdrop": config.layer_drop, "final_dropout": 0.0, "apply_mask": True}
        over |= {"w2v_path": "", "data": "", "normalize": normalize, "w2v_args": cfg}
        task = {**task, "_name": "audio_finetuning"}
        task["labels"] = "ltr" if tokens == "letters" else "phn"
        cfg = {"model": {"_name": "wav2vec_ctc", **over}, "task": task}
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}
    content: dict[str, Any] = {"args": None, "cfg": cfg, "model": state}
    content["optimizer_history"] = [{**history, "num_updates": 0}]
    content["extra_state"] = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    with replacing(Path(path)) as temporary:
        torch.save(content, temporary)


def save_huggingface(
    model: Model, path: str | Path, *, normalize: bool = False, tokens: str = "letters"
) -> None:
    """Write a folder for Wav2Vec2ForPreTraining or Wav2Vec2ForCTC.from_pretrained, of a CTC model
    for Wav2Vec2Processor.from_pretrained too; `normalize` and `tokens` as in data.*. Raises
    ValueError where `path` exists, `tokens` has another size than the output layer, or Hugging Face
    has no such model (quantized inputs, continuous targets)."""
    config = model.config
    if not isinstance(model, Wav2Vec2ForCTC) and not config.quantize_targets:
        raise ValueError(
            "quantize_targets is False but Hugging Face's pre-training model always has a "
            "quantizer: export to fairseq, or fine-tune first"
        )
    state = _their_state(model, "huggingface")
    settings: dict[str, Any] = {"architectures": ["Wav2Vec2ForPreTraining"]}
    settings |= their_settings(config, "huggingface")
    settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings |= {"final_dropout": 0.0, "ctc_zero_infinity": True}
    processing: dict[str, Any] = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    processing |= {"feature_size": 1, "sampling_rate": 16_000, "padding_side": "right"}
    processing |= {"padding_value": 0.0, "do_normalize": normalize}
    processing["return_attention_mask"] = config.extractor_norm == "layer"
    files = {"config.json": settings, "preprocessor_config.json": processing}
    if isinstance(model, Wav2Vec2ForCTC):
        ids, outputs = alphabet(tokens).ids, model.token_projection.out_features
        if outputs != len(ids):
            raise ValueError(
                f"tokens is {tokens!r} ({len(ids)} tokens) but the model has {outputs} outputs: "
                "name the tokens that it was trained on"
            )
        settings |= {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": outputs}
        processing["processor_class"] = "Wav2Vec2Processor"
        roles = "pad_token bos_token eos_token unk_token".split()
        special = dict(zip(roles, SPECIAL, strict=True))
        kind: dict[str, Any] = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
        if tokens == "phones":
            kind = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": False}
        files |= {"vocab.json": ids, "special_tokens_map.json": special}
        files["tokenizer_config.json"] = {**kind, **special}
    with replacing(Path(path), folder=True) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (temporary / name).write_text(text, encoding="utf-8")
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})


def save_torchaudio(model: Model, path: str | Path) -> None:
    """Write the state dict of torchaudio.models.wav2vec2_model, and its arguments to PATH.json.
    torchaudio has no mask embedding, and of a pre-training only the body: the rest is left out.
    Raises ValueError where `path` exists, or for quantized inputs."""
    path = Path(path)
    outputs = model.token_projection.out_features if isinstance(model, Wav2Vec2ForCTC) else None
    arguments = {**their_settings(model.config, "torchaudio"), "aux_num_out": outputs}
    state = _their_state(model, "torchaudio")
    with replacing(path) as temporary, replacing(path.with_name(path.name + ".json")) as beside:
        beside.write_text(json.dumps(arguments, indent=2), encoding="utf-8")
        torch.save(state, temporary)


def _their_state(model: Model, library: Library) -> dict[str, Tensor]:
    """The model's weights as the library names and shapes them, on the CPU in fp32."""
    ctc, out, homeless = isinstance(model, Wav2Vec2ForCTC), {}, []
    for name, tensor in model.state_dict().items():
        theirs = their_name(name, library, model.config, ctc)
        if theirs is not None:
            shape = (1, -1, tensor.shape[-1]) if name.endswith("codebooks") else tensor.shape
            copy = tensor.detach().to("cpu", torch.float32, copy=True)  # a view drags its storage
            out[theirs] = copy.contiguous().view(shape)
        elif library != "torchaudio" or "input_quantizer" in name:
            homeless.append(name)
    if homeless:
        raise ValueError(f"{library} has no place for {', '.join(homeless)}: use another format")
    return out


@contextlib.contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds and is removed
    when it fails. Raises ValueError where `path` exists (as an empty one a `folder` may)."""
    if path.exists() and not (folder and path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists: remove it or choose another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        raise
