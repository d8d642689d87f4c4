"""Claims on the trained models of a scale: which runs are paired, and what is compared of them.

Here: from claims of a plan to comparisons. Not here: the statistics and verdicts (`verdicts.py`), measuring
(`measured_runs.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from palindiff.evaluation.intervals import Comparison
from palindiff.evaluation.results import Row
from palindiff.experiments.reproduction.measured_runs import MeasuredRuns
from palindiff.experiments.reproduction.measurement import IMAGE_EMBEDDINGS, Measurement, joined
from palindiff.experiments.reproduction.model_runs import ModelRun
from palindiff.experiments.reproduction.plan import Plan
from palindiff.experiments.reproduction.plan_sections import ClaimPlan, NamingPlan
from palindiff.experiments.reproduction.planned import Planned
from palindiff.experiments.reproduction.verdicts import (
    ACCURACY,
    ComparedClaim,
    Sides,
    compare_cosine,
    compare_kd,
    compare_points,
    num_planned,
    same_cost,
)


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
class PairedClaims:
    """Claims of one family, and the runs that they compare."""

    plan: Plan
    claims: Mapping[str, ClaimPlan]
    measured: MeasuredRuns
    model_run: Callable[[str, int], ModelRun]  # of a variant and a seed
    report: Callable[[str], None]

    def is_here(self, of_claim: PlannedClaim) -> bool:
        """Whether all runs of a claim are here."""
        shared = self.shared_runs(of_claim)
        return bool(shared) and all(run.is_complete for run in shared)

    def row(self, of_claim: PlannedClaim) -> Row | None:
        """Compare both sides of a claim whose runs are here; None, and a report, if its costs are not equal."""
        name, claim, budget, a, b, plan_hash = of_claim
        shared = self.shared_runs(of_claim)
        tflop = {each: fmean(run.train_tflop for run in shared if run.variant == each) for each in (a, b)}
        if budget == "flop" and claim.has_budgets and not same_cost(tflop, a, b):
            self.report(f"{of_claim.label}: training costs differ, {tflop[a]:.0f} and {tflop[b]:.0f} TFLOP")
            return None
        found, n = self._compare(claim, self._sides(claim, a, b, shared))
        runs = [*shared, *(start for run in shared for start in run.trained_before)]
        commits = tuple(sorted({run.commit for run in runs}))
        compared = ComparedClaim(name, claim, budget, a, b, (tflop[a], tflop[b]), found, n, commits, plan_hash)
        return compared.row(num_planned(self.claims.values())[budget])

    def planned(self) -> Iterator[PlannedClaim]:
        """Each claim at each of its budgets, run or not."""
        hashes = Planned(self.plan, self.measured.data)
        for name, claim in self.claims.items():
            for budget in claim.budgets:
                each = PlannedClaim(name, claim, budget, *claim.sides(budget), "")
                yield each._replace(plan_hash=hashes.claim(claim, budget, self.shared_runs(each)))

    def _compare(self, claim: ClaimPlan, sides: Sides) -> tuple[Comparison, int]:
        """Compare both sides of a claim -> the comparison, and the number of items of a seed."""
        items = sides[0][0].items
        if claim.metric == "kd":
            return compare_kd(sides), len(items["generated"])
        if claim.metric == "cosine":
            return compare_cosine(sides), len(items[IMAGE_EMBEDDINGS])
        return compare_points(sides, list(items)), len(next(iter(items.values())))

    def _metrics(self, claim: ClaimPlan, name: str) -> tuple[str, ...]:
        return self.plan.naming[name].recall_metrics if claim.metric == "recall" else (ACCURACY,)

    def _sides(self, claim: ClaimPlan, a: str, b: str, shared: list[ModelRun]) -> Sides:
        """Measure both sides with the seeds that both have."""
        runs = [[run for run in shared if run.variant == each] for each in (a, b)]
        if claim.metric == "kd":
            generation = self.plan.generation_of(claim)
            assert generation is not None, "the plan has checked it"
            found = [[self.measured.generation(run, generation) for run in side] for side in runs]
        else:
            naming = [claim.a_naming, claim.b_naming]
            settings = naming if a == b else []
            found = [
                [self._named(claim, run, setting, settings) for run in side]
                for side, setting in zip(runs, naming, strict=True)
            ]
        return found[0], found[1]

    def _named(self, claim: ClaimPlan, run: ModelRun, setting: NamingPlan, settings: list[NamingPlan]) -> Measurement:
        """Measure what a claim about naming compares."""
        names = self.plan.naming_of(claim)
        by_data = {name: self.measured.naming(run, setting, name, settings) for name in names}
        if claim.metric == "cosine":
            return by_data[names[0]]
        return joined(by_data, {name: self._metrics(claim, name) for name in names})

    def shared_runs(self, of_claim: PlannedClaim) -> list[ModelRun]:
        """The runs of a claim's two variants, or of its one, with the seeds that both have."""
        a, b = of_claim.a, of_claim.b
        shared = sorted(set(self.plan.seeds_of(a)) & set(self.plan.seeds_of(b)))
        return [self.model_run(each, seed) for each in dict.fromkeys((a, b)) for seed in shared]
