"""`open_model`: every form in which released models come, with the logits of transformers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.test_interop import GROUP, LAYER, assert_close, assert_same_bits, batch, make
from w2v2dist.checkpoint import CheckpointError
from w2v2dist.cli import main
from w2v2dist.data.alphabet import alphabet, of_symbols
from w2v2dist.interop import open_model, save_fairseq, save_huggingface
from w2v2dist.model import Wav2Vec2ForCTC, Wav2Vec2ForPretraining, Wav2Vec2Model

transformers = pytest.importorskip("transformers")
GREEK = of_symbols("|αβγδεζ")


def huggingface(folder: Path, ctc: bool = True, config: Any = LAYER) -> Any:
    """A folder as transformers itself saves it today, with its processor; the model."""
    raw = folder.with_name(f"{folder.name}-raw")
    save_huggingface(make(config, ctc, 11), raw, normalize=True, tokens=GREEK)
    name = "Wav2Vec2ForCTC" if ctc else "Wav2Vec2ForPreTraining"
    model = getattr(transformers, name).from_pretrained(raw).eval()
    model.save_pretrained(folder)
    if ctc:
        transformers.Wav2Vec2Processor.from_pretrained(raw).save_pretrained(folder)
        assert not (folder / "preprocessor_config.json").exists()
    return model


def theirs(model: Any) -> Tensor:
    """Logits, or features of what has no output layer."""
    waveforms, num_samples = batch()
    mask = (torch.arange(8_000) < num_samples[:, None]).long()
    with torch.no_grad():
        out = model(waveforms, attention_mask=mask)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state  # type: ignore[no-any-return]


def ours(module: Any) -> Tensor:
    waveforms, num_samples = batch()
    with torch.no_grad():
        if isinstance(module, Wav2Vec2ForCTC):
            return module(waveforms, num_samples).logits
        if isinstance(module, Wav2Vec2Model):
            return module(waveforms, num_samples).features
        return module(waveforms, num_samples=num_samples).features  # type: ignore[no-any-return]


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_of_todays_transformers(tmp_path: Path) -> None:
    model = huggingface(tmp_path / "hf")
    assert (tmp_path / "hf" / "processor_config.json").exists()
    opened = open_model(tmp_path / "hf")
    assert (opened.kind, opened.normalize, opened.notes) == ("ctc", True, ())
    assert opened.alphabet is not None
    assert opened.alphabet.agrees(GREEK)
    assert_close(ours(opened.module), theirs(model))
    assert not opened.module.training


@pytest.mark.parametrize("ctc", [False, True])
def test_a_mask_embedding_that_is_missing_or_has_its_old_name(tmp_path: Path, ctc: bool) -> None:
    model = huggingface(tmp_path / "hf", ctc)
    name = "wav2vec2.masked_spec_embed"
    rewrite(tmp_path / "hf", lambda w: {"wav2vec2.mask_time_emb_vector": w.pop(name), **w})
    opened = open_model(tmp_path / "hf")
    assert opened.notes == ()
    assert torch.equal(opened.encoder.mask_embedding, model.wav2vec2.masked_spec_embed)
    rewrite(tmp_path / "hf", lambda w: {k: v for k, v in w.items() if "mask_time" not in k})
    opened = open_model(tmp_path / "hf")
    assert "the mask embedding is missing and was set to 0" in opened.notes[0]
    assert not opened.encoder.mask_embedding.any()
    if ctc:
        assert_close(ours(opened.module), theirs(model))


@pytest.mark.parametrize("safe", [True, False])
def test_weights_in_parts(tmp_path: Path, safe: bool) -> None:
    model = huggingface(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    places = {}
    for part, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), 1):
        file = f"{stem}-{part:05d}-of-00002.{suffix}"
        places |= dict.fromkeys(names, file)
        content = {n: weights[n] for n in names}
        (save_file if safe else torch.save)(content, tmp_path / "hf" / file)
    index = tmp_path / "hf" / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_close(ours(open_model(tmp_path / "hf").module), theirs(model))
    index.write_text(json.dumps({"weight_map": {**places, "wav2vec2.more": file}}))
    with pytest.raises(ValueError, match=r"lacks wav2vec2\.more, which .* promises"):
        open_model(tmp_path / "hf")
    (tmp_path / "hf" / file).write_bytes((tmp_path / "hf" / file).read_bytes()[:999])
    with pytest.raises(ValueError, match=f"{file} is truncated"):
        open_model(tmp_path / "hf")
    (tmp_path / "hf" / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing, which .* names"):
        open_model(tmp_path / "hf")
    index.write_text(json.dumps({"weight_map": {"wav2vec2.more": "../elsewhere"}}))
    with pytest.raises(ValueError, match="which is no file beside it"):
        open_model(tmp_path / "hf")


def test_an_encoder_alone_and_one_with_another_head(tmp_path: Path) -> None:
    raw = huggingface(tmp_path / "hf")
    raw.wav2vec2.save_pretrained(tmp_path / "body")
    assert "feature_projection.projection.weight" in load_file(tmp_path / "body/model.safetensors")
    opened = open_model(tmp_path / "body")
    assert (opened.kind, opened.alphabet, opened.normalize) == ("encoder", None, None)
    assert_close(ours(opened.module), theirs(raw.wav2vec2))
    other = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / "hf")
    other.save_pretrained(tmp_path / "classifier")
    opened = open_model(tmp_path / "classifier")
    assert opened.kind == "encoder"
    assert opened.notes[0].startswith("left behind: classifier, projector, no part of")
    assert_close(ours(opened.module), theirs(raw.wav2vec2))
    # and what it becomes here, and back
    save_huggingface(opened.module, tmp_path / "again")
    again = transformers.Wav2Vec2Model.from_pretrained(tmp_path / "again").eval()
    assert_close(theirs(again), theirs(raw.wav2vec2))


def test_half_precision_weights(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf").half().save_pretrained(tmp_path / "half")
    opened = open_model(tmp_path / "half")
    half = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "half").float().eval()
    assert_close(ours(opened.module), theirs(half))
    assert opened.alphabet is None
    assert opened.notes == ("its alphabet is not known: vocab.json is missing",)


def test_a_vocabulary_whose_blank_is_the_last(tmp_path: Path) -> None:
    """As most guides make it: letters, then [UNK] and [PAD], then what the tokenizer adds."""
    huggingface(tmp_path / "hf")
    for name in ("alphabet.json", "tokenizer_config.json"):
        (tmp_path / "hf" / name).unlink(missing_ok=True)
    ids = {c: i for i, c in enumerate("|abcdef")} | {"[UNK]": 7, "[PAD]": 8}
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps({"<s>": 9, "</s>": 10}))
    roles = {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]"}, "word_delimiter_token": "|"}
    (tmp_path / "hf" / "special_tokens_map.json").write_text(json.dumps(roles))
    roles |= {"unk_token": "[UNK]"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(roles))
    opened = open_model(tmp_path / "hf")
    spelled = opened.alphabet
    assert spelled is not None
    assert (spelled.blank, spelled.delimiter, spelled.special) == (8, 0, frozenset({7, 8, 9, 10}))
    path = [8, 3, 3, 8, 3, 0, 7, 1, 8, 8]
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(path).replace("[UNK]", "") == spelled.decode(path) == "cc a"
    # through our own folders and fairseq's order, and back
    save_huggingface(opened.module, tmp_path / "again", tokens=spelled)
    again = open_model(tmp_path / "again")
    assert again.alphabet == spelled
    assert_same_bits(opened.module, again.module)
    save_fairseq(opened.module, tmp_path / "again.pt", tokens=spelled)
    reordered = open_model(tmp_path / "again.pt")
    assert reordered.alphabet is not None
    assert (reordered.alphabet.blank, reordered.alphabet.symbols) == (0, [*"|abcdef"])
    mine, other = ours(opened.module), ours(reordered.module)
    assert torch.allclose(other[..., 4:], mine[..., :7], atol=1e-5)
    assert torch.allclose(other[..., 0], mine[..., 8], atol=1e-5)
    for place, row in ((1, 9), (2, 10), (3, 7)):  # <s>, </s>, [UNK]
        assert torch.allclose(other[..., place], mine[..., row], atol=1e-5)


def test_a_wrong_vocabulary(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    (tmp_path / "hf" / "alphabet.json").unlink(missing_ok=True)
    for content, problem in (
        ({"<pad>": 0, "a": 1, "b": 1}, "'a' and 'b' both have the id 1"),
        ({"a": 0, "b": 1, "|": 2}, "it has no blank for CTC"),
        ({"<pad>": 0} | {chr(97 + i): i + 1 for i in range(14)}, "'k', 'l', 'm', 'n' among those"),
        ({"<pad>": 0, "a": "1"}, "'a' has the id '1', which is no whole number"),
        ({"eng": {"a": 1}, "deu": {"a": 1}}, "it holds 2 languages (eng, deu"),
        ([], "it is no JSON object"),
    ):
        (tmp_path / "hf" / "vocab.json").write_text(json.dumps(content))
        (tmp_path / "hf" / "tokenizer_config.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"cannot be used|another model's") as error:
            open_model(tmp_path / "hf")
        assert problem in str(error.value)
    (tmp_path / "hf" / "vocab.json").write_text('{"<pad>": 0, "a": 1, "a": 2}')
    with pytest.raises(ValueError, match="'a' is there twice"):
        open_model(tmp_path / "hf")
    # fewer symbols than outputs: the others stand for no text
    (tmp_path / "hf" / "vocab.json").write_text('{"<pad>": 0, "a": 1, "|": 2}')
    opened = open_model(tmp_path / "hf")
    assert opened.alphabet is not None
    assert opened.alphabet.decode([1, 9, 2, 10, 1]) == "a a"
    assert "differ in ids that no text has" in opened.notes[0]


def test_adapters_of_mms_are_named(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "adapter_attn_dim": 16}))
    with pytest.raises(ValueError, match="has adapters for single languages"):
        open_model(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "model_type": "hubert"}))
    with pytest.raises(ValueError, match="another architecture: model_type is 'hubert'"):
        open_model(tmp_path / "hf")


def nested(sections: dict[str, Any]) -> argparse.Namespace:
    """Namespaces all the way down."""
    return argparse.Namespace(**{k: argparse.Namespace(**v) for k, v in sections.items()})


@pytest.mark.parametrize(
    "form", ["namespace", "namespaces", "mapping", "json", "old in old", "flat"]
)
@pytest.mark.parametrize("ctc", [False, True])
def test_settings_of_fairseq(tmp_path: Path, form: str, ctc: bool) -> None:
    """`args` or `cfg`; of a fine-tuning those of the pre-training in `w2v_args`, in any form."""
    model = make(LAYER, ctc)
    save_fairseq(model, tmp_path / "model.pt", normalize=True)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content.pop("alphabet", None)  # ours alone
    top = content["cfg"]
    old = {**top["model"], **top["task"], "task": "audio_pretraining", "arch": "wav2vec2"}
    if ctc:
        inner = top["model"]["w2v_args"]
        values = {**inner["model"], **inner["task"], "task": "audio_pretraining"}
        flat = argparse.Namespace(**{k: v for k, v in values.items() if k != "_name"})
        top["model"]["w2v_args"] = {
            "namespace": argparse.Namespace(**inner),
            "namespaces": nested(inner),
            "mapping": inner,
            "json": json.dumps(inner),
            "old in old": flat,
            "flat": {**inner["model"], "task": "audio_pretraining", "_name": "wav2vec2"},
        }[form]
        old = {**top["model"], **top["task"], "task": "audio_finetuning", "arch": "wav2vec_ctc"}
    del old["_name"]
    if form == "namespace":
        content["cfg"] = argparse.Namespace(**top)
    elif form == "namespaces":
        content["cfg"] = nested(top)
    elif form == "old in old":
        content |= {"cfg": None, "args": argparse.Namespace(**old)}
    elif form == "flat":
        content |= {"cfg": None, "args": old}
    elif form == "json":
        content["cfg"] = json.dumps(top)
    torch.save(content, tmp_path / "model.pt")
    (tmp_path / "dict.ltr.txt").unlink(missing_ok=True)
    opened = open_model(tmp_path / "model.pt")
    assert opened.kind == ("ctc" if ctc else "pretrained")
    assert opened.normalize is True
    assert opened.module.config == LAYER
    assert_same_bits(model, opened.module)
    if ctc:
        assert opened.alphabet is not None
        assert opened.alphabet.agrees(alphabet("letters"))
        assert "taken for the letters of fairseq's dictionary" in opened.notes[0]


def test_other_heads_of_fairseq_are_left_behind(tmp_path: Path) -> None:
    model = make(GROUP, ctc=True)
    save_fairseq(model, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["model"] |= {"w2v_encoder.w2v_model.quantizer.vars": torch.zeros(1, 20, 12)}
    torch.save(content, tmp_path / "ctc.pt")
    opened = open_model(tmp_path / "ctc.pt")
    assert opened.notes == ("left behind: quantizer, no part of a model fine-tuned with CTC",)
    assert_same_bits(model, opened.module)
    weights = {k: v for k, v in content["model"].items() if ".proj." not in k and "quant" not in k}
    content["model"] = weights | {"decoder.embed_tokens.weight": torch.zeros(4, 4)}
    torch.save(content, tmp_path / "seq2seq.pt")
    opened = open_model(tmp_path / "seq2seq.pt")
    assert (opened.kind, opened.alphabet) == ("encoder", None)
    assert "left behind: decoder" in opened.notes[0]
    content["model"] |= {"w2v_encoder.w2v_model.encoder.layers.7.fc1.weight": torch.zeros(1)}
    torch.save(content, tmp_path / "more.pt")
    with pytest.raises(ValueError, match=r"unexpected: .*encoder\.layers\.7\.fc1\.weight"):
        open_model(tmp_path / "more.pt")
    inner = content["cfg"]["model"]["w2v_args"]
    inner["model"]["_name"] = "hubert"
    torch.save(content, tmp_path / "hubert.pt")
    with pytest.raises(ValueError, match="another architecture: 'hubert'"):
        open_model(tmp_path / "hubert.pt")


def test_a_model_that_hears_speakers_and_real_sequence_to_sequence(tmp_path: Path) -> None:
    """Heads whose names are like the encoder's."""
    raw = huggingface(tmp_path / "hf")
    config = transformers.Wav2Vec2Config.from_pretrained(
        tmp_path / "hf",
        tdnn_dim=[8, 8],
        tdnn_kernel=[3, 1],
        tdnn_dilation=[1, 1],
        xvector_output_dim=8,
    )
    speakers = transformers.Wav2Vec2ForXVector.from_pretrained(tmp_path / "hf", config=config)
    speakers.save_pretrained(tmp_path / "speakers")
    opened = open_model(tmp_path / "speakers")
    assert opened.kind == "encoder"
    assert "feature_extractor" in opened.notes[0]
    assert_close(ours(opened.module), theirs(raw.wav2vec2))
    model = make(GROUP, ctc=True)
    save_fairseq(model, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    weights = {n.replace("w2v_encoder.", "encoder."): t for n, t in content["model"].items()}
    content["model"] = weights | {"decoder.embed.weight": torch.zeros(2, 2)}
    torch.save(content, tmp_path / "seq2seq.pt")
    opened = open_model(tmp_path / "seq2seq.pt")
    assert opened.kind == "encoder"
    assert_same_bits(model.encoder, opened.module)  # type: ignore[arg-type]


def test_dictionaries_that_are_damaged_or_odd(tmp_path: Path) -> None:
    model, path = make(GROUP, True, GREEK.num_tokens), tmp_path / "dict.ltr.txt"
    save_fairseq(model, tmp_path / "model.pt", tokens=GREEK)
    whole = path.read_text()
    for content, line in ((whole[:-3], 7), (whole.replace("β 1", "β\t1"), 3), ("α\nβ\n", 1)):
        path.write_text(content)
        with pytest.raises(
            ValueError, match=f"line {line} is .* but must be a symbol, a blank and"
        ):
            open_model(tmp_path / "model.pt")
    path.unlink()  # our own file carries its alphabet
    opened = open_model(tmp_path / "model.pt")
    assert (opened.alphabet, opened.notes) == (GREEK, ()) or opened.alphabet.agrees(GREEK)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    del content["alphabet"]
    content["cfg"]["task"]["data"] = "x" * 300  # no place that there can be
    torch.save(content, tmp_path / "model.pt")
    opened = open_model(tmp_path / "model.pt")
    assert opened.alphabet is None
    assert opened.notes == (
        "its alphabet is not known: put its dictionary beside it, as dict.ltr.txt",
    )
    odd = of_symbols(["|", "a", "\u00a0", "\u3000", "b"])
    (tmp_path / "odd").mkdir()
    save_fairseq(make(GROUP, True, 9), tmp_path / "odd" / "model.pt", tokens=odd)
    assert open_model(tmp_path / "odd" / "model.pt").alphabet.symbols == odd.symbols  # type: ignore[union-attr]


def test_special_tokens_of_any_name_travel(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    (tmp_path / "hf" / "alphabet.json").unlink(missing_ok=True)
    ids = {"<pad>": 0, "a": 1, "|": 2, "<UNK>": 3}
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(ids))
    roles = {"pad_token": "<pad>", "unk_token": "<UNK>", "word_delimiter_token": "|"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(roles))
    first = open_model(tmp_path / "hf")
    assert first.alphabet is not None
    assert first.alphabet.decode([1, 3, 7, 1]) == "aa"
    save_huggingface(first.module, tmp_path / "again", tokens=first.alphabet)
    assert open_model(tmp_path / "again").alphabet == first.alphabet
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert saved["unk_token"] == "<UNK>"


def test_phonemes_by_what_the_folder_says(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    (tmp_path / "hf" / "alphabet.json").unlink(missing_ok=True)
    ids = {"<pad>": 0} | {p: i for i, p in enumerate("n tʃ aɪ k s t p m l ɹ".split(), 1)}
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(ids))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for settings, tokenizer in (
        ({"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, {}),
        ({}, {"phone_delimiter_token": " "}),
    ):
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config | settings))
        (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        opened = open_model(tmp_path / "hf")
        assert opened.alphabet is not None
        assert opened.alphabet.decode([1, 0, 2, 3]) == "n tʃ aɪ"


def test_two_names_of_one_weight(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    new = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    old = "wav2vec2.encoder.pos_conv_embed.conv.weight_g"
    rewrite(tmp_path / "hf", lambda w: w | {old: w[new].clone()})
    open_model(tmp_path / "hf")
    rewrite(tmp_path / "hf", lambda w: w | {old: torch.zeros_like(w[new])})
    with pytest.raises(ValueError, match="two names of one weight, with other values"):
        open_model(tmp_path / "hf")


def test_folders_that_look_like_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface(tmp_path / "hf")
    (tmp_path / "hf" / "config.yaml").write_text("training: theirs")
    (tmp_path / "hf" / "checkpoints").mkdir()
    assert open_model(tmp_path / "hf").kind == "ctc"
    assert main(["import", str(tmp_path / "hf"), "--output", str(tmp_path / "run")]) == 0
    assert main(["import", str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 2
    assert "is a run already: name it as it is" in capsys.readouterr().err
    step = next((tmp_path / "run" / "checkpoints").glob("step_*"))
    for content in ("{}", '{"config": {"model": {}}}', '{"config": null}'):
        (step / "meta.json").write_text(content)
        (step / "SHA256SUMS").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=r"meta\.json does not say what is saved"):
            open_model(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facebook").mkdir()
    with pytest.raises(ValueError, match="a folder facebook is here, so it was not looked for"):
        open_model("facebook/wav2vec2-base")
    (tmp_path / "pointer").mkdir()
    (tmp_path / "pointer" / "config.json").write_text((tmp_path / "hf/config.json").read_text())
    pointer = tmp_path / "pointer" / "pytorch_model.bin"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="is truncated, damaged or no checkpoint") as error:
        open_model(tmp_path / "pointer")
    assert "weights_only" not in str(error.value)


def test_every_command_takes_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """export and import of each kind, back to the same bits and the same alphabet."""
    model = make(LAYER, True, GREEK.num_tokens)
    save_fairseq(model, tmp_path / "model.pt", normalize=True, tokens=GREEK)
    save_huggingface(model, tmp_path / "hf", normalize=True, tokens=GREEK)
    body = Wav2Vec2Model(LAYER)
    body.load_state_dict(model.encoder.state_dict())  # type: ignore[union-attr, operator]
    save_huggingface(body, tmp_path / "body", normalize=True)
    for name in ("model.pt", "hf", "body"):
        assert main(["import", str(tmp_path / name), "--output", str(tmp_path / "run")]) == 0
        step = next((tmp_path / "run" / "checkpoints").glob("step_*"))
        for source in (tmp_path / name, tmp_path / "run", step):
            out = tmp_path / "exported"
            arguments = ["export", str(source), "--format", "huggingface", "--output", str(out)]
            assert main(arguments) == 0
            opened = open_model(out)
            assert opened.kind == ("encoder" if name == "body" else "ctc")
            assert opened.normalize
            assert_same_bits(model.encoder, opened.encoder)  # type: ignore[arg-type]
            if name != "body":
                assert_same_bits(model, opened.module)
                assert opened.alphabet is not None
                assert opened.alphabet.agrees(GREEK)
                assert opened.alphabet.text == GREEK.text
            subprocess.run(["rm", "-r", str(out)], check=True)
        subprocess.run(["rm", "-r", str(tmp_path / "run")], check=True)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "nothing"), "--format", "fairseq", "--output", "x"]) == 2
    assert "does not exist: give a run folder, step folder" in capsys.readouterr().err
    file = str(tmp_path / "hf" / "model.safetensors")
    assert main(["export", file, "--format", "fairseq", "--output", "x"]) == 2
    assert f"is the file of a model: give its folder, {tmp_path / 'hf'}" in capsys.readouterr().err
    arguments = ["export", str(tmp_path / "body"), "--format", "fairseq"]
    assert main([*arguments, "--output", str(tmp_path / "x.pt")]) == 2
    assert "fairseq has no model that is an encoder alone" in capsys.readouterr().err


MEASURE = """
import re, sys, torch
from pathlib import Path
from w2v2dist.interop import open_model, export, import_
from w2v2dist.checkpoint import CheckpointError
from w2v2dist.cli import main
def peak():  # of this process alone: ru_maxrss begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
tiny = sys.argv[4]  # what is imported late is imported before
open_model(tiny)
assert main(["import", tiny, "--output", sys.argv[3] + "-tiny"]) == 0
before = peak()
if sys.argv[1] == "open":
    module = open_model(sys.argv[2]).module
    total = sum(p.double().sum().item() for p in module.parameters())  # every weight is read
else:
    assert main(["import", sys.argv[2], "--output", sys.argv[3]]) == 0
print(peak() - before)
"""


@pytest.mark.parametrize("form", ["huggingface", "fairseq", "run"])
@pytest.mark.parametrize("what", ["open", "import"])
def test_memory_is_that_of_the_checkpoint(tmp_path: Path, form: str, what: str) -> None:
    """Opened and read, or imported, it needs at most 1.3 times its size, here of 160 MB."""
    if (form, what) == ("run", "import"):
        form = "huggingface"
    config = dataclasses.replace(
        LAYER, embed_dim=512, ffn_dim=4096, num_layers=8, pos_conv_groups=16, pos_conv_kernel=64
    )
    model = Wav2Vec2ForPretraining(config)
    source = tmp_path / "source"
    if form == "fairseq":
        save_fairseq(model, source, normalize=True)
    else:
        save_huggingface(model, source, normalize=True)
    size = sum(p.nbytes for p in model.parameters())
    assert size > 150e6
    if form == "run":
        assert main(["import", str(source), "--output", str(tmp_path / "run")]) == 0
        source = tmp_path / "run"
    save_huggingface(make(LAYER, False), tmp_path / "tiny", normalize=True)
    arguments = [what, str(source), str(tmp_path / "out"), str(tmp_path / "tiny")]
    arguments = [sys.executable, "-c", MEASURE, *arguments]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    used = 1024 * int(result.stdout.split()[-1])
    assert 0.8 * size < used < 1.3 * size, f"{used / size:.2f} times its size"
