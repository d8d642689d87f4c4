"""Claims on the trained models of a scale: which runs are paired, and what is compared of them.

Here: from claims of a plan to comparisons. Not here: the statistics and verdicts (`verdicts.py`), measuring
(`measured_runs.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from palindiff.evaluation.intervals import Comparison
from palindiff.experiments.reproduction.kept_rows import KeptRows, PlannedClaim
from palindiff.experiments.reproduction.measured_runs import MeasuredRuns
from palindiff.experiments.reproduction.measurement import IMAGE_EMBEDDINGS, Measurement, joined
from palindiff.experiments.reproduction.model_runs import ModelRun
from palindiff.experiments.reproduction.plan import Plan
from palindiff.experiments.reproduction.plan_sections import ClaimPlan, NamingPlan
from palindiff.experiments.reproduction.planned import Planned
from palindiff.experiments.reproduction.verdicts import (
    ACCURACY,
    BUDGETS,
    JudgedClaim,
    Sides,
    compare_cosine,
    compare_kd,
    compare_points,
    same_cost,
)


@dataclass(frozen=True)
class PairedClaims:
    """Claims of one family, and the runs that they compare."""

    plan: Plan
    claims: Mapping[str, ClaimPlan]
    measured: MeasuredRuns
    model_run: Callable[[str, int], ModelRun]  # of a variant and a seed
    report: Callable[[str], None]
    kept: KeptRows = field(default_factory=KeptRows)  # of claims whose models are not here

    def num_planned(self) -> dict[str, int]:
        """How many claims each budget has, run or not."""
        return {
            budget: sum(claim.has_budgets or budget == BUDGETS[0] for claim in self.claims.values())
            for budget in BUDGETS
        }

    def judged(self) -> Iterator[JudgedClaim]:
        """Compare the sides of each claim at each of its budgets; what was not run is reported and left out."""
        for each in self.planned():
            claim, a, b, shared = each.claim, each.a, each.b, self.shared_runs(each)
            sides = self._sides(claim, a, b, shared)
            if sides is None:
                kept = self.kept.of_claim(each, self.num_planned()[each.budget])
                if kept is None:
                    self.report(f"{each.label}: not run")
                else:
                    yield kept
                continue
            tflop = {name: self._mean_tflop(name) for name in (a, b)}
            if each.budget == "flop" and claim.has_budgets and not same_cost(tflop, a, b):
                self.report(f"{each.label}: training costs differ, {tflop[a]:.0f} and {tflop[b]:.0f} TFLOP")
                continue
            found, n = self._compare(claim, sides)
            runs = [*shared, *(start for run in shared for start in run.trained_before)]
            commits = tuple(sorted({run.commit for run in runs}))
            costs = tflop[a], tflop[b]
            yield JudgedClaim(each.name, claim, each.budget, a, b, costs, found, n, commits, each.plan_hash)

    def planned(self) -> Iterator[PlannedClaim]:
        """Each claim at each of its budgets, run or not."""
        hashes = Planned(self.plan, self.measured.data)
        for name, claim in self.claims.items():
            for budget in BUDGETS if claim.has_budgets else BUDGETS[:1]:
                a = (claim.a_flop if budget == "flop" else None) or claim.a
                b = (claim.b_flop if budget == "flop" else None) or claim.b
                each = PlannedClaim(name, claim, budget, a, b, "")
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

    def _sides(self, claim: ClaimPlan, a: str, b: str, shared: list[ModelRun]) -> Sides | None:
        """Measure both sides with the seeds that both have; None if a run is not here."""
        if not shared or not all(run.is_complete for run in shared):
            return None
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

    def _mean_tflop(self, variant: str) -> float:
        costs = [self.model_run(variant, seed).train_tflop for seed in self.plan.seeds_of(variant)]
        return sum(costs) / len(costs)
