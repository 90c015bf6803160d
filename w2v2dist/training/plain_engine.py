"""Engines without DeepSpeed, for several modules that are trained in turns by one process: the
gradients of all are clipped together, and only the module whose turn it is moves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from w2v2dist.config import may_change
from w2v2dist.runtime.distributed import World
from w2v2dist.training.engine import Adam, Engine, EngineConfig, OptimizerConfig
from w2v2dist.training.fragments import Fragment


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainEngineConfig(EngineConfig):
    """One process in fp32: nothing is partitioned, and no other number format is offered."""

    zero_stage: int = may_change(0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: float = 5.0  # of the gradients of all modules together

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        for name, only in (("zero_stage", 0), ("precision", "fp32"), ("compile", False)):
            if (value := getattr(self, name)) != only:
                raise ValueError(
                    f"{name} is {value} but must be {only}: these models train in one process in "
                    "fp32, where an update is some spacings of a weight; leave the key out"
                )
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm} but must be positive")


class PlainEngine:
    """Forward, backward and update of one module among `modules`, which share their gradients."""

    loss_scale = 1.0
    is_plain = True
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        module: nn.Module,
        config: PlainEngineConfig,
        optimizer: OptimizerConfig,
        modules: list[nn.Module],
        world: World,
    ) -> None:
        self.config, self.world = config, world
        self.module = module.to(world.device)
        self.optimizer = Adam(module.parameters(), optimizer)
        self._modules = modules

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self.module.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, of all modules that it depends on."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float | None) -> float | None:
        """Finish a round; the last of a step (`lr` given) clips all gradients together, moves this
        module's weights and returns the norm from before. Nothing is left for the next step."""
        if lr is None:
            return None
        parameters = [p for module in self._modules for p in module.parameters()]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for p in parameters:
            p.grad = None
        return float(norm)

    def has_finite_weights(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(torch.isfinite(p).all()) for p in self.module.parameters())

    def fragments(self) -> Iterator[Fragment]:
        """Every parameter, whole."""
        for name, p in self.module.named_parameters():
            yield Fragment(name, p.numel(), p, 0, 0, p.numel())


AnyEngine = Engine | PlainEngine


def make_engines(
    groups: Mapping[str, tuple[nn.Module, OptimizerConfig]],
    config: EngineConfig,
    num_rounds: int,
    world: World,
) -> dict[str, AnyEngine]:
    """An engine for each group of a training: those that `config` asks for."""
    if not isinstance(config, PlainEngineConfig):
        return {
            name: Engine(module, config, optimizer, num_rounds, world)
            for name, (module, optimizer) in groups.items()
        }
    modules = [module for module, _ in groups.values()]
    return {
        name: PlainEngine(module, config, optimizer, modules, world)
        for name, (module, optimizer) in groups.items()
    }
