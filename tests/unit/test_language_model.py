"""The Transformer language model: the reference's numbers, step by step as at once, and what it
makes of sentences of other lengths beside a sentence."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.testing import assert_close

from tests.golden.make import sample
from w2v2dist.interop import open_language_model
from w2v2dist.interop.open import read_foreign
from w2v2dist.model import LanguageModelConfig, TransformerLanguageModel
from w2v2dist.model.language_model import PADDING, sinusoids
from w2v2dist.model.word_layer import WordLayer

TINY: dict[str, Any] = {
    "num_layers": 2, "embed_dim": 16, "ffn_dim": 32, "num_heads": 2,
    "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@dataclasses.dataclass
class Golden:
    """fairseq's small model: its content as a checkpoint, its inputs and its numbers."""

    content: dict[str, Any]
    symbols: list[str]
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def counted(self) -> Tensor:
        return self.tensors["target"] != PADDING

    def write(self, folder: Path, dictionary: str = "dict.txt") -> Path:
        """A .pt with its dictionary beside it."""
        folder.mkdir(exist_ok=True)
        lines = "".join(f"{s} {100 - i}\n" for i, s in enumerate(self.symbols))
        (folder / dictionary).write_text(lines)
        torch.save(self.content, folder / "lm.pt")
        return folder / "lm.pt"


