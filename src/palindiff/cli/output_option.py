"""How a verb prints its plan, its progress and its results: for people, or as one JSON document."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, without doing it.")]


def command_line() -> str:
    """Return the command as it was typed, for result files."""
    return shlex.join(["palindiff", *sys.argv[1:]])


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; paths in it become strings."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2, default=str))


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


def next_line(command: str) -> str:
    """Return the last line of a verb that wrote something: the command that reads it."""
    return f"next: {command}"


def print_count(what: str, done: int, total: int) -> None:
    """Count on stderr, on one line that each count and an error after it overwrite."""
    typer.echo(f"{done:,} of {total:,} {what}" + ("\n" if done == total else "\r"), nl=False, err=True)


def print_table(title: str, heads: Sequence[str], *sections: "Iterable[Sequence[str | Text]]") -> None:
    """Print a table of rows, with a line below each section.

    Long words are broken instead of cut off, so that file names stay whole. Without heads there is no row of them.
    """
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(head, overflow="fold") for head in heads), title=title, show_header=any(heads))
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    Console(markup=False, emoji=False).print(table)  # texts of users stay as they are
