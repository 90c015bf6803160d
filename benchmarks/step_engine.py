"""One engine of benchmarks/step.py in a process of its own: it makes the model, and then does what
it is told, a line of JSON for each (in: {"do": ...}, out: the answer or {"error": ...})."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.step_parts import PartTimer, profile
from w2v2dist.model import (
    Wav2Vec2Config,
    Wav2Vec2ForPretraining,
    distractor_positions,
    span_mask,
)
from w2v2dist.tasks.train import read_config

CONFIGS = Path(__file__).parents[1] / "configs"
# Configuration, rows and samples a row: the paper's samples a GPU (1.4M and 1.2M), in rows as
# jobs/work.py and training cut them
MODELS = {
    "base": ("base_ls960", 6, 230_400),
    "large": ("large_lv60k", 4, 297_600),
    "tiny": ("tiny_pretrain", 4, 48_000),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MATRIX = "matrix"  # the engine that measures the matrix rate


def model_config(model: str, activation_checkpointing: bool = False) -> Wav2Vec2Config:
    """BASE, LARGE or the small model, without LayerDrop."""
    config = read_config(CONFIGS / f"{MODELS[model][0]}.yaml", []).model
    return dataclasses.replace(
        config, layer_drop=0.0, activation_checkpointing=activation_checkpointing
    )


def count_flops(config: Wav2Vec2Config, rows: int, num_samples: int) -> float:
    """Matrix and convolution FLOP of a step without recomputation, from shapes alone: three times
    the forward pass of the body, because backward costs two. Quantizer and logits (under 1 %) are
    left out. It is the plain arithmetic's: the same number for every engine."""
    channels_in, frames, flops = 1, num_samples, 0
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        frames = (frames - kernel) // stride + 1
        flops += 2 * kernel * channels_in * config.conv_channels * frames
        channels_in = config.conv_channels
    width = config.embed_dim
    flops += 2 * frames * channels_in * width
    # an even kernel, padded on both sides, makes a frame too many
    made = frames + 1 - config.pos_conv_kernel % 2
    flops += 2 * made * width * (width // config.pos_conv_groups) * config.pos_conv_kernel
    layer = 8 * frames * width**2 + 4 * frames**2 * width + 4 * frames * width * config.ffn_dim
    return 3.0 * rows * (flops + config.num_layers * layer)


class Ours(nn.Module):
    """This package's model, with masks and distractors drawn for every step."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config, self.model = config, Wav2Vec2ForPretraining(config)
        self.rng, self.drop = np.random.default_rng(0), [False] * config.num_layers

    def forward(self, wave: Tensor) -> Tensor:
        config, rows = self.config, len(wave)
        mask = span_mask(self.rng, config.num_frames(wave.shape[1]), rows, config)
        count = int(mask[0].sum())
        drawn = distractor_positions(self.rng, count, rows, config.num_distractors)
        inputs = (torch.from_numpy(a).to(wave.device, non_blocking=True) for a in (mask, drawn))
        settings = {"drop_layers": self.drop, "all_features": False}  # as training does
        out = self.model(wave, *inputs, temperature=2.0, **settings)
        return out.loss / out.num_masked  # type: ignore[no-any-return]


class HuggingFace(nn.Module):
    """transformers' Wav2Vec2ForPreTraining with its own masks and negatives; attention by
    scaled_dot_product_attention, the fastest that it has everywhere."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config as TheirConfig
        from transformers import Wav2Vec2ForPreTraining

        from w2v2dist.interop.names import their_settings

        settings = their_settings(config, "huggingface")
        theirs = TheirConfig(**settings, attn_implementation="sdpa")
        self.config, self.model = theirs, Wav2Vec2ForPreTraining(theirs)
        if config.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        np.random.seed(0)  # what its functions draw from

    def forward(self, wave: Tensor) -> Tensor:
        from transformers.models.wav2vec2 import modeling_wav2vec2 as theirs

        shape = (len(wave), int(self.model._get_feat_extract_output_lengths(wave.shape[1])))
        config = self.config
        mask = theirs._compute_mask_indices(
            shape, config.mask_time_prob, config.mask_time_length, min_masks=2
        )
        drawn = theirs._sample_negative_indices(shape, config.num_negatives, mask)
        inputs = [torch.from_numpy(a).to(wave.device, non_blocking=True) for a in (mask, drawn)]
        out = self.model(
            wave, mask_time_indices=inputs[0].bool(), sampled_negative_indices=inputs[1].long()
        )
        return out.loss / int(mask.sum())  # type: ignore[no-any-return]


def plugin(path: str, config: Wav2Vec2Config) -> Callable[[Tensor], Tensor]:
    """What make_model(config) of a file returns. Raises ValueError where it has none."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"--engine {path} is neither ours, huggingface nor a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "make_model"):
        raise ValueError(f"{path} must define make_model(config) -> callable(wave) -> loss")
    return module.make_model(config)  # type: ignore[no-any-return]


class MasterAdam:
    """Fused Adam on fp32 copies of the weights; the same for every engine."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.weights = [p for p in parameters if p.requires_grad]
        self.masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self.weights]
        self.adam = torch.optim.AdamW(self.masters, lr=1e-6, weight_decay=0.01, fused=True)

    def step(self) -> None:
        narrow = [(w, m) for w, m in zip(self.weights, self.masters, strict=True) if w is not m]
        for weight, master in narrow:
            master.grad = None if weight.grad is None else weight.grad.float()
        self.adam.step()
        if narrow:
            torch._foreach_copy_([w.data for w, _ in narrow], [m for _, m in narrow])


