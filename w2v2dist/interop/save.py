"""Write checkpoints for other libraries."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.data.alphabet_file import OURS, in_lines, of_fairseq, read_alphabet, vocabulary
from w2v2dist.interop.foreign import Model
from w2v2dist.interop.names import Library, their_name, their_settings
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining, Wav2Vec2Model

NEVER = -1e4  # the bias of an output that is never chosen


def save_fairseq(
    model: Model,
    path: str | Path,
    *,
    normalize: bool = False,
    tokens: str | Alphabet = "letters",
) -> None:
    """Write a `.pt` that fairseq loads; `normalize` as in data.*, `tokens` an alphabet or its name.
    Of a CTC model the dictionary is written beside it, and outputs are in the order of fairseq's
    dictionaries. Raises ValueError where `path` exists or fairseq lacks the model."""
    if isinstance(model, Wav2Vec2Model):
        raise ValueError("fairseq has no model that is an encoder alone: export to huggingface")
    path, config = Path(path), model.config
    state = _their_state(model, "fairseq")
    if config.conv_channels == config.embed_dim and not config.quantize_inputs:
        prefix = "w2v_encoder.w2v_model." if isinstance(model, Wav2Vec2ForCTC) else ""
        weight, bias = (state.pop(f"{prefix}post_extract_proj.{n}") for n in ("weight", "bias"))
        if bias.any() or not torch.equal(weight, torch.eye(config.embed_dim)):
            raise ValueError(
                f"conv_channels and embed_dim are both {config.embed_dim}: there fairseq has no "
                "projection between them, but this model's changes the features: use another format"
            )
    beside = {}
    if isinstance(model, Wav2Vec2ForCTC):
        spelled = _spelled(model, tokens)
        spelled = _reorder(state, spelled)
        beside["dict.phn.txt" if spelled.units == "phones" else "dict.ltr.txt"] = spelled
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}
    content: dict[str, Any] = {"args": None, "model": state}
    for spelled in beside.values():
        content["alphabet"] = spelled.to_dict()  # ours alone, for data.text
    content["cfg"] = _fairseq_settings(config, normalize, [name[5:8] for name in beside])
    content["optimizer_history"] = [{**history, "num_updates": 0}]
    content["extra_state"] = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    with replacing(path) as temporary:
        torch.save(content, temporary)
        for name, spelled in beside.items():
            _write_dictionary(path.with_name(name), spelled)


def _fairseq_settings(
    config: Wav2Vec2Config, normalize: bool, labels: Sequence[str]
) -> dict[str, Any]:
    """fairseq's `cfg`: of a pre-training, or with `labels` of a fine-tuning."""
    settings = their_settings(config, "fairseq")
    audio = {"data": "", "normalize": normalize, "sample_rate": 16_000}
    task: dict[str, Any] = {"_name": "audio_pretraining", **audio}
    cfg = {"model": {"_name": "wav2vec2", **settings}, "task": task}
    if not labels:
        return cfg
    names = "dropout attention_dropout activation_dropout dropout_input feature_grad_mult"
    names += " mask_prob mask_length mask_channel_prob mask_channel_length"
    over = {name: settings[name] for name in names.split()}
    over |= {"layerdrop": config.layer_drop, "final_dropout": 0.0, "apply_mask": True}
    over |= {"w2v_path": "", "data": "", "normalize": normalize, "w2v_args": cfg}
    task = {**task, "_name": "audio_finetuning", "labels": labels[0]}
    return {"model": {"_name": "wav2vec_ctc", **over}, "task": task}


def _reorder(state: dict[str, Tensor], spelled: Alphabet) -> Alphabet:
    """Bring the outputs into the order of fairseq's dictionaries (the blank, three special ones,
    the symbols) and return the alphabet of that. A special output that is new is never the best;
    one that fairseq has no place for is lost."""
    special = {spelled.tokens[i]: i for i in sorted(spelled.special - {spelled.blank})}
    wanted = (("<s>", "<pad>", "[PAD]"), ("</s>",), ("<unk>", "[UNK]"))
    places = [next((special[n] for n in names if n in special), None) for names in wanted]
    symbols = [i for i in range(spelled.num_tokens) if i not in spelled.special]
    order = [spelled.blank, *places, *symbols]
    if order != [*range(spelled.num_tokens)]:
        for name in ("weight", "bias"):
            rows = state[f"w2v_encoder.proj.{name}"]
            new = torch.full_like(rows[0], 0.0 if name == "weight" else NEVER)
            moved = [new if i is None else rows[i] for i in order]
            state[f"w2v_encoder.proj.{name}"] = torch.stack(moved)
    names = ["|" if i == spelled.delimiter else spelled.tokens[i] for i in symbols]
    return of_fairseq(names, spelled.units, spelled.text, spelled.folding)


