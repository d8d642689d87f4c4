"""Rows of an earlier result file that stay where the models that they are of are not here.

So a grid may be run on several machines, or in parts whose run folders are removed.

Here: which rows stay, and the comparison of a claim as its row holds it. Not here: measuring (`measured_runs.py`),
the hash of what a row is of (`planned.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from palindiff.evaluation.intervals import LEVEL
from palindiff.evaluation.results import Row, Scalar, read_results
from palindiff.experiments.reproduction.plan_sections import ClaimPlan
from palindiff.experiments.reproduction.verdicts import JudgedClaim, level_keys

PAPER = "paper_"  # begins the keys of the paper's numbers
KEPT = "kept"  # in a file's settings: where rows that stayed were measured
FACTS = ("command", "commit", "is_dirty", "machine", "python", "versions")


@dataclass(frozen=True)
class KeptComparison:
    """A difference A - B as a result file holds it: its intervals at the levels of Holm's correction alone."""

    row: Row
    num_planned: int  # claims of the budget

    @property
    def difference(self) -> float:
        """A - B."""
        return float(str(self.row["difference"]))

    @property
    def num_seeds(self) -> int:
        """Seeds that both sides have."""
        return int(str(self.row["num_seeds"]))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of the difference at one of the levels of Holm's correction."""
        low, high = level_keys(level, self.num_planned)
        return float(str(self.row[low])), float(str(self.row[high]))

    def p_value(self, margin: float | None = None) -> float:
        """Two-sided p-value; the claim's margin is in it."""
        return float(str(self.row["p_value"]))


class PlannedClaim(NamedTuple):
    """A claim at one of its budgets."""

    name: str
    claim: ClaimPlan
    budget: str
    a: str  # variants
    b: str
    plan_hash: str

    @property
    def label(self) -> str:
        """Name and budget, as users read them."""
        return f"{self.name}, equal {self.budget}"


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

    def of_row(self, plan_hash: str, named: Row, paper: Mapping[str, Scalar] | None = None) -> list[Row]:
        """The rows of what the plan says now, with the names and the paper's numbers that it has now.

        named: values that a row must have, such as `{"row": "both"}`; `variant` is written anew.
        """
        wanted = {key: value for key, value in named.items() if key != "variant" or len(named) == 1}
        found = [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]
        if any(row.get("plan_hash") != plan_hash for row in found):
            return []
        own = [{key: value for key, value in row.items() if not key.startswith(PAPER)} for row in found]
        return [{**row, **named, **(paper or {})} for row in own]

    def of_claim(self, judged: "PlannedClaim", num_planned: int) -> JudgedClaim | None:
        """The comparison of a claim if it is of what the plan says now, among as many claims."""
        found = self.of_row(judged.plan_hash, {"claim": judged.name, "budget": judged.budget})
        if not found or level_keys(1 - (1 - LEVEL) / num_planned, num_planned)[0] not in found[0]:
            return None
        row = found[0]
        return JudgedClaim(
            judged.name, judged.claim, judged.budget, judged.a, judged.b,
            (float(str(row["a_train_tflop"])), float(str(row["b_train_tflop"]))), KeptComparison(row, num_planned),
            int(str(row["n"])), tuple(str(row["commits"]).split()), judged.plan_hash,
        )  # fmt: skip

    def facts_of(self, label: str) -> dict[str, Any] | None:
        """Where the rows of a label were measured: command, commit, machine and versions."""
        return (self.before or {}).get(label, self.facts)
