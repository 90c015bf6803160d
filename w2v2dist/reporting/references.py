"""What configurations are compared with: the settings of the papers and of released files."""

from typing import Any, NamedTuple

from w2v2dist.config import flatten, read_paper

# Which differences all references of a task have
COMMON = {"pretrain": "common", "finetune": "common", "unsupervised": "wav2vec_u"}


class Reference(NamedTuple):
    """What a configuration is compared with: values by dotted key, their source, and where paper
    and released file differ: `{key: {"paper": …, "released": …, "reason": …}}`, or `"searched"`, a
    list of values among which the paper chooses."""

    name: str
    values: dict[str, Any]
    source: str
    differences: dict[str, dict[str, Any]]


def references(task: str) -> dict[str, Reference]:
    """The references of a task by name."""
    table = read_paper("configurations")
    differences, sources = read_paper("differences"), read_paper("sources")

    def resolve(name: str) -> dict[str, Any]:
        own, out = flatten(table[name]), dict[str, Any]()
        for base in own.pop("base", "").split():
            out |= resolve(base)
        return out | own

    out: dict[str, Reference] = {}
    for name, values in {name: resolve(name) for name in table}.items():
        whole = "schedule.peak_lr" in values or task == "language_model"  # whose rate is unknown
        if whole and values.get("task") == task:
            split = differences.get(COMMON.get(task, ""), {}) | differences.get(name, {})
            out[name] = Reference(name, values, sources.get(name, "released file"), split)
    return out


def show(value: Any, digits: int = 6) -> str:
    """A value as the paper prints it: 400,000, 3e-4, 0.65, [10, 3]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}"
