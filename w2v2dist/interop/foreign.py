"""What was read of another library's checkpoint, and the model that it makes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.interop.names import Library, their_name
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPretraining, Wav2Vec2Model

TaskName = Literal["pretrain", "finetune"]
Kind = Literal["pretrained", "ctc", "encoder"]
KINDS: dict[TaskName, Kind] = {"pretrain": "pretrained", "finetune": "ctc"}
CALLED = {
    "pretrained": "a pre-trained model",
    "ctc": "a model fine-tuned with CTC",
    "encoder": "an encoder without the head of a pre-training or of CTC",
}
PRETRAINING = ("quantizer.", "target_projection.", "context_projection.")  # our names of its heads
# How names of the encoder begin: ours, and those of the libraries that are unknown
BODY = {
    "fairseq": ("encoder.", "feature_extractor.", "layer_norm.", "post_extract_proj."),
    "huggingface": ("encoder.", "wav2vec2."),
    "torchaudio": ("",),
}
Model = Wav2Vec2ForPretraining | Wav2Vec2ForCTC | Wav2Vec2Model
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignCheckpoint:
    """Weights under our names (unknown ones under their own) and the settings that came along; None
    where the checkpoint does not say. `notes` gathers what was filled in or left behind."""

    source: str
    library: Library
    state: dict[str, Tensor]
    config: Wav2Vec2Config | None = None
    normalize: bool | None = None
    alphabet: Alphabet | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """What its weights make."""
        if "token_projection.weight" in self.state:
            return "ctc"
        pretrained = any(name.startswith(PRETRAINING) for name in self.state)
        return "pretrained" if pretrained else "encoder"

    def model(self, config: Wav2Vec2Config | None = None, task: TaskName | None = None) -> Model:
        """The model in evaluation mode. `config` replaces the one that came along; `task` refuses a
        model of another kind. Raises ValueError that lists what does not fit."""
        config = self.known(config)
        kind = KINDS[task] if task else self.kind
        if kind == "encoder":
            with torch.device("meta"):
                body = Wav2Vec2Model(config)
            self.fill(nn.ModuleDict({"encoder": body}), config)
            return body.eval()
        with torch.device("meta"):  # the weights take the places; a second copy never is
            outputs = len(self.state.get("token_projection.weight", [0]))
            pretrains = kind == "pretrained"
            module = (
                Wav2Vec2ForPretraining(config) if pretrains else Wav2Vec2ForCTC(config, outputs)
            )
        return self.fill(module, config, strict=kind != self.kind).eval()

    def known(self, config: Wav2Vec2Config | None) -> Wav2Vec2Config:
        """`config`, else the one that came along. Raises ValueError where there is none."""
        if known := config or self.config:
            return known
        raise ValueError(
            f"{self.source} carries no configuration: pass config=Wav2Vec2Config(…) "
            "(w2v2dist import: --config FILE.yaml)"
        )

    def fill(self, model: M, config: Wav2Vec2Config, *, strict: bool = False) -> M:
        """Put the weights into `model`, which may be on the meta device; heads that it has not are
        left behind unless `strict`. Raises ValueError that lists what does not fit."""
        wanted, given = model.state_dict(), dict(self.state)
        if self.library == "fairseq" and config.conv_channels == config.embed_dim:
            # fairseq leaves the projection out where it changes no width
            given.setdefault("encoder.feature_projection.weight", torch.eye(config.embed_dim))
            given.setdefault("encoder.feature_projection.bias", torch.zeros(config.embed_dim))
        if self.library != "fairseq" and "encoder.mask_embedding" not in given:
            # torchaudio has none, Hugging Face's released files may lack it
            given["encoder.mask_embedding"] = torch.zeros(config.embed_dim)
            self.notes.append(
                "the mask embedding is missing and was set to 0: only masks of a training use it"
            )
        for name in wanted.keys() & given.keys():  # codebooks are (1, G * V, D) elsewhere
            if name.endswith("codebooks") and given[name].numel() == wanted[name].numel():
                given[name] = given[name].view(wanted[name].shape)
        heads = [] if strict else [n for n in given if n not in wanted and not self._of_encoder(n)]
        given = {name: tensor for name, tensor in given.items() if name not in heads}
        if problem := "; ".join(self._misfits(wanted, given, config)):
            what, remedy = "does not fit its configuration", "give the right one with --config"
            if strict:
                needed = "ctc" if "token_projection.weight" in wanted else "pretrained"
                what = f"is {CALLED[self.kind]} where {CALLED[needed]} is needed"
                remedy = "give another, or take it as it is: leave --task (task=) out"
            raise ValueError(f"{self.source} {what} ({problem}): {remedy}")
        if heads:
            stems = sorted({n.removeprefix("w2v_encoder.").split(".")[0] for n in heads})
            self.notes.append(
                f"left behind: {', '.join(stems[:10])}, no part of {CALLED[self.kind]}"
            )
        given = {name: tensor.detach().float() for name, tensor in given.items()}
        model.load_state_dict(given, assign=True)
        return model

    def _of_encoder(self, name: str) -> bool:
        """Whether a weight is of the body, which every kind has whole."""
        plain = name.removeprefix("w2v_encoder.").removeprefix("w2v_model.")
        return plain.startswith(BODY[self.library])

    def _misfits(
        self, wanted: dict[str, Tensor], given: dict[str, Tensor], config: Wav2Vec2Config
    ) -> Iterator[str]:
        """What is missing, unexpected or of another shape, under the library's names."""

        def theirs(name: str) -> str:
            return their_name(name, self.library, config, self.kind == "ctc") or name

        shapes = [(n, tuple(given[n].shape), tuple(wanted[n].shape)) for n in wanted if n in given]
        for what, names in (
            ("missing", [theirs(n) for n in wanted if n not in given]),
            ("unexpected", [theirs(n) for n in given if n not in wanted]),
            ("of another shape", [f"{theirs(n)} {a}, not {b}" for n, a, b in shapes if a != b]),
        ):
            if names:
                more = f" and {len(names) - 10} more" if len(names) > 10 else ""
                yield f"{what}: {', '.join(sorted(names)[:10])}{more}"
