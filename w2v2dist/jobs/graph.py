"""The operators of a forward and backward pass from shapes alone: FLOP, bytes, what is kept.

A model is made of meta tensors (nothing is allocated) and run as on a GPU or a CPU; a dispatch mode
sees every operator of aten, those of custom autograd functions and of recomputation too.
"""

import bisect
import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from w2v2dist.jobs.meta import fake

aten = torch.ops.aten
PARTS = (
    "encoder convolutions",
    "positions",
    "attention",
    "FFN",
    "norms, pointwise",
    "heads and loss",
)
CONVOLUTIONS, POSITIONS, ATTENTION, FFN, POINTWISE, HEADS = PARTS
# Operators that take numbers from memory, change each and put them back; a compiler joins them.
# Besides those that aten tags as pointwise: norms and softmax (over a row), sums that end a chain
JOINED = {
    *("native_layer_norm", "native_layer_norm_backward", "native_group_norm"),
    *("native_group_norm_backward", "_softmax", "_softmax_backward_data", "_log_softmax"),
    *("_log_softmax_backward_data", "native_dropout", "native_dropout_backward", "_to_copy"),
    *("clone", "copy_", "sum", "mean", "var_mean", "masked_fill", "zeros", "zeros_like", "ones"),
    *("full", "fill_", "zero_", "linalg_vector_norm", "bernoulli_", "exponential_"),
}
NO_WORK = ("empty", "detach", "alias", "_unsafe_view", "prim.", "_local_scalar_dense")


@dataclass(slots=True)
class Operator:
    """One kernel. Storages are numbers; bytes are of the tensors, not of their storages."""

    name: str
    part: str
    backward: bool
    kind: str  # matrix, convolution, grouped convolution, attention, copy or pointwise
    flops: float
    reads: dict[int, float]  # storage -> bytes
    writes: dict[int, float]
    narrow: bool  # of 16 bits
    numel: int  # of its largest tensor
    joined: bool  # a compiler may put it into one kernel with others
    recomputed: bool = False

    @property
    def bytes(self) -> float:
        """Read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass(slots=True)
class Graph:
    """A micro-batch's forward and backward pass."""

    operators: list[Operator]
    kept_bytes: float  # saved for the backward pass, without the parameters
    peak_bytes: float  # the most that lives at once, without parameters and their gradients
    sizes: tuple[int, ...]  # of the parameters

    @property
    def flops(self) -> float:
        """Of matrix products, convolutions and attention, recomputation included."""
        return sum(op.flops for op in self.operators)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator; says which part of the model it belongs to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.in_backward = False
        self.events: list[tuple[int, float]] = []  # storage, bytes: born positive, dead negative
        self._live: dict[int, int] = {}  # address of a storage -> its number
        self._count = 0
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        # From which sequence number of autograd on which module ran: what goes backward later
        self._starts: list[int] = [0]
        self._owners: list[str] = [""]

    @contextlib.contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Follow which module's forward runs."""
        handles = []
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._names[module])
        self._mark()

    def _leave(self, module: nn.Module, _: Any, __: Any) -> None:
        if self._stack:
            self._stack.pop()
            self._mark()

    def _mark(self) -> None:
        if not self.in_backward:
            self._starts.append(torch._C._autograd._get_sequence_nr())
            self._owners.append(self._stack[-1] if self._stack else "")

    def _owner(self) -> str:
        if self._stack or not self.in_backward:
            return self._stack[-1] if self._stack else ""
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else 0
        if number >= self._starts[-1] + 2**40:  # a parameter's gradient is added up
            return ""
        return self._owners[bisect.bisect_right(self._starts, number) - 1]

    def number(self, tensor: Tensor) -> int:
        """A tensor's storage by a number that no later one gets."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._live:
            self._count += 1
            number, size = self._count, float(storage.nbytes())
            self._live[address] = number
            self.events.append((number, size))
            weakref.finalize(storage, self._died, address, number, size)
        return self._live[address]

    def _died(self, address: int, number: int, size: float) -> None:
        if self._live.get(address) == number:
            del self._live[address]
        self.events.append((number, -size))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        reads = {self.number(t): _bytes(t) for t in inputs}
        writes = {self.number(t): _bytes(t) for t in outputs}
        name = str(func)
        view = bool(writes) and {*writes} <= {*reads} and not func._schema.is_mutable
        if not view and not any(word in name for word in NO_WORK):
            flops, kind = _work(func, args, kwargs, out)
            sizes = [t.numel() for t in (*inputs, *outputs)]
            tagged = torch.Tag.pointwise in func.tags
            packet = func._overloadpacket.__name__
            if kind == "pointwise" and packet in ("clone", "copy_", "_to_copy"):
                kind = "copy" if _turns(inputs, outputs) else kind
            self.operators.append(
                Operator(
                    name=packet,
                    part=part_of(self._owner(), flops),
                    backward=self.in_backward,
                    kind=kind,
                    flops=flops,
                    reads=reads,
                    writes=writes,
                    narrow=any(t.is_floating_point() and t.itemsize <= 2 for t in inputs),
                    numel=max(sizes, default=0),
                    joined=kind == "pointwise" and (tagged or packet in JOINED),
                    recomputed=self.in_backward and bool(self._stack),
                )
            )
        return out


def part_of(module: str, flops: float) -> str:
    """The part of a training step that a module's operator belongs to."""
    names = module.split(".")
    if "feature_encoder" in names:
        return CONVOLUTIONS
    if "positions" in names:
        return POSITIONS
    if "attention" in names:
        return ATTENTION
    if "layers" in names:
        return FFN if flops else POINTWISE
    in_body = "encoder" in names or "context_network" in names
    return POINTWISE if in_body and not flops else HEADS


