"""torch.compile of the blocks that a step spends its time in (`engine.compile`), in place."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2v2dist.model.context_network import TransformerLayer
from w2v2dist.model.feature_encoder import FeatureEncoder
from w2v2dist.model.language_model import CausalLayer
from w2v2dist.runtime.distributed import World

BLOCKS = (FeatureEncoder, TransformerLayer, CausalLayer)
# Variants of a block: with and without gradients, training and evaluation, padding or none, one row
# or several. What comes after so many runs as it is written: nothing compiles for ever
MAX_VARIANTS = 32


def compile_blocks(model: nn.Module, world: World) -> list[str]:
    """Compile the blocks of a model, each when it is first called; names of parameters stay, and
    layers of one kind share their code. Returns notes for the log: one where a process cannot
    compile, and then none does, so that all compute alike. Collective.

    Shapes are dynamic: a new number of rows or frames compiles nothing. Results agree with the
    plain ones up to rounding, also those of dropout on a CPU (on GPUs its masks are drawn inside
    the fused kernels, by other numbers of the same distribution).
    """
    on_cpu = world.device.type == "cpu"
    options: dict[str, Any] = {"fallback_random": True} if on_cpu else {}
    problems = world.gather(_missing(world.device) or _failure(world.device))
    for rank, problem in enumerate(problems):
        if problem:
            which = "" if len({*problems}) == 1 else f" (process {rank})"
            return [
                f"engine.compile is true but nothing can be compiled{which}: {problem}; layers run "
                "as they are written, with the same results"
            ]
    import torch._dynamo.config as dynamo  # slow to import: only what compiles needs it

    dynamo.recompile_limit = MAX_VARIANTS
    dynamo.suppress_errors = True  # what cannot be compiled runs as it is written
    for block in model.modules():
        if isinstance(block, BLOCKS):
            # Not nn.Module.compile, which takes in the hooks: theirs is to see every call
            forward = torch.compile(block.forward, dynamic=True, options=options)
            setattr(block, "forward", forward)  # noqa: B010  # mypy: a method is not assigned to
    return []


def units(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """The modules that run as a whole, each with the parameters that get gradients then: blocks,
    and outside of these every module with parameters of its own. A hook of theirs is called; one of
    a module inside a block would be compiled with it."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        is_block = isinstance(module, BLOCKS)
        if is_block:
            inside.update(module.modules())
        if parameters := [*module.parameters(recurse=is_block)]:
            yield module, parameters


def _missing(device: torch.device) -> str:
    """Which tool torch.compile lacks here, and how to get it; "" where all are there."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (the CUDA wheels of torch bring it: install one)"
        compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    else:
        compilers = [os.environ.get("CXX") or "g++"]
    if not any(map(shutil.which, compilers)):
        return (
            f"there is no compiler ({' or '.join(compilers)}): install g++ (Debian: apt-get "
            "install g++), load the site's module, or name one in CC and CXX"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing (Debian: apt-get install python3-dev)"
    return ""


def _failure(device: torch.device) -> str:
    """What goes wrong when something small is compiled; "" where nothing does."""
    try:
        torch.compile(nn.functional.gelu)(torch.ones(64, device=device))
    except Exception as error:  # of many kinds, by dynamo, inductor, Triton or the compiler
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        return f"compiling a small function failed with {type(error).__name__}: {lines[0]}"
    return ""
