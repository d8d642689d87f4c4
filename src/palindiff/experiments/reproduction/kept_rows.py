"""Rows of an earlier result file that stay where the models that they are of are not here.

So a grid may be run on several machines, or in parts whose run folders are removed.

Here: which rows stay. Not here: measuring (`measured_runs.py`), the hash of what a row is of (`planned.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palindiff.evaluation.results import Row, read_results

PAPER = "paper_"  # begins the keys of the paper's numbers
KEPT = "kept"  # in a file's settings: where rows that stayed were measured
FACTS = ("command", "commit", "is_dirty", "machine", "python", "versions")


@dataclass(frozen=True)
class KeptRows:
    """Rows of an earlier file, and where they were measured."""

    rows: Sequence[Row] = ()
    facts: dict[str, Any] | None = None  # of the file
    before: dict[str, Any] | None = None  # by label: of the rows that the file had kept itself
    failed: tuple[str, ...] = ()  # names of runs that diverged

    @classmethod
    def of_file(cls, file: Path) -> "KeptRows":
        """Read a file's rows; none if there is no file.

        Raises: ValueError if it is not a result file.
        """
        if not file.is_file():
            return cls()
        try:
            found = read_results(file)
        except ValueError as error:
            raise ValueError(f"{error} Or remove the file, or name another --results.") from error
        before, failed = found.settings.get(KEPT), found.settings.get("failed")
        facts = found.model_dump(mode="json", include=set(FACTS))
        return cls(
            found.rows, facts, before if isinstance(before, dict) else None,
            tuple(map(str, failed)) if isinstance(failed, list) else (),
        )  # fmt: skip

    def of(self, plan_hash: str, **named: str) -> list[Row]:
        """The rows that have these values, such as `row="both"`, if they are of what the plan says now; else none.

        They are without the paper's numbers, which may be others now.
        """
        found = [row for row in self.rows if all(row.get(key) == value for key, value in named.items())]
        if any(row.get("plan_hash") != plan_hash for row in found):
            return []
        return [{key: value for key, value in row.items() if not key.startswith(PAPER)} for row in found]

    def facts_of(self, label: str) -> dict[str, Any] | None:
        """Where the rows of a label were measured: command, commit, machine and versions."""
        return (self.before or {}).get(label, self.facts)
