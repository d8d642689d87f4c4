"""A table of the paper at a scale: train what it needs, measure, judge, and write the result file row by row.

Here: the order, and result files. Not here: plans (`plan.py`), training (`model_runs.py`), measuring
(`measurement.py`), claims (`verdicts.py`).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from palindiff.atomic import atomic_file
from palindiff.evaluation.results import Row, write_results
from palindiff.evaluation.sheets import contact_sheet
from palindiff.experiments.reproduction.measurement import (
    Measurement,
    measure_generation,
    measure_naming,
    open_rows,
    sheet_images,
    summarize,
)
from palindiff.experiments.reproduction.model_runs import ModelRun
from palindiff.experiments.reproduction.plan import (
    ClaimPlan,
    DataPlan,
    GenerationPlan,
    NamingPlan,
    Plan,
    RowPlan,
    Target,
    load_plan,
    paper_row,
)
from palindiff.experiments.reproduction.verdicts import (
    BUDGETS,
    JudgedClaim,
    Sides,
    compare_kd,
    compare_recall,
    judge,
    same_cost,
)
from palindiff.inference.embedder import Embedder, PipelineEmbedder

CLAIMS = "claims"
COMPARE = {"recall": compare_recall, "kd": compare_kd}


@dataclass(frozen=True)
class ReproduceOptions:
    """What the user asked for."""

    target: Target
    scale: str
    data: Path  # folder that the plan's paths name
    runs: Path  # folder of the runs of all scales
    results: Path  # file of the rows
    overrides: tuple[str, ...] = ()  # KEY=VALUE of every run
    finished_only: bool = False  # measure and judge what is trained; train nothing


@dataclass
class Reproduction:
    """All runs of a target, in the order in which they are trained."""

    options: ReproduceOptions
    report: Callable[[str], None] = lambda sentence: None
    _failed: list[str] = field(default_factory=list, init=False)  # names of runs that diverged
    _open: tuple[str, Embedder] | None = field(default=None, init=False)  # the last model, by the name of its run

    @cached_property
    def plan(self) -> Plan:
        """The plan of the scale."""
        return load_plan(self.options.scale)

    def model_run(self, variant: str, seed: int) -> ModelRun:
        """The run of a variant and seed."""
        runs = self.options.runs / Path(self.options.scale).stem
        return ModelRun(self.plan, variant, seed, self.options.data, runs, self.options.overrides)

    def model_runs(self) -> list[ModelRun]:
        """The runs that the target needs, those first that others start from.

        Raises: ValueError for an unknown target.
        """
        return [
            self.model_run(variant, seed)
            for variant in self.plan.variants_of(self.options.target)
            for seed in self.plan.seeds_of(variant)
        ]

    def check(self) -> None:
        """Read every recipe and open all data before anything is trained.

        Raises: FileNotFoundError or ValueError, in a sentence.
        """
        for run in self.model_runs():
            _ = run.own_recipe
        data: list[DataPlan | GenerationPlan] = [*self.plan.naming.values(), *self.plan.generation.values()]
        for each in data:
            open_rows(each, self.options.data)

    def run(self, command: str) -> list[Row]:
        """Train, measure and judge; after each model that is trained, the rows of all finished ones are written.

        Returns: the rows.
        Raises: as `check`; ValueError if a run folder holds another run.
        """
        began = time.perf_counter()
        self.check()
        rows: list[Row] = []
        for run in self.model_runs():
            if not run.is_finished and self.options.finished_only:
                self.report(f"{run.name}: not trained")
                continue
            was_finished = run.is_finished
            if self._train(run) and not was_finished:
                rows = self.rows()
                self._write(rows, command, time.perf_counter() - began)
        if not rows:  # nothing was trained now
            rows = self.rows()
            self._write(rows, command, time.perf_counter() - began)
        self._write_sheet()
        return rows

    def _train(self, run: ModelRun) -> bool:
        """Train a run, unless it is finished -> whether it is now; one that diverges does not stop the others."""
        if not all(each.is_finished for each in run.trained_before):
            self.report(f"{run.name}: not run, as it starts from a run that is not finished")
            return False
        if not run.is_finished:
            self.report(f"{run.name}: training {run.recipe.loop.num_steps:,} steps")
        try:
            run.train()
        except FloatingPointError as error:
            self.report(f"{run.name}: failed. {error}")
            self._failed.append(run.name)
            return False
        return True

    def rows(self) -> list[Row]:
        """Measure every finished model; what was measured before is read."""
        if self.options.target == CLAIMS:
            return judge(list(self._judged()))
        return [row for plan in self.plan.tables[self.options.target].rows for row in self._table_rows(plan)]

    def _table_rows(self, plan: RowPlan) -> Iterator[Row]:
        """Yield the rows of each seed, then those over all seeds."""
        table = self.plan.tables[self.options.target]
        runs = [self.model_run(plan.variant, seed) for seed in self.plan.seeds_of(plan.variant)]
        runs = [run for run in runs if run.is_finished]
        by_data: dict[str, list[Measurement]] = {}
        for run in runs:
            names = self.plan.naming if run.is_trained_to_name else ()
            found = {name: self._naming(run, plan.naming, name) for name in names}
            if plan.generates and table.generation is not None:
                found[table.generation] = self._generation(run, table.generation)
            labels: Row = {"row": plan.label, "variant": plan.variant, "seed": run.seed}
            for name, measured in found.items():
                by_data.setdefault(name, []).append(measured)
                yield from ({**labels, **run.facts(), **paper_row(plan), "data": name, **row} for row in measured.rows)
        for name, of_seeds in by_data.items():
            over_seeds: Row = {"row": plan.label, "variant": plan.variant, "seed": None, **paper_row(plan)}
            yield from ({**over_seeds, "data": name, **row} for row in summarize(of_seeds))

    def _judged(self) -> Iterator[JudgedClaim]:
        for name, claim in self.plan.claims.items():
            for budget in BUDGETS if claim.has_budgets else BUDGETS[:1]:
                a = (claim.a_flop if budget == "flop" else None) or claim.a
                b = (claim.b_flop if budget == "flop" else None) or claim.b
                sides = self._sides(claim, a, b)
                if sides is None:
                    self.report(f"{name}, equal {budget}: not run")
                    continue
                tflop = {each: self._mean_tflop(each) for each in (a, b)}
                if budget == "flop" and claim.has_budgets and not same_cost(tflop, a, b):
                    self.report(
                        f"{name}, equal {budget}: training costs differ, {tflop[a]:.0f} and {tflop[b]:.0f} TFLOP"
                    )
                    continue
                n = len(sides[0][0].items["recall" if claim.metric == "recall" else "generated"])
                yield JudgedClaim(name, claim, budget, a, b, (tflop[a], tflop[b]), COMPARE[claim.metric](sides), n)

    def _sides(self, claim: ClaimPlan, a: str, b: str) -> Sides | None:
        """Measure both sides with the plan's seeds; None if a run is not finished."""
        shared = sorted(set(self.plan.seeds) & set(self.plan.seeds_of(a)) & set(self.plan.seeds_of(b)))
        runs = [[self.model_run(each, seed) for seed in shared] for each in (a, b)]
        if not shared or not all(run.is_finished for side in runs for run in side):
            return None
        naming = (claim.a_naming, claim.b_naming)
        if claim.metric == "recall":
            found = [
                [self._naming(run, setting, self.plan.primary) for run in side]
                for side, setting in zip(runs, naming, strict=True)
            ]
        else:
            name = next(iter(self.plan.generation))
            found = [[self._generation(run, name) for run in side] for side in runs]
        return found[0], found[1]

    def _mean_tflop(self, variant: str) -> float:
        costs = [self.model_run(variant, seed).train_tflop for seed in self.plan.seeds_of(variant)]
        return sum(costs) / len(costs)

    def _naming(self, run: ModelRun, setting: NamingPlan, name: str) -> Measurement:
        """Measure under every setting that the plan has for the variant, so that its images are read once."""
        settings = dict.fromkeys([setting, *self._settings_of(run.variant)])
        found = measure_naming(self._model(run), self.plan.naming[name], self.options.data, list(settings), run.folder)
        return found[0]

    def _settings_of(self, variant: str) -> list[NamingPlan]:
        in_tables = [row.naming for table in self.plan.tables.values() for row in table.rows if row.variant == variant]
        in_claims = [
            naming
            for claim in self.plan.claims.values()
            for naming, side in ((claim.a_naming, claim.a), (claim.b_naming, claim.b))
            if side == variant
        ]
        return in_tables + in_claims

    def _generation(self, run: ModelRun, name: str) -> Measurement:
        model = self._model(run)
        if not isinstance(model, PipelineEmbedder):
            raise ValueError(
                f"`{run.variant}` is contrastive and generates nothing. Expected another. Change the plan."
            )
        return measure_generation(model, self.plan.generation[name], self.options.data, run.folder)

    def _model(self, run: ModelRun) -> Embedder:
        if self._open is None or self._open[0] != run.name:
            self._open = run.name, run.open()
        return self._open[1]

    def _write_sheet(self) -> None:
        """Write a figure beside its result file: real images, and those of each row's first seed."""
        table = self.plan.tables.get(self.options.target)
        rows = [row for row in table.rows if row.generates] if table is not None else []
        runs = [self.model_run(row.variant, self.plan.seeds_of(row.variant)[0]) for row in rows]
        if table is None or table.generation is None or not table.sheet_captions or not runs:
            return
        if not all(run.is_finished for run in runs):
            return
        plan, columns, captions = self.plan.generation[table.generation], list[list[Image.Image]](), list[str]()
        for run in runs:
            model = self._model(run)
            assert isinstance(model, PipelineEmbedder), "as it has generated"
            captions, generated, real = sheet_images(model, plan, self.options.data, run.folder, table.sheet_captions)
            columns += [generated] if columns else [real, generated]
        title = f"{table.title}: real image, {', '.join(row.label for row in rows)}"
        sheet = contact_sheet(list(zip(*columns, strict=True)), captions, columns=4, title=title)
        file = self.options.results.with_suffix(".png")
        with atomic_file(file) as temporary:
            sheet.save(temporary, "PNG")
        self.report(f"written: {file}")

    def _write(self, rows: list[Row], command: str, elapsed_s: float) -> None:
        if rows:
            settings = {
                "target": self.options.target, "scale": Path(self.options.scale).stem, "about": self.plan.about,
                "unfinished": [run.name for run in self.model_runs() if not run.is_finished],
                "failed": list(self._failed),
            }  # fmt: skip
            write_results(self.options.results, rows, command, settings, self.plan.seeds[0], elapsed_s)