class Engine:
    """A model and its steps on one batch of noise."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = DTYPES[settings["precision"]]
        on_gpu = self.device.type == "cuda"
        has_bf16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
        if self.dtype == torch.bfloat16 and not has_bf16:
            raise ValueError("this GPU has no bf16: pass --precision fp16")
        name = settings["engine"]
        self.optimizer: MasterAdam | None = None
        if name == MATRIX:
            return
        torch.manual_seed(0)
        config = model_config(settings["model"], settings["activation_checkpointing"])
        known = {"ours": Ours, "huggingface": HuggingFace}
        made = known[name](config) if name in known else plugin(name, config)
        # What is no module has moved itself, and computes under autocast
        self.autocast = not isinstance(made, nn.Module) and self.dtype != torch.float32
        self.model = made
        if isinstance(made, nn.Module):
            self.model = made.to(self.device, self.dtype).train()
        has_parameters = hasattr(made, "parameters")
        self.parameters = list(made.parameters()) if has_parameters else []
        if settings["optimizer"]:
            if not has_parameters:
                raise ValueError(f"--optimizer needs parameters(), which {name}'s model has not")
            self.optimizer = MasterAdam(self.parameters)
        shape = (settings["rows"], settings["samples"])
        kept = torch.float32 if self.autocast else self.dtype
        self.wave = torch.randn(shape, device=self.device).to(kept)

    def loss(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            return self.model(self.wave)

    def whole_step(self) -> Tensor:
        """Forward, backward and, where it is asked for, the update."""
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.loss()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return loss.detach()

    def timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        self.synchronize()
        start = time.perf_counter()
        result = function()
        self.synchronize()
        return time.perf_counter() - start, result

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def do(self, what: str) -> dict[str, Any]:
        """The answer to one command."""
        if what == "step":
            seconds, loss = self.timed(self.whole_step)
            return {"seconds": seconds, "loss": float(loss), "peak": self.peak()}
        if what == "rate":
            return {"rate": self.matrix_rate()}
        if what == "parts":
            if not isinstance(self.model, nn.Module):
                return {"parts": {}}
            timer = PartTimer(self.model, self.device)
            timer.seconds(self.loss)  # the first one with hooks warms up
            self.model.zero_grad(set_to_none=True)
            return {"parts": timer.seconds(self.loss)}
        if what == "profile":
            return profile(self.whole_step, self.device)
        raise ValueError(f"{what} is no command")

    def peak(self) -> int:
        """Bytes: of the GPU's allocator, or of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def matrix_rate(self) -> float:
        """FLOP/s of a square matrix product, the best of 4."""
        size = 8192 if self.device.type == "cuda" else 2048
        a, b = torch.randn(2, size, size, device=self.device).to(self.dtype).unbind()
        return 2 * size**3 / min(self.timed(lambda: a @ b)[0] for _ in range(4))


def reason(error: BaseException) -> str:
    """An error in one line, with the remedy where it is known."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory: pass fewer --rows, or --activation-checkpointing"
    if isinstance(error, ImportError):
        return f"not installed: {error}"
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


def main() -> None:
    """Answer on what was standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])

    def answer(make: Callable[[], dict[str, Any]]) -> bool:
        try:
            said = make()
        except Exception as error:
            said = {"error": reason(error)}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        return "error" not in said

    engine: list[Engine] = []
    if not answer(lambda: engine.append(Engine(settings)) or {"threads": torch.get_num_threads()}):
        return
    for line in sys.stdin:
        if not answer(lambda line=line: engine[0].do(json.loads(line)["do"])):  # type: ignore[misc]
            return


if __name__ == "__main__":
    main()
