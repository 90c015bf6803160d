"""Settings of runs: those that are not the defaults, all, and where several runs differ."""

from typing import Any

from w2v2dist.config import flatten, to_dict
from w2v2dist.reporting.page import Html, fold, join, table, tag
from w2v2dist.reporting.runs import Run

FOLDERS = ("run_dir",)


def defaults(task: str) -> dict[str, Any]:
    """The defaults of a task's settings by dotted key; {} of a task that is not known."""
    from w2v2dist.tasks import finetune, language_model, pretrain

    known: dict[str, type[Any]] = {
        "pretrain": pretrain.PretrainConfig,
        "finetune": finetune.FinetuneConfig,
        "language_model": language_model.LanguageModelingConfig,
    }
    return flatten(to_dict(known[task](run_dir=""))) if task in known else {}


def section(run: Run) -> Html:
    """All settings of a run; those that are not the defaults stand open, with the defaults."""
    usual = defaults(run.task)
    changed = {k: v for k, v in run.config.items() if k not in usual or usual[k] != v}
    rows = [(k, _text(v), _text(usual[k]) if k in usual else "") for k, v in changed.items()]
    every = [(key, _text(value)) for key, value in run.config.items()]
    if not every:
        return tag("p", "config.yaml is missing or damaged.", class_="problem")
    return join(
        [
            fold(
                f"Settings that are not the defaults ({len(rows)})",
                table(("key", "value", "default"), rows),
            ),
            fold(f"All settings ({len(every)})", table(("key", "value"), every)),
        ]
    )


def differing(runs: list[Run]) -> Html | None:
    """The settings in which runs differ, a column each; None where they are the same."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in FOLDERS)
    rows = [
        (key, *(_text(run.config[key]) if key in run.config else "" for run in runs))
        for key in keys
        if len({_text(run.config.get(key, "")) for run in runs}) > 1
    ]
    if not rows:
        return None
    return table(("setting", *(run.name for run in runs)), rows, class_="differing")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return str(value)
