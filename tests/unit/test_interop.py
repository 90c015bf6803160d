"""Checkpoints of other libraries: logits in theirs, round trips to the bit, and what is refused."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from w2v2dist import checkpoint
from w2v2dist.cli import main
from w2v2dist.config import from_dict, read_yaml, to_dict
from w2v2dist.data.alphabet import alphabet, of_symbols
from w2v2dist.decode.greedy import greedy_text
from w2v2dist.interop import (
    fairseq_name,
    load_fairseq,
    load_huggingface,
    load_torchaudio,
    open_model,
    save_fairseq,
    save_huggingface,
    save_torchaudio,
)
from w2v2dist.interop.load import read_fairseq, read_huggingface
from w2v2dist.interop.names import our_name, their_name
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining
from w2v2dist.model.config import TemperatureConfig
from w2v2dist.tasks.finetune import FinetuneConfig, load_pretrained

GROUP = Wav2Vec2Config(
    conv_channels=16,
    num_layers=2,
    embed_dim=32,
    ffn_dim=48,
    num_heads=4,
    pos_conv_kernel=8,
    pos_conv_groups=4,
    final_dim=24,
    num_codebook_entries=10,
    num_distractors=7,
    logit_temperature=0.2,
    layer_drop=0.07,
    temperature=TemperatureConfig(start=1.9, floor=0.4, decay=0.999),
)
LAYER = dataclasses.replace(GROUP, extractor_norm="layer", conv_bias=True, norm_first=True)
CONFIGS = {"group_post": GROUP, "layer_pre": LAYER}
both = pytest.mark.parametrize("name", CONFIGS)


def make(config: Wav2Vec2Config, ctc: bool, num_tokens: int = 32) -> nn.Module:
    """A model whose norms and biases count, in evaluation mode."""
    torch.manual_seed(5)
    model = Wav2Vec2ForCTC(config, num_tokens) if ctc else Wav2Vec2ForPretraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    """Waveforms (2, 8000), of which the second is padded, and their lengths."""
    torch.manual_seed(6)
    num_samples = torch.tensor([8_000, 5_500])
    waveforms = torch.randn(2, 8_000)
    waveforms[1, 5_500:] = 0
    return waveforms, num_samples


def assert_same_bits(ours: nn.Module, other: nn.Module) -> None:
    state, back = ours.state_dict(), other.state_dict()
    assert state.keys() == back.keys()
    assert [n for n in state if not torch.equal(state[n], back[n])] == []


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """The frames that are not padding, to 1e-4 absolute."""
    for row, num_samples in enumerate(batch()[1].tolist()):
        frames = GROUP.num_frames(num_samples)
        assert (ours[row, :frames] - theirs[row, :frames]).abs().max() < 1e-4
    assert ours.abs().max() > 0.1


@both
@pytest.mark.parametrize("ctc", [False, True])
@pytest.mark.parametrize("library", ["fairseq", "huggingface"])
def test_round_trip_returns_the_same_bits(
    tmp_path: Path, name: str, ctc: bool, library: str
) -> None:
    save, load = {
        "fairseq": (save_fairseq, load_fairseq),
        "huggingface": (save_huggingface, load_huggingface),
    }[library]
    model = make(CONFIGS[name], ctc)
    save(model, tmp_path / "out")
    back = load(tmp_path / "out")
    assert type(back) is type(model)
    assert_same_bits(model, back)
    expected = CONFIGS[name]
    if library == "huggingface":  # it has no such settings; none of them is of the architecture
        defaults = {n: getattr(Wav2Vec2Config(), n) for n in ("feature_grad_mult", "temperature")}
        expected = dataclasses.replace(expected, **defaults)
    assert back.config == expected
    beside = ["dict.ltr.txt"] if ctc and library == "fairseq" else []
    assert sorted(os.listdir(tmp_path)) == [*beside, "out"]  # nothing temporary is left


@both
def test_torchaudio_logits_and_round_trip(tmp_path: Path, name: str) -> None:
    model = make(CONFIGS[name], ctc=True)
    save_torchaudio(model, tmp_path / "out.pt")
    arguments = json.loads((tmp_path / "out.pt.json").read_text())
    theirs = torchaudio.models.wav2vec2_model(**arguments).eval()
    theirs.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    waveforms, num_samples = batch()
    with torch.no_grad():
        logits, frames = theirs(waveforms, num_samples)
        ours = model(waveforms, num_samples)
    assert frames.tolist() == ours.num_frames.tolist()
    assert_close(ours.logits, logits)
    (tmp_path / "out.pt.json").unlink()
    with pytest.raises(ValueError, match=r"out\.pt carries no configuration"):
        load_torchaudio(tmp_path / "out.pt")
    with pytest.raises(ValueError, match=r"unexpected: encoder\.transformer\.layers\.1\."):
        load_torchaudio(tmp_path / "out.pt", dataclasses.replace(CONFIGS[name], num_layers=1))
    back = load_torchaudio(tmp_path / "out.pt", CONFIGS[name])
    assert not back.encoder.mask_embedding.any()
    back.encoder.mask_embedding.data.copy_(model.encoder.mask_embedding)
    assert_same_bits(model, back)


@both
def test_torchaudio_features_of_a_pretraining(tmp_path: Path, name: str) -> None:
    model = make(CONFIGS[name], ctc=False)
    save_torchaudio(model, tmp_path / "out.pt")
    theirs = torchaudio.models.wav2vec2_model(
        **json.loads((tmp_path / "out.pt.json").read_text())
    ).eval()
    theirs.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    waveforms, num_samples = batch()
    with torch.no_grad():
        assert_close(
            model(waveforms, num_samples=num_samples).features, theirs(waveforms, num_samples)[0]
        )
    back = load_torchaudio(tmp_path / "out.pt")
    back.mask_embedding.data.copy_(model.encoder.mask_embedding)
    assert_same_bits(model.encoder, back)


@both
def test_huggingface_ctc(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(CONFIGS[name], ctc=True)
    model.token_projection.bias.data[1:4] = -100  # no training produces these tokens
    save_huggingface(model, tmp_path / "out", normalize=name == "layer_pre")
    theirs, info = transformers.Wav2Vec2ForCTC.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    waveforms, num_samples = batch()
    mask = (torch.arange(8_000) < num_samples[:, None]).long()
    with torch.no_grad():
        logits = theirs(waveforms, attention_mask=mask).logits
        ours = model(waveforms, num_samples)
    assert_close(ours.logits, logits)
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "out")
    assert processor.feature_extractor.do_normalize == (name == "layer_pre")
    assert processor.feature_extractor.return_attention_mask == (name == "layer_pre")
    assert processor(audio=waveforms[0].numpy(), sampling_rate=16_000).input_values[0].shape == (
        8_000,
    )
    letters = alphabet("letters")
    assert processor.tokenizer(text="DON'T PANIC").input_ids == letters.encode("don't panic")
    texts = greedy_text(ours.logits[:1], ours.num_frames[:1], letters)
    assert [t.strip() for t in processor.batch_decode(logits[:1].argmax(-1))] == texts
    assert any(texts)


def test_huggingface_phones(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    phones = alphabet("phones")
    model = make(GROUP, ctc=True, num_tokens=phones.num_tokens)
    with pytest.raises(ValueError, match=r"'letters' \(32 tokens\) but the model has 43 outputs"):
        save_huggingface(model, tmp_path / "out")
    save_huggingface(model, tmp_path / "out", tokens="phones")
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "out")
    path = [*phones.encode("sh iy"), 0, 0, *phones.encode("ae")]
    assert processor.batch_decode([path]) == ["sh iy ae"] == [phones.decode(path)]
    back = read_huggingface(tmp_path / "out").alphabet
    assert back == phones  # its folding too


@both
def test_huggingface_pretraining(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(CONFIGS[name], ctc=False)
    save_huggingface(model, tmp_path / "out")
    theirs, info = transformers.Wav2Vec2ForPreTraining.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    waveforms, num_samples = batch()
    attention = (torch.arange(8_000) < num_samples[:, None]).long()
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, 3:9] = True
    distractors = (torch.arange(6)[None, :, None] + torch.tensor([1, 3, 4])) % 6
    distractors = distractors.expand(2, 6, 3)
    flat = torch.zeros(2, 24, 3, dtype=torch.int64)
    flat[:, 3:9] = distractors + 3 + torch.tensor([0, 24])[:, None, None]
    with torch.no_grad():
        reference = theirs.eval()(
            waveforms, attention, mask_time_indices=mask, sampled_negative_indices=flat
        )
        out = model(waveforms, mask, distractors, num_samples)
        assert_close(model.context_projection(out.features), reference.projected_states)
    assert out.contrastive_loss.item() == pytest.approx(reference.contrastive_loss.item(), rel=1e-5)


def test_huggingface_reads_back_what_it_saves_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(LAYER, ctc=False)
    save_huggingface(model, tmp_path / "out")
    transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "out").save_pretrained(
        tmp_path / "again"
    )
    assert_same_bits(model, load_huggingface(tmp_path / "again"))
    # Older files: pickled, and with the older names of weight norm
    weights = load_file(tmp_path / "out" / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    (tmp_path / "out" / "model.safetensors").unlink()
    torch.save(old, tmp_path / "out" / "pytorch_model.bin")
    assert_same_bits(model, load_huggingface(tmp_path / "out"))


@pytest.mark.parametrize("variant", ["default_postln", "layernorm_preln"])
def test_golden_names_both_ways(golden_dir: Path, variant: str) -> None:
    fairseq = load_file(golden_dir / f"{variant}_state_fairseq.safetensors")
    huggingface = load_file(golden_dir / f"{variant}_state_hf.safetensors")
    config = dataclasses.replace(GROUP if variant == "default_postln" else LAYER, num_layers=2)
    ours = {fairseq_name(name): tensor for name, tensor in fairseq.items()}
    assert ours.keys() == {our_name(name, "huggingface") for name in huggingface}
    assert {their_name(n, "fairseq", config, False) for n in ours} == fairseq.keys()
    assert {their_name(n, "huggingface", config, False) for n in ours} == huggingface.keys()
    for name, tensor in ours.items():
        theirs = huggingface[str(their_name(name, "huggingface", config, False))]
        assert torch.equal(tensor, theirs), name


def old_file(path: Path, **changes: Any) -> Wav2Vec2ForPretraining:
    """A fairseq file with `args` as the first releases have it, instead of `cfg`."""
    model = make(LAYER, ctc=False)
    save_fairseq(model, path)
    content = torch.load(path, weights_only=True)
    values = content["cfg"]["model"] | {
        "task": "audio_pretraining",
        "normalize": True,
        "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] + [(16,2,2)]",
        "latent_temp": "(1.9, 0.4, 0.999)",
    }
    content |= {"cfg": None, "args": argparse.Namespace(**values | changes)}
    torch.save(content, path)
    return model


def test_old_fairseq_files(tmp_path: Path) -> None:
    model = old_file(tmp_path / "old.pt", final_dim=0)
    foreign = read_fairseq(tmp_path / "old.pt")
    assert foreign.normalize
    assert foreign.config == dataclasses.replace(LAYER, final_dim=32)  # 0 means embed_dim
    assert_same_bits(model, load_fairseq(tmp_path / "old.pt", LAYER))
    for text in ("[(16, 10, 5)] * 1000", "__import__('os').getcwd()", "[(16, 10, 5)"):
        old_file(tmp_path / "bad.pt", conv_feature_layers=text)
        with pytest.raises(ValueError, match=r"bad\.pt cannot be used"):
            load_fairseq(tmp_path / "bad.pt")
        (tmp_path / "bad.pt").unlink()
    old_file(tmp_path / "relu.pt", activation_fn="relu")
    with pytest.raises(ValueError, match="another architecture: activation_fn is 'relu'"):
        load_fairseq(tmp_path / "relu.pt")


def test_fine_tuned_fairseq_settings_replace_those_of_the_pretraining(tmp_path: Path) -> None:
    save_fairseq(make(GROUP, ctc=True), tmp_path / "ctc.pt")
    content = torch.load(tmp_path / "ctc.pt", weights_only=True)
    content["cfg"]["model"] |= {"layerdrop": 0.3, "mask_prob": 0.5, "dropout": None}
    config = read_fairseq(content).config
    assert config == dataclasses.replace(GROUP, layer_drop=0.3, mask_prob=0.5)


def test_what_fairseq_leaves_out(tmp_path: Path) -> None:
    """A projection between equal widths; quantized inputs and continuous targets it has."""
    config = dataclasses.replace(GROUP, conv_channels=32)
    model = make(config, ctc=True)
    with pytest.raises(ValueError, match="fairseq has no projection"):
        save_fairseq(model, tmp_path / "same.pt")
    projection = model.encoder.feature_projection
    nn.init.eye_(projection.weight)
    nn.init.zeros_(projection.bias)
    save_fairseq(model, tmp_path / "same.pt")
    weights = torch.load(tmp_path / "same.pt", weights_only=True)["model"]
    assert not [name for name in weights if "post_extract_proj" in name]
    assert_same_bits(model, load_fairseq(tmp_path / "same.pt"))
    config = dataclasses.replace(GROUP, quantize_inputs=True, quantize_targets=False)
    model = make(config, ctc=False)
    save_fairseq(model, tmp_path / "quantized.pt")
    assert_same_bits(model, load_fairseq(tmp_path / "quantized.pt"))
    ctc = make(config, ctc=True)
    for save, path in ((save_huggingface, "hf"), (save_torchaudio, "ta.pt")):
        with pytest.raises(ValueError, match=r"no place for encoder\.input_quantizer"):
            save(ctc, tmp_path / path)
    with pytest.raises(ValueError, match="quantize_targets is False"):
        save_huggingface(model, tmp_path / "hf")
    assert sorted(os.listdir(tmp_path)) == ["dict.ltr.txt", "quantized.pt", "same.pt"]


def test_misfits_are_listed(tmp_path: Path) -> None:
    model = make(LAYER, ctc=False)
    save_huggingface(model, tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["wav2vec2.adapter.weight"] = weights.pop("project_hid.weight")
    weights["project_q.bias"] = torch.zeros(5)
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_huggingface(tmp_path / "hf")
    assert "missing: project_hid.weight; unexpected: wav2vec2.adapter.weight; " in str(error.value)
    assert "of another shape: project_q.bias (5,), not (24,)" in str(error.value)
    save_fairseq(model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"missing: encoder\.layers\.2\.fc1\.bias.* and 6 more"):
        load_fairseq(tmp_path / "model.pt", dataclasses.replace(LAYER, num_layers=3))
    with pytest.raises(ValueError, match="carries no configuration"):
        load_fairseq(torch.load(tmp_path / "model.pt", weights_only=True)["model"])
    with pytest.raises(ValueError, match="a pre-trained model where a model fine-tuned with CTC"):
        load_fairseq(tmp_path / "model.pt", task="finetune")
    with pytest.raises(ValueError, match=r"model\.pt exists"):
        save_fairseq(model, tmp_path / "model.pt")


class Stranger:
    """Not plain data: whoever reads it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_unreadable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "model.pt", tmp_path / "imported"
    model = make(LAYER, ctc=False)
    save_fairseq(model, path)
    whole = path.read_bytes()

    def refused(*arguments: str) -> str:
        assert main(["import", *arguments, "--output", str(out)]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        assert "truncated, damaged or no checkpoint" in refused(str(path))
    path.write_text("not a checkpoint")
    assert "truncated, damaged or no checkpoint" in refused(str(path))
    assert "does not exist" in refused(str(tmp_path / "missing.pt"))
    assert "config.json does not exist" in refused(str(tmp_path))
    torch.save(model.state_dict(), path)
    assert "is not a fairseq checkpoint: it has no weights under 'model'" in refused(str(path))
    path.write_bytes(whole)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"task_state": Stranger(tmp_path / "made")}, path)
    message = refused(str(path))
    assert "mkdir" in message
    assert "run code" in message
    assert "--trust-pickle" in message
    assert not (tmp_path / "made").exists()
    assert main(["import", str(path), "--output", str(out), "--trust-pickle"]) == 0
    assert (tmp_path / "made").exists()
    save_huggingface(model, tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_huggingface(tmp_path / "hf")


@pytest.mark.parametrize("library", ["fairseq", "huggingface"])
def test_imported_models_are_fine_tuned(
    tmp_path: Path, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = str(tmp_path / "source"), str(tmp_path / "runs" / "imported")
    model = make(LAYER, ctc=False)
    save = {"fairseq": save_fairseq, "huggingface": save_huggingface}[library]
    save(model, source, normalize=True)
    assert main(["import", source, "--output", output, "--task", "finetune"]) == 2
    assert "a pre-trained model where a model fine-tuned" in capsys.readouterr().err
    assert main(["import", source, "--output", output]) == 0
    assert "data.normalize=true" in capsys.readouterr().out.replace("\n", " ")
    started = make(LAYER, ctc=True)
    nn.init.zeros_(started.encoder.feature_projection.weight)
    letters = alphabet("letters")
    for start in (output, source):  # what was imported, and as it is
        nn.init.zeros_(started.encoder.feature_projection.weight)
        notes = load_pretrained(started, start, letters, True)
        assert notes[0].endswith("(pretrained); a new output layer")
        assert_same_bits(model.encoder, started.encoder)
    assert "will hear other audio" in load_pretrained(started, source, letters, False)[-1]
    saved = checkpoint.read_meta(checkpoint.find(Path(output)))["config"]
    assert (saved["task"], saved["data"]["normalize"]) == ("pretrain", True)
    # and back again
    again = str(tmp_path / "again")
    assert main(["export", output, "--format", library, "--output", again]) == 0
    load = {"fairseq": load_fairseq, "huggingface": load_huggingface}[library]
    assert_same_bits(model, load(again))
    assert main(["import", source, "--output", output]) == 2
    assert f"{output} exists" in capsys.readouterr().err


def test_importing_a_fine_tuned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = str(tmp_path / "ctc.pt"), str(tmp_path / "imported")
    model = make(GROUP, ctc=True)
    save_fairseq(model, source)
    assert main(["import", source, "--output", output, "--task", "pretrain"]) == 2
    error = capsys.readouterr().err
    assert "is a model fine-tuned with CTC where a pre-trained model is needed (missing:" in error
    assert " quantizer.vars," in error
    assert "unexpected: w2v_encoder.proj.bias, w2v_encoder.proj.weight" in error
    assert main(["import", source, "--output", output]) == 0
    config = from_dict(FinetuneConfig, read_yaml(Path(output) / "config.yaml"))
    assert config.model == GROUP
    assert config.data.tokens == "letters"
    # What nobody knows of it is not written, and what reads a run folder needs no more
    assert read_yaml(Path(output) / "config.yaml") == {
        "task": "finetune",
        "run_dir": output,
        "model": to_dict(GROUP),
        "data": {"normalize": False, "tokens": "letters"},
    }
    assert main(["status", output]) == 0
    assert "checkpoint step 0" in capsys.readouterr().out
    assert main(["report", output]) == 0
    assert "Fine-tuning" in (Path(output) / "report.html").read_text()
    back = make(GROUP, ctc=True)
    nn.init.zeros_(back.token_projection.weight)
    note = load_pretrained(back, output, alphabet("letters"), False)[0]
    assert note.endswith("its output layer is continued: the alphabet is the same")
    assert_same_bits(model, back)
    other = of_symbols("|ABC")
    started = make(GROUP, ctc=True, num_tokens=other.num_tokens)
    head = started.token_projection.weight.detach().clone()
    assert "left behind" in load_pretrained(started, output, other, False)[0]
    assert torch.equal(started.token_projection.weight, head)
    assert_same_bits(model.encoder, started.encoder)
    (tmp_path / "elsewhere").mkdir()
    save_fairseq(
        make(GROUP, ctc=True, num_tokens=31),
        tmp_path / "elsewhere" / "other.pt",
        tokens=of_symbols("ABCDEFGHIJKLMNOPQRSTUVWXYZ|"),
    )
    arguments = ["import", str(tmp_path / "elsewhere" / "other.pt"), "--output", f"{output}2"]
    assert main(arguments) == 0
    spelled = open_model(f"{output}2").alphabet
    assert spelled.symbols == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ|"]
    (tmp_path / "elsewhere" / "dict.ltr.txt").unlink()
    content = torch.load(tmp_path / "elsewhere" / "other.pt", weights_only=True)
    del content["alphabet"]
    torch.save(content, tmp_path / "elsewhere" / "other.pt")
    arguments[-1] += "3"
    assert main(arguments) == 2
    assert "31 outputs and is on an alphabet that is not known" in capsys.readouterr().err
    (tmp_path / "elsewhere" / "dict.ltr.txt").write_text("a 1\nb 1\n")
    assert main(arguments) == 2
    assert "has 6 symbols (with fairseq's four) but" in capsys.readouterr().err


def test_configuration_of_a_file_that_carries_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = str(tmp_path / "bare.pt"), str(tmp_path / "imported")
    save_fairseq(make(GROUP, ctc=False), source)
    weights = torch.load(source, weights_only=True)["model"]
    torch.save({"model": collections.OrderedDict(weights)}, source)
    assert main(["import", source, "--output", output]) == 2
    assert "--config FILE.yaml" in capsys.readouterr().err
    lines = [
        f"  {field}: {getattr(GROUP, field)}"
        for field in (
            "conv_channels", "num_layers", "embed_dim", "ffn_dim", "num_heads", "pos_conv_kernel",
            "pos_conv_groups", "final_dim", "num_codebook_entries",
        )
    ]  # fmt: skip
    yaml = tmp_path / "ours.yaml"
    ours = "\n".join(lines) + "\ndata: {normalize: true, max_crop: 160_000}\n"
    yaml.write_text(f"task: pretrain\nloop: {{max_steps: 9}}\nmodel:\n{ours}")  # a training's
    assert main(["import", source, "--output", output, "--config", str(yaml)]) == 0
    saved = checkpoint.read_meta(checkpoint.find(Path(output)))["config"]
    assert saved["data"] == {"normalize": True, "tokens": "letters"}


def test_mistakes_in_the_configuration_of_an_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = str(tmp_path / "model.pt"), str(tmp_path / "imported")
    save_fairseq(make(GROUP, ctc=False), source)
    for text, message in (
        ("modle: {num_layers: 7}", "modle is not a configuration key; did you mean model?"),
        ("model: {num_layer: 7}", "model.num_layer is not a configuration key; did you mean"),
        ("data: {normalise: true}", "data.normalise is not a configuration key; did you mean"),
        ("data: [1]", "data is [1] but must be a mapping"),
        ("model: [1]", "model is [1] but must be a mapping"),
    ):
        (tmp_path / "ours.yaml").write_text(text)
        arguments = ["import", source, "--output", output, "--config", str(tmp_path / "ours.yaml")]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not Path(output).exists()


def test_normalisation_that_is_not_known_must_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "hf", str(tmp_path / "imported")
    save_huggingface(make(LAYER, ctc=False), source, normalize=True)
    (source / "preprocessor_config.json").write_text("{}")
    assert read_huggingface(source).normalize is True  # the default of Hugging Face
    (source / "preprocessor_config.json").unlink()  # as Wav2Vec2Model.save_pretrained leaves it
    assert main(["import", str(source), "--output", output]) == 2
    assert "data: {normalize: true}" in capsys.readouterr().err
    (tmp_path / "ours.yaml").write_text("data: {normalize: true}")
    arguments = ["--output", output, "--config", str(tmp_path / "ours.yaml")]
    assert main(["import", str(source), *arguments]) == 0


def test_files_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save([1], tmp_path / "list.pt")
    torch.save({"model": {"mask_emb": 1}}, tmp_path / "numbers.pt")
    for name in ("list.pt", "numbers.pt"):
        with pytest.raises(ValueError, match="is not a fairseq checkpoint"):
            load_fairseq(tmp_path / name)
    with pytest.raises(ValueError, match="no state dict of torchaudio"):
        load_torchaudio(tmp_path / "list.pt")
    save_huggingface(make(LAYER, ctc=False), tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save([1], tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no mapping of names to weights"):
        load_huggingface(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json is truncated, damaged or no checkpoint"):
        load_huggingface(tmp_path / "hf")
    (tmp_path / "empty").mkdir()  # a file cannot take a folder's place
    with pytest.raises(ValueError, match="empty exists"):
        save_fairseq(make(GROUP, ctc=False), tmp_path / "empty")
