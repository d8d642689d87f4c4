"""A table of the paper at a scale: train what it needs, measure, judge, and write the result file row by row.

Here: the order, and result files. Not here: plans (`plan.py`), training (`model_runs.py`), measuring
(`measurement.py`), the columns of a table (`columns.py`), claims (`verdicts.py`), rows that stay (`kept_rows.py`).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from PIL import Image

from palindiff.atomic import atomic_file
from palindiff.evaluation.class_sets import true_classes
from palindiff.evaluation.generation import Instruments, chosen_rows
from palindiff.evaluation.results import Row, write_results
from palindiff.evaluation.sheets import contact_sheet
from palindiff.evaluation.tasks import NEEDS_CLASSES
from palindiff.experiments.reproduction.claims import PairedClaims
from palindiff.experiments.reproduction.columns import column_row
from palindiff.experiments.reproduction.kept_rows import KEPT, KeptRows
from palindiff.experiments.reproduction.measured_runs import MeasuredRuns
from palindiff.experiments.reproduction.measurement import Measurement, generation_options, named_data
from palindiff.experiments.reproduction.model_runs import IsBusyError, KnownHashes, ModelRun
from palindiff.experiments.reproduction.plan import CONTROLS, Plan, Target, load_plan, paper_row
from palindiff.experiments.reproduction.plan_sections import ClaimPlan, RowPlan, TablePlan
from palindiff.experiments.reproduction.planned import Planned
from palindiff.experiments.reproduction.verdicts import judge, level_keys, num_planned
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe

SHEET_COLOURS = 128  # of a figure's file, which is kept in the repository


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
    device: str = "cpu"  # of evaluation; training chooses its own
    num_workers: int = 0  # processes that decode images for evaluation


@dataclass
class Reproduction:
    """All runs of a target, in the order in which they are trained."""

    options: ReproduceOptions
    report: Callable[[str], None] = lambda sentence: None
    _model_runs: dict[tuple[str, int], ModelRun] = field(default_factory=dict, init=False)
    _known: KnownHashes = field(default_factory=KnownHashes, init=False)
    _kept: KeptRows = field(default_factory=KeptRows, init=False)  # rows of the result file as it is
    _stayed: list[str] = field(default_factory=list, init=False)  # labels of rows whose models are not here
    _missing: set[str] = field(default_factory=set, init=False)  # names of runs whose rows are not there

    @cached_property
    def plan(self) -> Plan:
        """The plan of the scale."""
        return load_plan(self.options.scale)

    @property
    def table(self) -> TablePlan | None:
        """The table that was asked for; None for claims and controls."""
        return self.plan.tables.get(self.options.target)

    @property
    def claims(self) -> dict[str, ClaimPlan]:
        """The claims that were asked for; none for tables and controls."""
        return self.plan.claims_of(self.options.target)

    @cached_property
    def measured(self) -> MeasuredRuns:
        """What is measured of the runs."""
        return MeasuredRuns(self.plan, self.options.data, self.options.device, self.options.num_workers)

    @property
    def planned(self) -> Planned:
        """Hashes of what rows are of."""
        return Planned(self.plan, self.options.data)

    def model_run(self, variant: str, seed: int) -> ModelRun:
        """The run of a variant and seed."""
        if (variant, seed) not in self._model_runs:
            runs = self.options.runs / Path(self.options.scale).stem
            run = ModelRun(self.plan, variant, seed, self.options.data, runs, self.options.overrides)
            self._model_runs[variant, seed] = replace(run, known=self._known)
        return self._model_runs[variant, seed]

    def model_runs(self) -> list[ModelRun]:
        """The runs that the target needs, those first that others start from.

        Raises: ValueError for an unknown target.
        """
        return [self.model_run(variant, seed) for variant, seed in self.plan.runs_of(self.options.target)]

    def check(self) -> None:
        """Read every recipe, open all data and load what measures them, before anything is trained.

        Raises: FileNotFoundError, ModuleNotFoundError or ValueError, in a sentence.
        """
        KeptRows.of_file(self.options.results)
        interpolated = {row.variant for row in (self.table.rows if self.table else ()) if row.interpolation}
        for run in self.model_runs():
            if run.variant in interpolated and not isinstance(run.own_recipe, UniDiffRecipe):
                raise ValueError(
                    f"A row interpolates `{run.variant}` with its start, and it is no UniDiff. Expected a variant of "
                    "UniDiff. Remove `interpolation` from the row."
                )
            _ = run.own_recipe
            _ = run.plan_hash
            if not run.trained_before:  # the others' images are opened once what they start from is trained
                _ = run.origin
        root, table = self.options.data, self.table
        names = self.plan.data_of(table) if table is not None else []
        names += self.plan.controlled_data if self.options.target == CONTROLS else ()
        chosen_by = [row.interpolation for row in (table.rows if table else ()) if row.interpolation is not None]
        names += [each.data for each in chosen_by if each.data is not None]
        generations = [table.generation if table is not None else None, *(each.generation for each in chosen_by)]
        for claim in self.claims.values():
            names += self.plan.naming_of(claim) if claim.metric != "kd" else ()
            generations.append(self.plan.generation_of(claim) if claim.metric == "kd" else None)
        for name in dict.fromkeys(names):
            source = named_data(name, data := self.plan.naming[name], root)
            rows = source.open()
            if NEEDS_CLASSES.intersection(data.tasks):
                true_classes(rows, source.classes(rows))
        for generated in filter(None, dict.fromkeys(generations)):
            plan = self.plan.generation[generated]
            options = generation_options(plan, root)
            chosen_rows(named_data(generated, plan, root).open(), options)
            Instruments(options)

    def run(self, command: str) -> list[Row]:
        """Train, measure and judge; of a table, the rows of all measured models are written after each training.

        Several processes may run at once: each trains and measures what no other one does, and waits for others at
        the end alone.

        Returns: the rows.
        Raises: as `check`; ValueError if a run folder holds another run.
        """
        began = time.perf_counter()
        self.check()
        self.measured.waits = False
        later = [run for run in self.model_runs() if not self._turn(run, command, began)]
        for run in later:  # what they start from is trained by another process, or was just now
            for start in run.counted_after:
                if start.is_countable:
                    self._train(start, waits=True)
            if not self._turn(run, command, began):
                self.report(
                    f"{run.name}: not run, as it starts from a run, or costs as much as one, that is not finished"
                )
        if self.table is not None:
            self.rows()  # measures what no other process does
        self.measured.waits = True
        rows = self._write_rows(command, began)
        self._write_sheet()
        return rows

    def _turn(self, run: ModelRun, command: str, began: float) -> bool:
        """Train a run unless it is finished, and write a table's rows -> False if its cost cannot be counted yet."""
        was_finished = run.is_finished
        if self.options.finished_only:
            if not was_finished:
                self.report(f"{run.name}: not trained")
            return True
        if not run.is_countable:
            return False
        if self._train(run) and not was_finished and self.table is not None:
            self._write_rows(command, began)
        return True

    def _train(self, run: ModelRun, waits: bool = False) -> bool:
        """Train a run, unless it is finished -> whether it is now; one that diverges does not stop the others."""
        try:
            with run.locked(waits=waits):
                if not run.is_finished:
                    self.report(f"{run.name}: training {run.recipe.loop.num_steps:,} steps")
                run.train()
        except IsBusyError as error:
            self.report(f"{error}")
            return False
        except FloatingPointError as error:
            self.report(f"{run.name}: failed. {error}")
            return False
        return True

    def rows(self) -> list[Row]:
        """Measure every finished model; what was measured before is read.

        Of a table without those that another process has, unless `measured.waits`.
        """
        self._kept = KeptRows.of_file(self.options.results)
        self._stayed.clear()
        self._missing.clear()
        if self.claims:
            return self._claim_rows()
        if self.table is None:
            return list(self._control_rows())
        return [row for plan in self.table.rows for row in self._table_rows(self.table, plan)]

    def _claim_rows(self) -> list[Row]:
        """Judge the claims, those that stayed too."""
        paired = PairedClaims(self.plan, self.claims, self.measured, self.model_run, self.report)
        rows, planned = list[Row | None](), num_planned(self.claims.values())
        for each in paired.planned():
            if paired.is_here(each):
                rows.append(paired.row(each))
                continue
            kept = self._kept.of(each.plan_hash, claim=each.name, budget=each.budget)
            if kept and level_keys(planned[each.budget])[0] in kept[0]:
                self._stayed.append(each.label)
                rows.append({**kept[0], "text": each.claim.text, "a": each.a, "b": each.b})
            else:
                self._miss(paired.shared_runs(each))
                self.report(f"{each.label}: not run")
        return judge([row for row in rows if row is not None], planned)

    def _miss(self, runs: Iterable[ModelRun]) -> None:
        """Note which of some runs, and of those that they start from, are not here, and their rows did not stay."""
        for run in runs:
            self._missing |= set() if run.is_complete else {run.name}
            self._miss(run.trained_before)

    def _table_rows(self, table: TablePlan, plan: RowPlan) -> Iterator[Row]:
        """Yield the rows of each seed, then the columns over all seeds."""
        runs = self._runs_of(plan)
        plan_hash = self.planned.row(table, plan, runs)
        if kept := self._kept_rows(plan, plan_hash):
            self._stayed.append(plan.label)
            yield from kept
            return
        self._miss(runs)
        by_data: dict[str, list[Measurement]] = {}
        labels: Row = {"row": plan.label, "variant": plan.variant, "plan_hash": plan_hash}
        for run in runs:
            if not run.is_complete:
                continue
            try:
                share = 1.0 if plan.interpolation is None else self.measured.chosen_share(run, plan.interpolation)
                found = self._measure(run, table, plan, share)
            except IsBusyError as error:
                self.report(f"{error}")
                continue
            for name, measured in found.items():
                by_data.setdefault(name, []).append(measured)
                facts = {**labels, "seed": run.seed, **run.facts(), **paper_row(plan), "data": name}
                facts |= {"share": share} if plan.interpolation is not None else {}
                yield from ({**facts, **row} for row in measured.rows)
        for column in table.columns:
            row = column_row(self.plan.columns[column], by_data, table.generation)
            if row is not None:
                yield {**labels, "seed": None, **paper_row(plan), **row}

    def _runs_of(self, plan: RowPlan) -> list[ModelRun]:
        seeds = plan.seeds or self.plan.seeds_of(plan.variant)
        return [self.model_run(plan.variant, seed) for seed in seeds]

    def _kept_rows(self, plan: RowPlan, plan_hash: str) -> list[Row]:
        """The earlier rows of a label, if they are of more seeds than there are models here."""
        here = {run.seed for run in self._runs_of(plan) if run.is_complete}
        found = self._kept.of(plan_hash, row=plan.label)
        if not here < {row["seed"] for row in found} - {None}:
            return []
        return [{**row, "variant": plan.variant, **paper_row(plan)} for row in found]

    def _measure(self, run: ModelRun, table: TablePlan, plan: RowPlan, share: float) -> dict[str, Measurement]:
        """Measure what a table's columns show of a run, by data set."""
        if plan.diffusion_classifier is not None:
            classified = [
                name for name in self.plan.data_of(table) if "classification" in self.plan.naming[name].tasks
            ]
            names = plan.diffusion_classifier.data or classified
            return {name: self.measured.classifier(run, plan, name) for name in names}
        names = self.plan.data_of(table) if run.is_trained_to_name else []
        settings = [row.naming for row in table.rows if row.variant == plan.variant]
        found = {name: self.measured.naming(run, plan.naming, name, settings, share) for name in names}
        if plan.generates and table.generation is not None:
            found[table.generation] = self.measured.generation(run, table.generation, share)
        return found

    def _control_rows(self) -> Iterator[Row]:
        """Yield what the controls of each chosen variant reach, and what its noisy query changes."""
        for variant, name in product(self.plan.controls, self.plan.controlled_data):
            run = self.model_run(variant, self.plan.seeds_of(variant)[0])
            plan_hash = self.planned.control(run, name)
            if not run.is_complete:
                if kept := self._kept.of(plan_hash, variant=variant):
                    self._stayed.append(variant)
                    yield from kept
                else:
                    self._miss([run])
                continue
            with run.locked(waits=True):
                found = self.measured.model(run).controls(name, self.plan.naming[name])
            facts: Row = {"variant": variant, "plan_hash": plan_hash, "seed": run.seed, **run.facts(), "data": name}
            yield from ({**facts, **row} for row in found)

    def _write_sheet(self) -> None:
        """Write a figure beside its result file: real images, and those of each row's first seed."""
        table = self.table
        rows = [row for row in table.rows if row.generates] if table is not None else []
        runs = [self._runs_of(row)[0] for row in rows]
        if table is None or table.generation is None or not table.sheet_captions or not runs:
            return
        if not all(run.is_finished for run in runs):
            return
        plan, columns, captions = self.plan.generation[table.generation], list[list[Image.Image]](), list[str]()
        for run in runs:
            captions, generated, real = self.measured.model(run).sheet_images(plan, table.sheet_captions)
            columns += [generated] if columns else [real, generated]
        title = f"{table.title}: real image, {', '.join(row.label for row in rows)}"
        sheet = contact_sheet(list(zip(*columns, strict=True)), captions, columns=4, title=title)
        file = self.options.results.with_suffix(".png")
        with atomic_file(file) as temporary:
            sheet.quantize(SHEET_COLOURS).save(temporary, "PNG", optimize=True)
        self.report(f"written: {file}")

    def _write_rows(self, command: str, began: float) -> list[Row]:
        """Measure and write, again where other processes have finished runs meanwhile."""
        while True:
            unfinished = [run.name for run in self.model_runs() if not run.is_finished]
            rows = self.rows()
            if unfinished == [run.name for run in self.model_runs() if not run.is_finished]:
                break
        if rows:
            elapsed_s = time.perf_counter() - began
            write_results(self.options.results, rows, command, self._settings(), self.plan.seeds[0], elapsed_s)
        return rows

    def _settings(self) -> dict[str, object]:
        """What the result file says of its runs, and of rows that stayed."""
        runs = self.model_runs()
        elsewhere = [run.name for run in runs if run.name in self._kept.failed and not run.folder.exists()]
        settings: dict[str, object] = {
            "target": self.options.target, "scale": Path(self.options.scale).stem, "about": self.plan.about,
            "unfinished": [run.name for run in runs if run.name in self._missing],
            "failed": [*(run.name for run in runs if run.has_failed), *elsewhere],
        }  # fmt: skip
        kept = {label: self._kept.facts_of(label) for label in self._stayed}
        return settings | ({KEPT: kept} if kept else {})