def _write_dictionary(path: Path, spelled: Alphabet) -> None:
    """fairseq's dictionary. Raises ValueError where another is there."""
    if path.exists():
        if read_alphabet(path, spelled.units).symbols != spelled.symbols:
            raise ValueError(f"{path} exists and is another alphabet's: choose another folder")
        return
    with replacing(path) as temporary:
        temporary.write_text(in_lines(spelled, fairseq=True), encoding="utf-8")


def _spelled(model: Wav2Vec2ForCTC, tokens: str | Alphabet) -> Alphabet:
    """The alphabet of the outputs. Raises ValueError where it is of another size."""
    spelled = alphabet(tokens) if isinstance(tokens, str) else tokens
    outputs = model.token_projection.out_features
    if outputs != spelled.num_tokens:
        raise ValueError(
            f"tokens is {str(tokens)!r} ({spelled.num_tokens} tokens) but the model has {outputs} "
            "outputs: name the tokens that it was trained on"
        )
    return spelled


def save_huggingface(
    model: Model,
    path: str | Path,
    *,
    normalize: bool = False,
    tokens: str | Alphabet = "letters",
) -> None:
    """Write a folder for Wav2Vec2ForPreTraining, Wav2Vec2ForCTC or Wav2Vec2Model (from_pretrained),
    for a CTC model of Wav2Vec2Processor; `normalize` as in data.*, `tokens` an alphabet or its
    name. Raises ValueError where `path` exists, the alphabet has another size than
    the output layer, or Hugging Face has no such model (quantized inputs, continuous targets)."""
    config = model.config
    if isinstance(model, Wav2Vec2ForPretraining) and not config.quantize_targets:
        raise ValueError(
            "quantize_targets is False but Hugging Face's pre-training model always has a "
            "quantizer: export to fairseq, or fine-tune first"
        )
    state = _their_state(model, "huggingface")
    encoder = isinstance(model, Wav2Vec2Model)
    if encoder:
        state = {name.removeprefix("wav2vec2."): tensor for name, tensor in state.items()}
    name = "Wav2Vec2Model" if encoder else "Wav2Vec2ForPreTraining"
    settings: dict[str, Any] = {"architectures": [name], **their_settings(config, "huggingface")}
    settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings |= {"final_dropout": 0.0, "ctc_zero_infinity": True}
    processing: dict[str, Any] = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    processing |= {"feature_size": 1, "sampling_rate": 16_000, "padding_side": "right"}
    processing |= {"padding_value": 0.0, "do_normalize": normalize}
    processing["return_attention_mask"] = config.extractor_norm == "layer"
    files = {"config.json": settings, "preprocessor_config.json": processing}
    if isinstance(model, Wav2Vec2ForCTC):
        spelled = _spelled(model, tokens)
        settings |= {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": spelled.num_tokens}
        settings |= {"pad_token_id": spelled.blank}
        processing["processor_class"] = "Wav2Vec2Processor"
        special = special_tokens(spelled)
        for role in ("bos_token", "eos_token"):
            token = special[role]
            settings[f"{role}_id"] = None if token is None else spelled.tokens.index(token)
        files |= {"vocab.json": vocabulary(spelled), "special_tokens_map.json": special}
        files |= {"tokenizer_config.json": {**tokenizer_kind(spelled), **special}}
        files |= {OURS: spelled.to_dict()}
    with replacing(Path(path), folder=True) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (temporary / name).write_text(text, encoding="utf-8")
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})


def special_tokens(spelled: Alphabet) -> dict[str, str | None]:
    """The special tokens of Hugging Face's tokenizers; null where the alphabet has none."""
    known = {spelled.tokens[i] for i in spelled.special}
    wanted = {
        "bos_token": ("<s>", "<bos>", "[CLS]"),
        "eos_token": ("</s>", "<eos>", "[SEP]"),
        "unk_token": ("<unk>", "[UNK]", *(name for name in known if "unk" in name.lower())),
    }
    blank = spelled.tokens[spelled.blank]
    named = {
        role: next((name for name in names if name in known - {blank}), None)
        for role, names in wanted.items()
    }
    return {"pad_token": blank, **named}


def tokenizer_kind(spelled: Alphabet) -> dict[str, Any]:
    """The class of the tokenizer and how it reads and writes texts."""
    if spelled.units == "phones":
        return {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": False}
    delimiter = None if spelled.delimiter is None else spelled.tokens[spelled.delimiter]
    kind = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": delimiter}
    # Older versions would otherwise take blanks before punctuation out of what they decode
    return {**kind, "clean_up_tokenization_spaces": False}


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
    prefix = "encoder." if isinstance(model, Wav2Vec2Model) else ""
    for name, tensor in model.state_dict(prefix=prefix).items():
        theirs = their_name(name, library, model.config, ctc)
        if theirs is not None:
            shape = (1, -1, tensor.shape[-1]) if name.endswith("codebooks") else tensor.shape
            # torch.save writes all of the storage that a view is of
            copy = library != "huggingface"
            value = tensor.detach().to("cpu", torch.float32, copy=copy)
            out[theirs] = value.contiguous().view(shape)
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
    path = path.resolve()  # of a link, what it leads to is made
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
