"""How a verb prints its plan, its progress and its results: for people, or as one JSON document."""

import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, without doing it.")]


def command_line() -> str:
    """Return the command as it was typed, for result files."""
    return shlex.join(["palindiff", *sys.argv[1:]])


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def print_plan(plan: Mapping[str, Any], as_json: bool = False) -> None:
    """Print what would be done: one line a setting, lists below it."""
    if as_json:
        print_json({"dry_run": True, **plan})
        return
    for name, value in plan.items():
        is_list = isinstance(value, list)
        typer.echo(f"{name}:" if is_list else f"{name}: {value}")
        for each in value if is_list else ():
            typer.echo(f"  {each}")


def print_count(done: int, total: int, what: str = "images") -> None:
    """Count on stderr, on one line that each count and an error after it overwrite."""
    typer.echo(f"{done:,} of {total:,} {what}" + ("\n" if done == total else "\r"), nl=False, err=True)


def folded_table(title: str, *heads: str) -> "Table":
    """Make a table that breaks long words instead of cutting them off, so that file names stay whole."""
    from rich.markup import escape
    from rich.table import Column, Table

    return Table(*(Column(head, overflow="fold") for head in heads), title=escape(title))