def _bytes(tensor: Tensor) -> float:
    """What a kernel touches: an expanded tensor is read where it lies."""
    shape = [n for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s or n == 1]
    return float(math.prod(shape) * tensor.element_size())


def _turns(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether a copy changes the order in memory."""
    source, target = inputs[-1], outputs[0]
    same = source.dim() == target.dim() and source.stride() == target.stride()
    return not same and source.numel() > 1e6 and not source.is_contiguous()


def _work(func: Any, args: Any, kwargs: Any, out: Any) -> tuple[float, str]:
    """FLOP and kind. Of torch's counter two formulas are not right: it takes the weight gradient
    of a grouped convolution once a group, and does not halve what is causal."""
    packet = func._overloadpacket
    packet = getattr(aten, packet.__name__.removesuffix("_"), packet)  # in place: the same work
    if packet is aten.convolution_backward:
        grad, x, weight, groups, wanted = args[0], args[1], args[2], args[9], args[10]
        once = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape))
        return float(once * sum(wanted[:2])), _convolution(weight, groups)
    if packet is aten.convolution:
        once = conv_flop_count(list(args[0].shape), list(args[1].shape), list(out.shape))
        return float(once), _convolution(args[1], args[8])
    if "scaled_dot_product" in packet.__name__:
        is_backward = "backward" in packet.__name__
        q, k = args[1:3] if is_backward else args[:2]
        place = [argument.name for argument in func._schema.arguments].index("is_causal")
        causal = args[place] if place < len(args) else kwargs.get("is_causal", False)
        products = 5 if is_backward else 2  # the scores are computed anew
        flops = 2 * products * math.prod(q.shape) * k.shape[-2]
        return flops * (0.5 if causal else 1.0), "attention"
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out)), "matrix"
    return 0.0, "pointwise"


def _convolution(weight: Tensor, groups: int) -> str:
    if groups > 1:
        return "grouped convolution"
    return "convolution of one channel" if weight.shape[1] == 1 else "convolution"


@dataclass(slots=True)
class _Kept:
    """What autograd saves, each storage once."""

    excluded: set[int]
    bytes: dict[int, float] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.excluded:
            self.bytes[storage._cdata] = float(storage.nbytes())
        return tensor


def kept_of(model: nn.Module, run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Bytes that autograd's hooks see saved in `run`, without the parameters, and its result. Real
    or fake tensors."""
    kept = _Kept({p.untyped_storage()._cdata for p in model.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t):
        loss = run()
    return sum(kept.bytes.values()), loss


def trace(make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]], *, gpu: bool) -> Graph:
    """The graph of the model and the loss that `make` returns; both run inside `fake`."""
    with fake(gpu), torch.random.fork_rng(devices=[]):
        model, run = make()
        recorder = _Recorder(model)
        with recorder, recorder.hooks(model):
            ignored = {recorder.number(p) for p in model.parameters()}
            kept, loss = kept_of(model, run)
            recorder.in_backward = True
            # What Tensor.backward calls. That itself is seen by the function modes of `fake`, and
            # these are off in what they see: the backward pass would not run as on a GPU
            ones, engine = torch.ones_like(loss), torch.autograd.graph._engine_run_backward
            whole = {"allow_unreachable": True, "accumulate_grad": True}
            engine((loss,), (ones,), False, False, (), **whole)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        ignored |= {recorder.number(grad) for grad in grads}
    return Graph(
        operators=recorder.operators,
        kept_bytes=kept,
        peak_bytes=_peak(recorder.events, ignored),
        sizes=sizes_of(model),
    )


def sizes_of(model: nn.Module) -> tuple[int, ...]:
    """Elements of each parameter."""
    return tuple(p.numel() for p in model.parameters())


def _peak(events: Sequence[tuple[int, float]], ignored: set[int]) -> float:
    live = peak = 0.0
    for number, size in events:
        if number not in ignored:
            live += size
            peak = max(peak, live)
    return peak
