"""Hashes of what a result row is of: all that the plan says of it, and the images, wherever it is run.

A hash changes with a recipe, with the images of training or evaluation, with settings of naming and generation, and
with the version of palindiff. It does not change with names, folders, or the paper's numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import palindiff
from palindiff.evaluation.efficientnet import read_weights
from palindiff.evaluation.records import hash_settings
from palindiff.evaluation.tasks import NEEDS_CLASSES
from palindiff.experiments.reproduction.measurement import generation_options, named_data
from palindiff.experiments.reproduction.model_runs import ModelRun
from palindiff.experiments.reproduction.plan import Plan
from palindiff.experiments.reproduction.plan_sections import ClaimPlan, DataPlan, GenerationPlan, RowPlan, TablePlan


@dataclass(frozen=True)
class Planned:
    """Hashes of the rows of a plan."""

    plan: Plan
    data: Path  # folder of --data

    def row(self, table: TablePlan, row: RowPlan, runs: Iterable[ModelRun]) -> str:
        """Of a table's row: its models, and what the table's columns show of them."""
        of_row = row.model_dump(mode="json", include={"naming", "generates", "diffusion_classifier", "interpolation"})
        chosen_by = row.interpolation
        classified = row.diffusion_classifier.data if row.diffusion_classifier else ()
        naming = [*self.plan.data_of(table), *classified, *filter(None, [chosen_by.data if chosen_by else None])]
        generations = [table.generation if row.generates else None, chosen_by.generation if chosen_by else None]
        columns = [self.plan.columns[name].model_dump(mode="json", exclude={"times_chance"}) for name in table.columns]
        return self._hash(runs, {"row": of_row, "columns": columns}, naming, generations)

    def claim(self, claim: ClaimPlan, budget: str, runs: Iterable[ModelRun]) -> str:
        """Of a claim at one budget."""
        of_claim = claim.model_dump(mode="json", include={"metric", "a_naming", "b_naming", "margin"})
        is_kd = claim.metric == "kd"
        naming, generation = ((), self.plan.generation_of(claim)) if is_kd else (self.plan.naming_of(claim), None)
        return self._hash(runs, {"claim": of_claim, "budget": budget}, naming, [generation])

    def control(self, run: ModelRun, data: str) -> str:
        """Of the controls of a model on a data set."""
        return self._hash([run], {}, [data], [])

    def _hash(
        self, runs: Iterable[ModelRun], own: dict[str, Any], naming: Iterable[str], generations: Iterable[str | None]
    ) -> str:
        data: dict[str, DataPlan | GenerationPlan] = {f"naming {name}": self.plan.naming[name] for name in naming}
        data |= {f"generation {name}": self.plan.generation[name] for name in generations if name is not None}
        facts: dict[str, Any] = {
            "runs": [run.plan_hash for run in runs],
            "data": {name: [each.model_dump(mode="json"), *_facts(each, self.data)] for name, each in data.items()},
            "palindiff": palindiff.__version__,
        }
        return hash_settings(own | facts)[:16]


@cache
def _facts(plan: DataPlan | GenerationPlan, root: Path) -> tuple[str, str | None]:
    """Fingerprint of a data set, and hash of its classes or of the network that measures it; found once a process."""
    source = named_data("", plan, root)
    rows = source.open()
    if isinstance(plan, DataPlan):
        needs_classes = NEEDS_CLASSES.intersection(plan.tasks)
        return rows.fingerprint, hash_settings(source.classes(rows).deciding) if needs_classes else None
    weights = generation_options(plan, root).inception_weights
    return rows.fingerprint, None if weights is None else read_weights(weights)[1]
