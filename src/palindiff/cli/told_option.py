"""How every verb that runs a model tells what it would do and what it found: for people, or as one JSON document."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done; load nothing, write nothing.")
]


def print_json(told: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(told, ensure_ascii=False, indent=2))


def print_plan(plan: Mapping[str, Any], as_json: bool) -> None:
    """Print what would be done: one line a setting, lists below it."""
    if as_json:
        print_json({"dry_run": True, **plan})
        return
    for name, value in plan.items():
        is_list = isinstance(value, list)
        typer.echo(f"{name}:" if is_list else f"{name}: {value}")
        for each in value if is_list else ():
            typer.echo(f"  {each}")
