"""What a job would need, from its configuration alone: memory, data rate, time, checkpoints."""

from dataclasses import dataclass

from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.jobs.devices import GIB, LINKS, Device
from w2v2dist.jobs.roofline import Prediction, predict
from w2v2dist.jobs.scaling import scaled
from w2v2dist.jobs.work import Config
from w2v2dist.tasks.language_model import LanguageModelingConfig

FLAC_BYTES_PER_HOUR = 66e6  # Libri-Light: 53,000 h are 3.5 TB


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The prediction for one job."""

    config: Config
    num_nodes: int
    num_processes: int
    prediction: Prediction

    @property
    def amount_per_step(self) -> float:
        """Hours of audio, or tokens, at most; slots that end before their limit hold less."""
        num_slots = self.config.data.virtual_world_size
        if isinstance(self.config, LanguageModelingConfig):
            return num_slots * self.config.data.max_tokens_per_slot
        return num_slots * self.config.data.max_samples_per_slot / SAMPLE_RATE / 3600

    def lines(self) -> list[str]:
        """The plan in words."""
        found = self.prediction
        steps, num_slots = self.config.loop.max_steps, self.config.data.virtual_world_size
        empty = found.num_rounds * self.num_processes - num_slots
        idle = f", {empty} of the step's places idle" if empty else ""
        million = found.num_parameters / 1e6
        values = {
            "task": f"{self.config.task}, {million:.1f} M parameters, {steps:,} steps{found.note}",
            "processes": f"{self.num_processes} on {self.num_nodes} nodes",
            "slots": f"{num_slots} a step, {found.num_rounds} per GPU{idle}",
            **self._amount(),
            "memory per GPU": self._memory(),
            "step time": self._time(),
            "": self._parts(),
            "exchange": self._exchange(),
            "efficiency": self._efficiency(),
            **self._data_rate(),
            "checkpoint": f"{12 * found.num_parameters / 1e9:.2f} GB (fp32 weights, both Adam "
            "moments)",
        }
        return [f"{name:<16}{value}" for name, value in values.items()]

    @property
    def _texts(self) -> bool:
        return isinstance(self.config, LanguageModelingConfig)

    def _amount(self) -> dict[str, str]:
        """How much a step trains on."""
        if self._texts:
            return {"tokens per step": f"{self.amount_per_step:,.0f} at most"}
        return {"audio per step": f"{self.amount_per_step:.2f} h at most"}

    def _memory(self) -> str:
        found, held = self.prediction, self.prediction.memory
        beside = held.total - held.state - held.kept
        text = (
            f"{held.total / GIB:.1f} GiB predicted ({held.state / GIB:.1f} state + "
            f"{held.kept / GIB:.1f} kept for the backward pass + {beside / GIB:.1f} beside), "
        )
        name = f"{found.device.memory_bytes / GIB:.0f} GiB ({found.device.name})"
        if found.fits:
            return f"{text}fits in {name}"
        return f"{text}does NOT fit in {name}: {found.remedy}"

    def _time(self) -> str:
        found, days = self.prediction, self.config.loop.max_steps / 86_400
        return (
            f"{found.step_seconds:.3g} s PREDICTED for {found.device.name}, not measured: "
            f"{found.model_flops * self.num_processes / 1e15:.2f} PFLOP at {found.mfu:.0%} of the "
            f"peak; {days * found.step_seconds:.1f} days in all"
        )

    def _parts(self) -> str:
        """The parts that take longest."""
        parts = sorted(self.prediction.parts.items(), key=lambda item: -item[1].seconds)
        whole = self.prediction.compute_seconds
        shares = [f"{name} {p.seconds / whole:.0%} ({p.bound})" for name, p in parts[:4]]
        return f"bound by: {', '.join(shares)}"

    def _exchange(self) -> str:
        found = self.prediction
        if found.world_size == 1:
            return "none: one process"
        hidden = found.exchange_seconds - found.exposed_seconds
        where = "inside the node" if self.num_nodes == 1 else f"on {LINKS['8x400'].name}"
        return (
            f"{found.sent_bytes / 1e9:.2f} GB a process and step at ZeRO stage "
            f"{self.config.engine.zero_stage}: {found.exchange_seconds:.2g} s {where}, "
            f"{hidden:.2g} s of it behind the backward pass"
        )

    def _efficiency(self) -> str:
        """On more GPUs, for both links."""
        by_link: dict[str, list[str]] = {}
        per_node = max(1, self.num_processes // self.num_nodes)
        for one in scaled(self.config, self.prediction.device, per_node):
            if one.num_slots == self.config.data.virtual_world_size:
                words = by_link.setdefault(one.link.name, [])
                words.append(f"{one.num_gpus}: {one.efficiency:.0%}")
        texts = [f"{', '.join(words)} on {name}" for name, words in by_link.items()]
        if not texts:
            return "8 GPUs or more are refused: the batch has fewer slots"
        return f"of one GPU's speed, by their number: {'; '.join(texts)}"

    def _data_rate(self) -> dict[str, str]:
        """How much of it a node reads; of text that is next to nothing."""
        if self._texts:
            return {}
        hours = self.amount_per_step / self.num_nodes
        megabytes = hours * FLAC_BYTES_PER_HOUR / 1e6
        seconds = self.prediction.step_seconds
        rate = f"{hours / seconds:.3f} h/s, {megabytes / seconds:.1f} MB/s"
        per_step = f"{hours:.3f} h ({megabytes:.1f} MB of FLAC) a step"
        return {"data per node": f"{per_step}; {rate}, if so"}


def make_plan(config: Config, num_nodes: int, tasks_per_node: int, device: Device) -> Plan:
    """Predict a job of `num_nodes` × `tasks_per_node` processes. ValueError if too many."""
    num_processes = num_nodes * tasks_per_node
    return Plan(
        config=config,
        num_nodes=num_nodes,
        num_processes=num_processes,
        prediction=predict(config, device, num_processes, num_nodes),
    )