def read_golden(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {n.split(".", 1)[1]: t for n, t in tensors.items() if n[:6] in ("weight", "state.")}
    args = argparse.Namespace(**facts["args"], arch="transformer_lm", task="language_modeling")
    return Golden({"args": args, "model": weights}, facts["symbols"][4:], tensors, facts)


FULL = pytest.param("full_golden_dir", marks=pytest.mark.shared("golden"))


@pytest.fixture(scope="module", params=["golden_dir", FULL])
def golden(request: pytest.FixtureRequest) -> Golden:
    folder: Path = request.getfixturevalue(request.param)
    return read_golden(folder / "transformer_lm.safetensors")


@pytest.fixture(scope="module")
def reference(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    path = golden.write(tmp_path_factory.mktemp("fairseq"))
    return open_language_model(path).module


def make(num_words: int = 60, seed: int = 3, **values: Any) -> TransformerLanguageModel:
    torch.manual_seed(seed)
    return TransformerLanguageModel(LanguageModelConfig(**(TINY | values)), num_words).eval()


CLUSTERS = [(), (20,), (20, 40)]


# --- the reference's numbers ---------------------------------------------------------------------


def test_numbers_are_the_references(golden: Golden, reference: TransformerLanguageModel) -> None:
    tokens, targets, counted = (
        golden.tensors["src_tokens"],
        golden.tensors["target"],
        golden.counted,
    )
    features = reference(tokens)
    assert_close(features[counted], golden.tensors["features"][counted], atol=1e-5, rtol=0)
    log_probs = reference.log_probs(features[counted])
    assert_close(log_probs, golden.tensors["log_probs"][counted], atol=1e-4, rtol=0)
    nll = reference(tokens, targets).detach()
    assert len(nll) == golden.facts["num_targets"]
    assert float(nll.sum()) == pytest.approx(golden.facts["nll_sum_nats"], rel=1e-6)
    # The reference's own loss leaves out what has the padding's number inside its cluster
    assert float(nll.sum()) > golden.facts["fairseq_adaptive_loss_sum_nats"] + 5


def test_gradients_are_the_references(golden: Golden, reference: TransformerLanguageModel) -> None:
    reference.zero_grad()
    reference(golden.tensors["src_tokens"], golden.tensors["target"]).sum().backward()
    ours = {name: p.grad for name, p in reference.named_parameters()}
    compared = 0
    for full_name, expected in golden.tensors.items():
        if not full_name.startswith(("grad.", "gradsample.")) or "k_proj.bias" in full_name:
            continue  # (of a key's bias the gradient is 0, and what is stored is rounding)
        kind, name = full_name.split(".decoder.", 1)
        found = next(g for n, g in ours.items() if n == our_name(name))
        found = sample(found) if kind == "gradsample" else found
        assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)
        compared += 1
    assert compared == len(ours) - 2  # the biases of two layers' keys
    reference.zero_grad()


def our_name(name: str) -> str:
    """Written out once more, apart from the table in interop."""
    if match := re.fullmatch(r"embed_tokens\.embeddings\.(\d)\.([01])\.weight", name):
        return f"words.{['embedding', 'projection'][int(match[2])]}_{match[1]}"
    for theirs, ours in (
        ("adaptive_softmax.head.class_proj.weight", "words.class_weight"),
        ("self_attn_layer_norm", "attention_norm"),
        ("self_attn", "attention"),
        ("fc1", "ffn_in"),
        ("fc2", "ffn_out"),
        ("final_layer_norm", "final_norm"),
    ):
        name = name.replace(theirs, ours)
    return name


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoffs", CLUSTERS)
def test_probabilities_add_up_and_are_those_of_the_loss(cutoffs: tuple[int, ...]) -> None:
    model = make(cutoffs=cutoffs)
    features = torch.randn(7, 16)
    log_probs = model.log_probs(features)
    assert log_probs.shape == (7, 60)
    assert_close(log_probs.exp().sum(1), torch.ones(7))
    targets = torch.tensor([3, 19, 20, 21, 39, 40, 59])
    assert_close(model.nll(features, targets), -log_probs[range(7), targets])


def test_plain_softmax_is_the_tied_product() -> None:
    model = make(num_words=9)
    features, embedding = torch.randn(4, 16), model.words.embedding_0
    expected = (features @ embedding.T).log_softmax(-1)
    assert_close(model.log_probs(features), expected)
    words = torch.tensor([[2, 8]])
    assert_close(model.words(words), embedding[words] * 4.0)  # sqrt(16)
    assert dict(model.words.named_parameters()).keys() == {"embedding_0"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cutoffs", CLUSTERS)
def test_steps_are_the_whole(cutoffs: tuple[int, ...], device: str) -> None:
    """Sequences of different lengths side by side, what is behind their lengths being anything."""
    model = make(cutoffs=cutoffs).to(device)
    tokens = torch.randint(0, 60, (3, 9), device=device)
    whole = model(tokens)
    lengths = torch.tensor([2, 8, 5], device=device)
    past, count = model.no_past(3), torch.zeros(3, dtype=torch.long, device=device)
    stored = torch.full((2, 3, 9, 2, 16), 1e4, device=device)  # rubbish that must not count
    with torch.no_grad():
        first, new = model.step(tokens[:, 0], past, count)
        assert_close(first, whole[:, 0], atol=1e-5, rtol=0)
        stored[:, :, 0] = new
        for i in range(1, 9):
            going = torch.where(lengths >= i)[0]
            at = torch.full((len(going),), i, device=device)
            found, new = model.step(tokens[going, i], stored[:, going], at)
            assert_close(found, whole[going, i], atol=1e-5, rtol=0)
            stored[:, going, i] = new
        # each at its own length at once
        found, new = model.step(tokens[range(3), lengths], stored[:, :, :8], lengths)
        assert_close(found, whole[range(3), lengths], atol=1e-5, rtol=0)
    assert new.shape == (2, 3, 2, 16)


def test_padding_behind_a_sentence_changes_nothing() -> None:
    model = make(cutoffs=(20, 40))
    tokens, targets = torch.randint(4, 60, (2, 6)), torch.randint(4, 60, (2, 6))
    targets[0, 3:] = PADDING
    padded = tokens.clone()
    padded[0, 3:] = PADDING
    assert_close(model(padded)[0, :3], model(tokens[:1, :3])[0])
    alone = model(tokens[:1, :3], targets[:1, :3])
    assert_close(model(padded, targets)[:3], alone)
    other = tokens.clone()
    other[:, -1] = 5  # nothing is seen that comes later
    assert_close(model(other)[:, :-1], model(tokens)[:, :-1])


def test_positions_are_fairseqs() -> None:
    found = sinusoids(torch.tensor([0, 2]), 8)
    rates = [math.exp(-k * math.log(10_000) / 3) for k in range(4)]
    expected = [math.sin(2 * r) for r in rates] + [math.cos(2 * r) for r in rates]
    assert_close(found[1], torch.tensor(expected))
    assert found[0].tolist() == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("cutoffs", [(), (20, 40)])
def test_every_parameter_has_a_gradient_whatever_words_there_are(cutoffs: tuple[int, ...]) -> None:
    """Of zeros, in clusters without a word: else ranks would exchange other sets of gradients."""
    model = make(cutoffs=cutoffs).train()
    end = torch.tensor([[2]])
    model(end, end).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if cutoffs:
        assert not model.words.embedding_2.grad.any()
        assert model.words.class_weight.grad.any()  # its words were not chosen
    model.zero_grad()
    (model(end, torch.tensor([[PADDING]])).sum() + 0).backward()  # no target at all


def test_recomputed_activations_give_the_same_gradients() -> None:
    tokens = torch.randint(2, 60, (2, 6))
    found = []
    for recompute in (False, True):
        model = make(activation_checkpointing=recompute).train()
        model(tokens, tokens).sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cutoffs", [(), (20, 40)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(cutoffs: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    model = make(cutoffs=cutoffs).to(device)
    tokens = torch.randint(2, 60, (3, 7), device=device)
    expected = model(tokens, tokens)
    half = make(cutoffs=cutoffs).to(device, dtype)
    nll = half(tokens, tokens)
    assert nll.dtype == torch.float32
    assert_close(nll.mean(), expected.mean(), rtol=0.02, atol=0)
    features, past, count = half(tokens), half.no_past(3), torch.zeros(3, device=device).long()
    for i in range(7):
        found, new = half.step(tokens[:, i], past, count + i)
        past = torch.cat([past, new.unsqueeze(2)], 2)
    assert found.dtype == past.dtype == dtype
    assert_close(found, features[:, -1], atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 3}, "embed_dim is 16 but must be even, at least 4 and a multiple"),
        ({"dropout": 1.0}, "dropout is 1.0 but must be in"),
        ({"cutoffs": (4,)}, "cutoffs is .* must be numbers above 4 that rise"),
        ({"cutoffs": (30, 20)}, "cutoffs is .* must be numbers above 4 that rise"),
        ({"cutoffs": (10, 20, 30)}, "would have none"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig(**(TINY | values))


def test_a_vocabulary_below_the_cutoffs() -> None:
    with pytest.raises(ValueError, match=r"model\.cutoffs is \[20, 40\] but the vocabulary has 40"):
        WordLayer(40, 16, (20, 40))


def test_the_papers_size() -> None:
    config = LanguageModelConfig(cutoffs=(60_000, 160_000))
    with torch.device("meta"):
        model = TransformerLanguageModel(config, 221_000)
    assert sum(p.numel() for p in model.parameters()) // 10**6 == 561


# --- fairseq's files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dict.txt", "lm.dict"])
def test_fairseqs_file_opens(golden: Golden, tmp_path: Path, name: str) -> None:
    opened = open_language_model(golden.write(tmp_path, name))
    assert (opened.units, opened.notes) == ("words", ())
    assert opened.vocabulary.symbols == tuple(golden.symbols)
    assert opened.module.config.cutoffs == (20, 40)
    assert not opened.module.training


def test_newer_and_older_forms(golden: Golden, tmp_path: Path) -> None:
    expected = open_language_model(golden.write(tmp_path)).module.state_dict()
    model = dict(golden.content["model"])
    cfg = {"model": {"_name": "transformer_lm", **golden.facts["args"]}, "task": {"data": "/none"}}
    for layer in range(2):  # before 2019 in one matrix, and the norms numbered
        stem = f"decoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [model.pop(f"{stem}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            model[f"{stem}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for i, norm in ((0, "self_attn_layer_norm"), (2, "final_layer_norm")):
                model[f"{stem}.layer_norms.{i}.{kind}"] = model.pop(f"{stem}.{norm}.{kind}")
    model["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    torch.save({"cfg": cfg, "args": None, "model": model}, tmp_path / "old.pt")
    found = open_language_model(tmp_path / "old.pt").module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_plain_model_of_characters(tmp_path: Path) -> None:
    ours = make(num_words=7)
    words = ours.words.embedding_0
    theirs = {"embed_tokens.weight": words, "output_projection.weight": words}
    for name, tensor in ours.state_dict().items():
        if name.startswith("layers."):
            for a, b in (("attention_norm", "self_attn_layer_norm"), ("attention", "self_attn")):
                name = re.sub(rf"\.{a}\.", f".{b}.", name)
            for a, b in (("ffn_in", "fc1"), ("ffn_out", "fc2"), ("final_norm", "final_layer_norm")):
                name = name.replace(a, b)
            theirs[name] = tensor
    args = argparse.Namespace(
        arch="transformer_lm", decoder_layers=2, decoder_embed_dim=16, decoder_ffn_embed_dim=32,
        decoder_attention_heads=2, share_decoder_input_output_embed=True,
    )  # fmt: skip
    model = {f"decoder.{name}": tensor.detach() for name, tensor in theirs.items()}
    torch.save({"args": args, "model": model}, tmp_path / "lm.pt")
    (tmp_path / "dict.txt").write_text("| 9\nE 7\nT 5\n")
    opened = open_language_model(tmp_path / "lm.pt")
    assert opened.units == "tokens"
    assert "taken for characters" in opened.notes[0]
    tokens = torch.tensor([[2, 4, 5]])
    assert_close(opened.module(tokens), ours(tokens))


def test_files_that_are_something_else(golden: Golden, tmp_path: Path) -> None:
    content, args = golden.content, golden.facts["args"]

    def refused(message: str, words: str | None = None, **changed: Any) -> None:
        path = golden.write(tmp_path)
        torch.save(content | changed, path)
        if words is not None:
            (tmp_path / "dict.txt").write_text(words)
        with pytest.raises((ValueError, OSError), match=message):
            open_language_model(path)

    def with_args(**values: Any) -> dict[str, Any]:
        return {"args": argparse.Namespace(**(args | values), arch="transformer_lm")}

    model = content["model"]
    refused("64 symbols .* has 60: it is another model's", "".join(f"x{i} 1\n" for i in range(60)))
    refused("vocabulary in .* cannot be used: line 1", "a b c\n")
    refused("no weights under 'model'", model=None)
    refused("no_scale_embedding is True but must be False", **with_args(no_scale_embedding=True))
    refused("clusters are not the same", **with_args(adaptive_input_cutoff="20,30"))
    refused("does not say its num_heads", **with_args(decoder_attention_heads=None))
    refused("does not fit .*of another shape.*ffn", **with_args(decoder_ffn_embed_dim=30))
    refused("does not fit .*missing", **with_args(decoder_layers=3))
    final = {"decoder.layer_norm.weight": torch.ones(16)}
    refused(r"has decoder\.layer_norm\.weight, which .* no place for", model=model | final)
    learned = {"decoder.embed_positions.weight": torch.ones(66, 16)}
    refused("has decoder.embed_positions.weight", model=model | learned)
    untied = {"decoder.adaptive_softmax.tail.0.0.weight": torch.ones(16, 4)}
    refused("tail.0.0.weight is not tied to the embeddings", model=model | untied)
    encoder = {"encoder.layers.0.fc1.weight": torch.ones(2)}
    refused("no Transformer language model: .*more than a decoder", model=model | encoder)
    speech = argparse.Namespace(arch="wav2vec2")
    refused("no Transformer language model: it has the name 'wav2vec2'", args=speech)
    (tmp_path / "dict.txt").unlink()
    torch.save(content, tmp_path / "lm.pt")
    with pytest.raises(ValueError, match=r"has 60 words but no dictionary: .*lm\.dict"):
        open_language_model(tmp_path / "lm.pt")
    with pytest.raises(ValueError, match="is no language model: give a run folder"):
        open_language_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="of another architecture: 'transformer_lm'"):
        read_foreign(tmp_path / "lm.pt")
