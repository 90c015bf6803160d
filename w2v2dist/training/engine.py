"""A model under DeepSpeed: ZeRO 0-3, precision, Adam, gradients summed over a step's slots."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from w2v2dist.config import may_change
from w2v2dist.runtime.distributed import World
from w2v2dist.training.compiled import compile_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Adam with decoupled weight decay on every parameter, as the reference implementation."""

    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas is {list(self.betas)} but must be two numbers in [0, 1)")
        if self.eps <= 0:
            raise ValueError(f"eps is {self.eps} but must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """DeepSpeed: what is partitioned over the processes, and the number format of weights and
    activations.

    fp16 at stage 0 runs as stage 1, the same numbers in less memory: DeepSpeed's own optimizer for
    it scales losses in another way.
    """

    zero_stage: int = may_change(1)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    compile: bool = may_change(False)  # torch.compile of the layers

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage is {self.zero_stage} but must be 0, 1, 2 or 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile is true but zero_stage is 3, whose hooks fetch the weights inside the "
                "layers and cannot be compiled: use zero_stage 0 to 2, or compile=false"
            )


class Adam(torch.optim.AdamW):
    """AdamW with epsilon outside the bias correction, as fairseq: the denominator is sqrt(v) + eps.

    The update is lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), which is torch's with eps
    / sqrt(1 - b2^t).
    """

    def __init__(self, parameters: Any, config: OptimizerConfig) -> None:
        betas, decay = (config.betas[0], config.betas[1]), config.weight_decay
        super().__init__(
            parameters, lr=0.0, betas=betas, eps=config.eps, weight_decay=decay, fused=True
        )
        self._eps = config.eps
        for group in self.param_groups:
            group["num_updates"] = 0

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update; t is counted per group, so that it travels with its hyperparameters."""
        for group in self.param_groups:
            group["num_updates"] += 1
            group["eps"] = self._eps / (1 - group["betas"][1] ** group["num_updates"]) ** 0.5
        return super().step(closure)


class Engine:
    """Forward, backward and update of one model; a step is `num_rounds` backward passes."""

    def __init__(
        self,
        model: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        num_rounds: int,
        world: World,
    ) -> None:
        import deepspeed  # slow to import: only what trains needs it

        # A C++ extension for inference on CPUs: a minute of compiling at the first start, and
        # training never calls it
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if config.precision == "fp16" and world.device.type == "cpu":
            rule = "engine.precision is fp16, which DeepSpeed runs on GPUs only"
            raise ValueError(f"{rule}: use fp32 or bf16 on a CPU")
        self.config, self.world = config, world
        engine, *_ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=Adam(model.parameters(), optimizer),
            config=self._deepspeed_config(num_rounds),
        )
        self.deepspeed = engine
        self.module: nn.Module = engine.module
        self.notes = compile_blocks(self.module, world) if config.compile else []  # for the log
        if config.precision == "fp16":  # alarms.py says it in better words
            engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    def _deepspeed_config(self, num_rounds: int) -> dict[str, Any]:
        # DeepSpeed has no stage 0 that accumulates the gradients of half precision in fp32
        narrow = self.config.precision != "fp32"
        stage = max(self.config.zero_stage, 1) if narrow else self.config.zero_stage
        config: dict[str, Any] = {
            "train_batch_size": num_rounds * self.world.size,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": num_rounds,
            # One sub-group: ZeRO 3 calls Adam for each, and Adam counts its calls
            "zero_optimization": {"stage": stage, "sub_group_size": 10**12},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 0.0,
            "steps_per_print": 10**9,
        }
        if self.config.precision != "fp32":
            config[self.config.precision] = {"enabled": True}
            # Many slots are summed: in half precision small gradients would be lost
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.deepspeed(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self.deepspeed.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, one slot's share of the step's loss: over processes they are
        summed, not averaged as DeepSpeed would."""
        self.deepspeed.backward(loss * self.world.size, scale_wrt_gas=False)

    def step(self, lr: float | None) -> float | None:
        """Finish a round; the last of a step (`lr` given) updates and returns the gradient norm."""
        if lr is None:
            self.deepspeed.step()
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = self._plain_norm() if self.is_plain else None
        self.deepspeed.step()
        if norm is None:
            norm = float(self.deepspeed.get_global_grad_norm() or 0.0)
        if self.config.zero_stage == 3:
            # A layer that LayerDrop skips in the next step must not keep this step's gradient
            self.deepspeed.optimizer.grad_partitions_flat_buffer.zero_()
        return norm

    @property
    def optimizer(self) -> Adam:
        """The Adam that holds the state: inside DeepSpeed's wrapper where there is one."""
        wrapper = self.deepspeed.optimizer
        inner = wrapper if isinstance(wrapper, Adam) else wrapper.optimizer
        assert isinstance(inner, Adam)
        return inner

    @property
    def is_plain(self) -> bool:
        """Whether DeepSpeed runs Adam directly on the parameters (ZeRO 0 in fp32)."""
        return isinstance(self.deepspeed.optimizer, Adam)

    @property
    def loss_scale(self) -> float:
        """The dynamic loss scale of fp16; 1 otherwise."""
        if self.config.precision != "fp16":
            return 1.0
        return float(self.deepspeed.optimizer.loss_scaler.cur_scale)

    def has_finite_weights(self) -> bool:
        """Whether all weights on all processes are finite; collective."""
        finite = all(bool(torch.isfinite(self._own(p)).all()) for p in self.module.parameters())
        return not self.world.max([float(not finite)])[0]

    def _own(self, p: Any) -> Tensor:
        """What this process holds of a parameter, without ZeRO 3's uninitialised padding."""
        if not hasattr(p, "ds_tensor"):
            return p  # type: ignore[no-any-return]
        size = max(0, p.ds_numel - self.world.rank * p.partition_numel())
        return p.ds_tensor.flatten()[:size]  # type: ignore[no-any-return]

    def _plain_norm(self) -> float:
        norm, parameters = torch.linalg.vector_norm, self.module.parameters()
        return float(norm(torch.stack([norm(p.grad) for p in parameters if p.grad is not None])))
