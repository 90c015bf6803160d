"""Where the time of a step goes: by part of the model (hooks), and by kernel (torch.profiler)."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Part -> the modules that begin and end it, by name: ours and Hugging Face's. What is in none of
# them is the rest; a part whose modules are not called as modules falls to it too.
PARTS = {
    "feature encoder": (r"feature_(encoder|extractor)", r"feature_(encoder|extractor)"),
    "positions": (r"positions|pos_conv_embed", r"positions|pos_conv_embed"),
    "attention": (r"attention", r"attention"),
    "FFN": (r"ffn_in|feed_forward", r"ffn_out|feed_forward"),
    "norms": (r"(attention_|final_)?norm|(final_)?layer_norm",) * 2,
    "quantizer": (r"quantizer", r"quantizer"),
}
INSIDE = re.compile(r"feature_(encoder|extractor)\.|\.attention\.|feed_forward\.|quantizer\.")
REST = "loss, projections and the rest"


class PartTimer:
    """Adds up the forward and backward times of every part of a model. A part's backward pass lasts
    from the gradient of its output to that of its input; of one whose input has none, to the end.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        # (part, "forward" or "backward") -> begins and ends
        self.begins: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self.ends: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for name, module in model.named_modules():
            if INSIDE.search(name):
                continue
            for part, (first, last) in PARTS.items():
                own = name.rpartition(".")[2]
                if re.fullmatch(first, own):
                    module.register_forward_pre_hook(self._before(part), with_kwargs=True)
                if re.fullmatch(last, own):
                    module.register_forward_hook(self._after(part))

    def now(self) -> Any:
        """A point in time; on a GPU an event, so that nothing waits."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _before(self, part: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            self.begins[part, "forward"].append(self.now())
            if not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
                return None
            # A view, whose gradient is this module's alone: others may use the tensor too
            given = args[0].view_as(args[0])
            given.register_hook(lambda grad: self.ends[part, "backward"].append(self.now()))
            return (given, *args[1:]), kwargs

        return hook

    def _after(self, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            self.ends[part, "forward"].append(self.now())
            made = tensor_in(out)
            if made is not None and made.requires_grad:
                made.register_hook(lambda grad: self.begins[part, "backward"].append(self.now()))

        return hook

    def seconds(self, compute: Callable[[], Tensor]) -> dict[str, dict[str, float]]:
        """Forward and backward seconds of each part in one step."""
        self.begins.clear()
        self.ends.clear()
        begin = self.now()
        loss = compute()
        middle = self.now()
        loss.backward()
        end = self.now()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        out: dict[str, dict[str, float]] = {}
        for part in PARTS:
            for way in ("forward", "backward"):
                begins, ends = self.begins[part, way], self.ends[part, way]
                ends = ends + [end] * (len(begins) - len(ends))
                if begins:
                    spent = sum(map(elapsed, begins, ends))
                    out.setdefault(part, {})[way] = spent
        rest = {"forward": elapsed(begin, middle), "backward": elapsed(middle, end)}
        for way in rest:
            rest[way] -= sum(part.get(way, 0.0) for part in out.values())
        return {**out, REST: rest}


def elapsed(begin: Any, end: Any) -> float:
    """Seconds between two points in time."""
    if isinstance(begin, float):
        return float(end - begin)
    return float(begin.elapsed_time(end)) / 1000


def tensor_in(values: Any) -> Tensor | None:
    """The first tensor of floats in nested tuples."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else None
    if isinstance(values, (tuple, list)):
        return next((t for v in values if (t := tensor_in(v)) is not None), None)
    return None


def profile(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Kernels of one step, the seconds that the GPU was busy, and the ten costliest; on a CPU the
    operators in place of kernels."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.key_averages():
        on_gpu = device.type == "cuda"
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[event.key] += spent / 1e6
        calls[event.key] += event.count
    costliest = [
        {"name": name[:90], "calls": calls[name], "seconds": round(spent, 6)}
        for name, spent in seconds.most_common(10)
    ]
    return {
        "kernels": sum(calls.values()),
        "busy_seconds": sum(seconds.values()),
        "costliest": costliest,
    }
