"""The state of engines as named ranges of flat global tensors: weights, Adam's moments, buffers.

Every engine's names begin with the name of its group, and those of a single one (named "") with
nothing. With engine.py and fragments.py this is the only reader of DeepSpeed's private attributes;
tests/distributed holds them against the pinned version.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from w2v2dist.checkpoint import FlatRange
from w2v2dist.training.engine import Engine
from w2v2dist.training.plain_engine import AnyEngine, PlainEngine

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of fp16


def prefix(group: str) -> str:
    """What the names of a group's state begin with."""
    return f"{group}." if group else ""


def ranges(engines: Mapping[str, AnyEngine], *, for_save: bool) -> dict[str, Tensor]:
    """Names to FlatRanges that view the live state (created as zeros where Adam has none yet)."""
    out: dict[str, Tensor] = {}
    for group, engine in engines.items():
        for key, value in _ranges(engine, for_save):
            kind, name = key.split("/", 1)
            out[f"{kind}/{prefix(group)}{name}"] = value
    return out


def _ranges(engine: AnyEngine, for_save: bool) -> Iterator[tuple[str, Tensor]]:
    rank, world_size = engine.world.rank, engine.world.size
    for f in engine.fragments():
        state = engine.optimizer.state[f.flat]
        if "step" not in state:
            state["step"] = torch.zeros((), device=f.flat.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(f.flat.data)
        offset, start, size = f.offset, f.start, f.size
        if for_save and engine.is_plain:
            part = -(-f.numel // world_size)  # every process holds all of it: each writes a part
            first = min(rank * part, f.numel)
            offset, start, size = f.offset + first, first, min(part, f.numel - first)
            if size == 0:
                continue
        for key, source in {"fp32": f.flat.data, **{k: state[k] for k in MOMENTS}}.items():
            flat = source.view(-1).narrow(0, offset, size).detach()
            yield f"{key}/{f.name}", FlatRange(flat, start, f.numel)
    for name, buffer in engine.module.named_buffers():
        yield f"buffer/{name}", buffer.detach()


def settings(engines: Mapping[str, AnyEngine]) -> dict[str, Any]:
    """What else belongs to the state, as JSON holds it: Adam's settings and fp16's loss scale."""
    out: dict[str, Any] = {"optimizer": []}
    for group, engine in engines.items():
        out["optimizer"] += [
            {k: v for k, v in values.items() if k != "params"}
            for values in engine.optimizer.param_groups
        ]
        if engine.config.precision == "fp16" and isinstance(engine, Engine):
            scaler = engine.deepspeed.optimizer.loss_scaler
            values = {f"{prefix(group)}{name}": getattr(scaler, name) for name in SCALER}
            out["loss_scaler"] = {**out.get("loss_scaler", {}), **values}
    return out


def restore(engines: Mapping[str, AnyEngine], meta: Mapping[str, Any]) -> None:
    """Complete what reading the ranges has begun, from the `settings` in a checkpoint's meta."""
    saved = iter(meta["optimizer"])
    for group, engine in engines.items():
        optimizer = engine.optimizer
        for values in optimizer.param_groups:
            given = next(saved)
            values.update({k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        (updates,) = {values["num_updates"] for values in optimizer.param_groups}
        for state in optimizer.state.values():  # a tensor each: shared ones would count twice
            state["step"] = torch.full_like(state["step"], float(updates))
        if isinstance(engine, PlainEngine):
            continue
        _masters_to_weights(engine)
        if engine.config.precision == "fp16":
            for name in SCALER if "loss_scaler" in meta else ():
                value = meta["loss_scaler"][f"{prefix(group)}{name}"]
                setattr(engine.deepspeed.optimizer.loss_scaler, name, value)
        engine.deepspeed.global_steps = int(meta["step"])


def _masters_to_weights(engine: Engine) -> None:
    """Copy the fp32 masters to the weights that the model computes with."""
    wrapper = engine.deepspeed.optimizer
    if engine.is_plain:
        return
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):
        for i, master in enumerate(wrapper.fp32_partitioned_groups_flat):
            flat = wrapper.fp16_partitioned_groups_flat[i]
            group = wrapper.fp16_partitioned_groups[i]
            flat.data.copy_(master.data)
            for p, part in zip(group, wrapper.unflatten(flat, group), strict=True):
                p.data = part.data
        if len(wrapper.persistent_parameters):
            wrapper.persistent_parameters[0].partition(wrapper.persistent_parameters)
    else:
        wrapper.update_lp_params()
