"""Checkpoints that any number of processes and any ZeRO stage can read, committed by rename.

Every parameter and its Adam moments are stored as flat global tensors (fp32) in
torch.distributed.checkpoint; each process writes the ranges that it owns, and reads the ranges that
it needs. A thread writes, from a copy in host memory, while training goes on. The private DeepSpeed
attributes that this relies on are all in `_fragments` and `_after_load`; tests/distributed holds
them against the pinned version.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from w2v2dist.config import ConfigError
from w2v2dist.runtime.logging import DISK_FULL
from w2v2dist.training.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
SUMS = "SHA256SUMS"  # of all other files of a checkpoint, as `sha256sum -c` reads it
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of fp16


T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; names the folder and the remedy."""


class FlatRange(Tensor):
    """The range [start, start + n) of a flat global tensor of `numel` elements, for
    torch.distributed.checkpoint."""

    data_range: Tensor
    start: int

    @staticmethod
    def __new__(cls, data: Tensor, start: int, numel: int) -> FlatRange:
        out: FlatRange = torch.Tensor._make_wrapper_subclass(
            cls, (numel,), dtype=data.dtype, device=data.device
        )
        out.data_range, out.start = data, start
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"FlatRange is only for checkpoints, not for {func}")

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.start]), torch.Size([self.data_range.numel()]))

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.data_range

    def __create_write_items__(self, name: str, value: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.data_range)
        data = TensorWriteData(chunk=self._chunk(), properties=properties, size=self.size())
        index = MetadataIndex(name, torch.Size([self.start]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]


@dataclass(slots=True)
class _Fragment:
    """`size` elements at `offset` of the fp32 tensor `flat` are elements [start, start + size) of a
    parameter."""

    name: str
    numel: int
    flat: Tensor
    offset: int
    start: int
    size: int


def _fragments(engine: Engine) -> Iterator[_Fragment]:
    """The ranges of every parameter's fp32 master copy that this process holds."""
    wrapper, rank = engine.deepspeed.optimizer, engine.world.rank
    names = {id(p): name for name, p in engine.module.named_parameters()}
    if engine.is_plain:
        for name, p in engine.module.named_parameters():
            yield _Fragment(name, p.numel(), p, 0, 0, p.numel())
    elif hasattr(wrapper, "fp32_partitioned_groups_flat"):
        # ZeRO 3: each parameter is cut over the processes
        for parameters, flat in zip(
            wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat, strict=True
        ):
            offset = 0
            for p in parameters:
                part = p.partition_numel()
                size = max(0, min(part, p.ds_numel - rank * part))
                if size:
                    yield _Fragment(names[id(p)], p.ds_numel, flat, offset, rank * part, size)
                offset += part
    else:  # ZeRO 1, 2 and bf16 at ZeRO 0: all parameters in one line, cut over the processes
        flats = (
            getattr(wrapper, "single_partition_of_fp32_groups", None)
            or wrapper.fp32_groups_flat_partition
        )
        for name, p in engine.module.named_parameters():
            mapping = getattr(p, "_hp_mapping", None)
            if mapping is not None:
                high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
                flat = flats[mapping.param_group_index]
                yield _Fragment(name, p.numel(), flat, high.start, low.start, low.numel)


def _state(engine: Engine, *, for_save: bool) -> dict[str, Any]:
    """Names to FlatRanges that view the live optimizer state (created as zeros where Adam has none
    yet)."""
    out: dict[str, Any] = {}
    rank, world = engine.world.rank, engine.world.size
    for f in _fragments(engine):
        state = engine.optimizer.state[f.flat]
        if "step" not in state:
            state["step"] = torch.zeros((), device=f.flat.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(f.flat.data)
        offset, start, size = f.offset, f.start, f.size
        if for_save and engine.is_plain:
            part = -(-f.numel // world)  # every process holds all of it: each writes a part
            first = min(rank * part, f.numel)
            offset, start, size = f.offset + first, first, min(part, f.numel - first)
            if size == 0:
                continue
        for key, source in {"fp32": f.flat.data, **{k: state[k] for k in MOMENTS}}.items():
            flat = source.view(-1).narrow(0, offset, size).detach()
            out[f"{key}/{f.name}"] = FlatRange(flat, start, f.numel)
    for name, buffer in engine.module.named_buffers():
        out[f"buffer/{name}"] = buffer.detach()
    return out


class Saver:
    """Writes checkpoints of an engine to `root` in a thread, one at a time. The thread talks to the
    other processes over a group of its own, so that training may go on meanwhile."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine, self._root = engine, root
        self._host: dict[str, Tensor] = {}
        self._pool = ThreadPoolExecutor(1)

    def begin(
        self, step: int, meta: dict[str, Any], commit: Callable[[Path], None], *, copy: bool
    ) -> Future[float]:
        """Begin `root/step_XXXXXXXX` on all processes together: temporary name, made durable,
        renamed, then `commit(folder)` on the first process.

        `meta` is kept as meta.json. With `copy` training may go on at once, else when the future is
        done: it holds the time.perf_counter() of that, or CheckpointError on every process. Older
        checkpoints are never touched.
        """
        engine = self._engine
        state = _state(engine, for_save=True)
        hyper = [
            {k: v for k, v in group.items() if k != "params"}
            for group in engine.optimizer.param_groups
        ]
        record = {**meta, "step": step, "world_size": engine.world.size, "optimizer": hyper}
        if engine.config.precision == "fp16":
            scaler = engine.deepspeed.optimizer.loss_scaler
            record["loss_scaler"] = {name: getattr(scaler, name) for name in SCALER}
        if copy:
            state = {name: self._copy(name, value) for name, value in state.items()}
        _host_group()  # made by the main thread
        return self._pool.submit(self._write, state, record, commit)

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        self._pool.shutdown()

    def _copy(self, name: str, value: Tensor) -> Tensor:
        """The value in host memory: the next step leaves it, the next save reuses it."""
        source = _range(value)
        if name not in self._host:
            self._host[name] = torch.empty_like(source, device="cpu")
        host = self._host[name].copy_(source)
        return FlatRange(host, value.start, value.numel()) if isinstance(value, FlatRange) else host

    def _write(
        self, state: dict[str, Tensor], record: dict[str, Any], commit: Callable[[Path], None]
    ) -> float:
        root, world = self._root, self._engine.world
        final = root / f"step_{record['step']:08d}"
        temporary = root / f".tmp-{final.name}"

        def prepare() -> int:
            if world.is_main:
                root.mkdir(parents=True, exist_ok=True)
                for leftover in root.glob(".tmp-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            return sum(_range(value).nbytes for value in state.values())

        def check_space(needed: int) -> None:  # a disk filled to the brim would stop the logs too
            if world.is_main and (free := shutil.disk_usage(root).free) < needed + (1 << 20):
                full = DISK_FULL[errno.ENOSPC]
                raise CheckpointError(
                    f"{full} (of {needed / 1e9:.3g} GB {free / 1e9:.3g} are free)"
                )

        def write() -> dict[str, str]:
            writer = FileSystemWriter(temporary, per_thread_copy_ahead=0)  # no CUDA in this thread
            state_dict_saver.save(state, storage_writer=writer, process_group=_host_group())
            mine = [*temporary.glob(f"__{world.rank}_*")]
            mine += [temporary / ".metadata"] if world.is_main else []
            return {path.name: _sha256(path) for path in mine}

        def publish(sums: list[dict[str, str]]) -> None:
            if not world.is_main:
                return
            _write_durably(temporary / "meta.json", json.dumps(record, indent=1))
            _write_sums(temporary, {name: d for part in sums for name, d in part.items()})
            _sync_folder(temporary)
            if final.exists():  # a damaged one of the same step
                os.replace(final, root / f".tmp-old-{final.name}")
            os.replace(temporary, final)
            _sync_folder(root)
            commit(final)

        try:
            needed = sum(_together(prepare))
            _together(lambda: check_space(needed))
            sums = _together(write)
            _together(lambda: publish(sums))
        except CheckpointError as error:
            reason = str(error)
            # torch's own message hides the cause
            if root.exists() and shutil.disk_usage(root).free < 1 << 20:
                reason = DISK_FULL[errno.ENOSPC]
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {final} could not be written: {reason}. Older checkpoints are "
                "untouched: free space (or lower loop.keep_last) and run the same command again to "
                "continue from them"
            ) from None
        return time.perf_counter()


def _range(value: Tensor) -> Tensor:
    return value.data_range if isinstance(value, FlatRange) else value


def _together(work: Callable[[], T]) -> list[T]:
    """The result of `work` in every process, in the order of ranks. Raises CheckpointError in all
    where it fails in one."""
    result, problem = None, ""
    try:
        result = work()
    except (Exception, CheckpointException) as error:  # the others wait below, whatever it is
        problem = _reason(error)
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, (result, problem), group=_host_group())
    for _, problem in answers:
        if problem:
            raise CheckpointError(problem)
    return [answer for answer, _ in answers]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    """SHA256SUMS of the files that `sums` has, and of meta.json."""
    sums = {**sums, "meta.json": _sha256(folder / "meta.json")}
    _write_durably(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def verify(folder: Path, rank: int = 0, world_size: int = 1) -> None:
    """Compare the `rank`-th of `world_size` shares of a checkpoint's files with its checksums.
    Raises CheckpointError. A checkpoint of an older version has none."""
    if not (folder / SUMS).exists():
        return
    text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    sums = {line[66:]: line[:64] for line in text.splitlines()}
    files = {"meta.json", ".metadata", *(path.name for path in folder.glob("*.distcp"))}
    for name in sorted({*sums, *files})[rank::world_size]:
        try:
            if _sha256(folder / name) != sums.get(name):
                raise CheckpointError(f"{folder / name} is damaged: {SUMS} has another checksum")
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from None


def _reason(error: BaseException) -> str:
    """The first line a person needs from a nested checkpoint failure."""
    failures: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        failures = [failure[0] for failure in error.failures.values()]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in DISK_FULL:
                return DISK_FULL[cause.errno]
            cause = cause.__cause__ or cause.__context__
    text = str(failures[0]) or type(failures[0]).__name__
    return text.splitlines()[0]


def load(
    engine: Engine, folder: Path, check: Callable[[dict[str, Any]], None] = lambda meta: None
) -> dict[str, Any]:
    """Read a checkpoint of any world size and ZeRO stage into the engine; returns its meta, which
    `check` may refuse first. Raises CheckpointError, and ConfigError where it was imported from
    another library."""
    world = engine.world
    # Reading is collective: all or none begin it
    meta = _together(lambda: read_meta(folder))[0]
    _together(lambda: verify(folder, world.rank, world.size))
    if "imported_from" in meta:
        raise ConfigError(
            f"{folder} was imported and holds no optimizer: it can only be fine-tuned, with "
            "pretrained= and another run_dir"
        )
    check(meta)
    state = _state(engine, for_save=False)
    try:
        _together(
            lambda: state_dict_loader.load(state, checkpoint_id=folder, process_group=_host_group())
        )
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from None
    optimizer = engine.optimizer
    for group, saved in zip(optimizer.param_groups, meta["optimizer"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
    (updates,) = {group["num_updates"] for group in optimizer.param_groups}
    for state in optimizer.state.values():  # a tensor each: shared ones would count twice
        state["step"] = torch.full_like(state["step"], float(updates))
    _after_load(engine)
    for name, value in meta.get("loss_scaler", {}).items():
        setattr(engine.deepspeed.optimizer.loss_scaler, name, value)
    engine.deepspeed.global_steps = int(meta["step"])
    return meta


def _after_load(engine: Engine) -> None:
    """Copy the fp32 masters to the weights that the model computes with."""
    wrapper = engine.deepspeed.optimizer
    if engine.is_plain:
        return
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):
        for i, master in enumerate(wrapper.fp32_partitioned_groups_flat):
            flat, group = (
                wrapper.fp16_partitioned_groups_flat[i],
                wrapper.fp16_partitioned_groups[i],
            )
            flat.data.copy_(master.data)
            for p, part in zip(group, wrapper.unflatten(flat, group), strict=True):
                p.data = part.data
        if len(wrapper.persistent_parameters):
            wrapper.persistent_parameters[0].partition(wrapper.persistent_parameters)
    else:
        wrapper.update_lp_params()


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a step folder. Raises CheckpointError where the folder is no complete
    checkpoint."""
    for name in ("meta.json", ".metadata"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing")
    try:
        return dict(json.loads((folder / "meta.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(f"{folder}/meta.json is damaged: {error}") from None


def find(run_or_step: Path, which: str = "latest") -> Path:
    """The step folder that a run folder's `latest` or `best` names, or the step folder itself."""
    if (run_or_step / "meta.json").is_file():
        return run_or_step
    link = run_or_step / "checkpoints" / which
    if not link.exists():
        raise CheckpointError(
            f"{run_or_step} has no checkpoints/{which}: is it a run folder that has saved?"
        )
    return link.resolve()


def step_of(folder: Path) -> int:
    """The step that a step folder's name states."""
    return int(folder.name.removeprefix("step_"))


def candidates(root: Path) -> list[Path]:
    """Step folders, newest first."""
    return sorted(root.glob("step_*"), reverse=True)


def read_parameters(folder: Path) -> dict[str, Tensor]:
    """Every parameter (flat, fp32) and buffer of a checkpoint by name, in one process, without
    DeepSpeed."""
    read_meta(folder)
    verify(folder)
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    for name, entry in entries.items():
        kind = name.split("/", 1)[0]
        if kind in ("fp32", "buffer"):
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
    try:
        with warnings.catch_warnings():  # that there is one process is meant
            warnings.filterwarnings("ignore", "torch.distributed is")
            state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {_reason(error)}") from error
    return {name.split("/", 1)[1]: value for name, value in state.items()}


def write_parameters(root: Path, values: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write parameters alone as the step folder of step 0 in `root`, which `latest` and `best` then
    name, in one process: what `read_parameters` reads, with nothing to resume from."""
    folder = root / "step_00000000"
    state = {f"fp32/{name}": value.detach().float().flatten() for name, value in values.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        state_dict_saver.save(state, checkpoint_id=folder, no_dist=True)
    record = json.dumps({**meta, "step": 0, "world_size": 1, "optimizer": []}, indent=1)
    (folder / "meta.json").write_text(record, encoding="utf-8")
    _write_sums(folder, {path.name: _sha256(path) for path in folder.iterdir()})
    for name in ("latest", "best"):
        point(root, name, folder)
    return folder


def load_into(module: nn.Module, values: dict[str, Tensor], source: str, prefix: str = "") -> None:
    """Copy the values whose names start with `prefix` into `module`; every tensor of `module` whose
    name starts with it must be there, with as many elements. Raises CheckpointError that lists what
    does not fit."""
    wanted = {n: t for n, t in module.state_dict().items() if n.startswith(prefix)}
    given = {n: t for n, t in values.items() if n.startswith(prefix)}
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    shapes = sorted(
        n for n in wanted.keys() & given.keys() if wanted[n].numel() != given[n].numel()
    )
    if missing or unexpected or shapes:
        parts = {"missing": missing, "unexpected": unexpected, "of another size": shapes}
        text = "; ".join(
            f"{k}: {', '.join(v[:5])}{' …' if len(v) > 5 else ''}" for k, v in parts.items() if v
        )
        raise CheckpointError(
            f"the weights of {source} do not fit the configured model ({text}): compare model.*"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name].view(tensor.shape))


def point(root: Path, name: str, target: Path) -> None:
    """Make the link `root/name` name the step folder `target`, in one atomic move."""
    temporary = root / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, root / name)
    _sync_folder(root)


def prune(root: Path, keep_last: int, keep_every: int = 0) -> None:
    """Remove all but the newest `keep_last` step folders, never what `latest` or `best` name, nor
    those of a multiple of `keep_every` steps (0: none)."""
    named = {(root / link).resolve() for link in ("latest", "best") if (root / link).exists()}
    for folder in candidates(root)[keep_last:]:
        milestone = keep_every and step_of(folder) % keep_every == 0
        if folder.resolve() not in named and not milestone:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a step folder."""
    trash = folder.with_name(f".tmp-old-{folder.name}")  # a half-removed one never keeps its name
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


_host_groups: list[Any] = []


def _host_group() -> Any:
    """A gloo group of all processes: checkpoints are coordinated over the host network."""
    if not _host_groups:
        _host_groups.append(dist.new_group(backend="gloo"))
    return _host_groups[0]
