"""`w2v2dist table`: the tables that the papers print, with a recipe's own results beside them."""

import argparse
from pathlib import Path

from w2v2dist.config import ConfigError
from w2v2dist.recipes.recipe import RESOLVED, read_started
from w2v2dist.reporting.beside import OWN, tables_of
from w2v2dist.reporting.table_forms import FORMS, screen_width
from w2v2dist.runtime.files import write_whole
from w2v2dist.runtime.logging import console

SUFFIXES = {"": "text", ".txt": "text", ".md": "markdown", ".csv": "csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist table` takes."""
    add = parser.add_argument
    add("recipe", nargs="?", type=Path, metavar="RECIPE", help="file, or folder that it has filled")
    add("overrides", nargs="*", metavar="key=value", help="values over the recipe's")
    add("--all", action="store_true", help="also what of the papers the recipe has not")
    add("--table", metavar="N", help=f"only this one: 1, U3, weights, …; {OWN}: no paper's")
    add("--format", choices=FORMS, help="default: text, or what the suffix of --output says")
    add("--output", type=Path, metavar="FILE", help="write it there")


def run(args: argparse.Namespace) -> None:
    """Print the papers' tables with a recipe's results beside them: mean and deviation over seeds,
    a 95 % interval, what is missing and which command brings it. Without RECIPE all that the papers
    print.

    example:
      w2v2dist table configs/recipes/tiny.yaml --table 1
      w2v2dist table runs/recipes/tiny --output table.csv
      w2v2dist table --table U3
    """
    recipe = read_started(_existing(args.recipe), args.overrides) if args.recipe else None
    form = args.format or _form(args.output)
    found = tables_of(recipe, everything=args.all, number=args.table)
    if args.output is None:
        print(FORMS[form](found, screen_width()), end="")
        return
    write_whole(args.output, FORMS[form](found, None))
    console.print(f"wrote {args.output}", markup=False)


def _form(output: Path | None) -> str:
    """What the suffix of a file says. Raises ConfigError where it says nothing."""
    suffix = output.suffix.lower() if output else ""
    if suffix not in SUFFIXES:
        known = ", ".join(filter(None, SUFFIXES))
        raise ConfigError(
            f"--output is {output}, but tables are written as {known}: give it one of these "
            "suffixes, or say --format"
        )
    return SUFFIXES[suffix]


def _existing(path: Path) -> Path:
    """Raises ConfigError for a folder that no recipe has filled; files say it themselves."""
    if path.is_dir() and not (path / RESOLVED).is_file():
        raise ConfigError(
            f"{path} is no recipe's folder: it has no {RESOLVED}: name a recipe's file, or the "
            "folder that it has filled"
        )
    return path
