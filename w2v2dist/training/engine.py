"""A model under DeepSpeed: ZeRO 0-3, precision, Adam, gradients summed over a step's slots."""

import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from w2v2dist.config import may_change
from w2v2dist.runtime.distributed import World, limit_groups
from w2v2dist.training.compiled import compile_blocks
from w2v2dist.training.exchange import Exchange
from w2v2dist.training.fragments import Fragment, fragments

BUCKET = 50_000_000  # elements of DeepSpeed's buffers for gradients; twice the parameters at most


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

    In 16 bits stage 0 runs as stage 1, the same numbers in less memory: DeepSpeed has none that
    accumulates their gradients in fp32.
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


def has_bf16(device: torch.device) -> bool:
    """Whether a GPU has bf16 of its own, and does not emulate it; a CPU computes in it anyhow."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


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
        if config.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
            rule = "engine.precision is fp16, which DeepSpeed runs on GPUs only"
            raise ValueError(f"{rule}: use fp32 or bf16 on a CPU")
        if config.precision == "bf16" and not has_bf16(world.device):
            name = torch.cuda.get_device_name(world.device)
            raise ValueError(
                f"engine.precision is bf16, which {name} does not compute in (torch would emulate "
                "it, slowly): use fp16 or fp32, or a GPU from Ampere (A100) on"
            )
        self.config, self.world = config, world
        narrow = config.precision != "fp32"
        weights = {n: p.detach().cpu() for n, p in model.named_parameters()} if narrow else {}
        num_parameters = sum(p.numel() for p in model.parameters())
        engine, *_ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=Adam(model.parameters(), optimizer),
            config=self._deepspeed_config(num_rounds, min(BUCKET, 2 * num_parameters)),
        )
        limit_groups()  # those that DeepSpeed makes
        self.deepspeed = engine
        self.module: nn.Module = engine.module
        for fragment in self.fragments() if narrow else ():  # DeepSpeed's have 16 bits' precision
            fragment.values.copy_(fragment.of(weights[fragment.name]))
        self._exchange = self._make_exchange() if world.size > 1 else None
        self.notes = compile_blocks(self.module, world) if config.compile else []  # for the log
        if config.precision == "fp16":  # alarms.py says it in better words
            engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    def _deepspeed_config(self, num_rounds: int, bucket: int) -> dict[str, Any]:
        narrow = self.config.precision != "fp32"
        stage = max(self.config.zero_stage, 1) if narrow else self.config.zero_stage
        config: dict[str, Any] = {
            "train_batch_size": num_rounds * self.world.size,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": num_rounds,
            "zero_optimization": {
                "stage": stage,
                "sub_group_size": 10**12,  # one: ZeRO 3 calls Adam for each, and Adam counts calls
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                # At 1 it would lose the gradients of layers that the last slot alone skips
                "overlap_comm": stage == 3,
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 0.0,
            "steps_per_print": 10**9,
            # Many slots are summed, here and over processes: in 16 bits a step would depend on the
            # number of processes
            "communication_data_type": "fp32",
            "gradient_allreduce_op": "mean" if stage == 3 else "sum",  # it knows no other
            "timers": {"throughput": {"enabled": False}},  # waits for the GPU twice a micro-batch
        }
        if self.config.precision != "fp32":
            config[self.config.precision] = {"enabled": True}
            if self.config.precision == "bf16":  # each gradient is added when it is computed
                config["bf16"]["immediate_grad_update"] = True
            # Many slots are summed: in half precision small gradients would be lost
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.deepspeed(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self.deepspeed.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, one slot's share of the step's loss."""
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        if self._exchange is not None and self.deepspeed.is_gradient_accumulation_boundary():
            self._exchange.finish()

    def _make_exchange(self) -> Exchange | None:
        """What sums the gradients over processes in DeepSpeed's place: only ZeRO 1 in bf16, where
        it would begin after the backward pass, with all of them in one line."""
        wrapper = self.deepspeed.optimizer
        flats: list[Tensor] = getattr(wrapper, "fp32_groups_gradients_flat", [])
        if len(flats) != 1:
            return None
        self.deepspeed.enable_backward_allreduce = False
        is_last = self.deepspeed.is_gradient_accumulation_boundary
        return Exchange(self.module, wrapper.bf16_groups[0], flats[0], is_last)

    def step(self, lr: float | None) -> float | None:
        """Finish a round; the last of a step (`lr` given) updates and returns the gradient norm."""
        if lr is None:
            self.deepspeed.step()
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = self._plain_norm() if self.is_plain else None
        if self.config.zero_stage == 3:
            # It averages over processes. A larger loss instead would round 16-bit gradients
            # otherwise at each number of them
            self.deepspeed.optimizer.grad_partitions_flat_buffer.mul_(self.world.size)
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
        finite = [torch.isfinite(self._own(p)).all() for p in self.module.parameters()]
        return not self.world.max([float(not torch.stack(finite).all())])[0]

    def fragments(self) -> Iterator[Fragment]:
        """The ranges of every parameter's fp32 master copy that this process holds."""
        return fragments(self.deepspeed, self.world.rank)

    def _own(self, p: Any) -> Tensor:
        """What this process holds of a parameter, without ZeRO 3's uninitialised padding."""
        if not hasattr(p, "ds_tensor"):
            return p  # type: ignore[no-any-return]
        size = max(0, p.ds_numel - self.world.rank * p.partition_numel())
        return p.ds_tensor.flatten()[:size]  # type: ignore[no-any-return]

    def _plain_norm(self) -> float:
        norm, parameters = torch.linalg.vector_norm, self.module.parameters()
        return float(norm(torch.stack([norm(p.grad) for p in parameters if p.grad is not None])))
