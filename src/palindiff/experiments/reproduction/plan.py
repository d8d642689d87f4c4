"""The plan of a scale: which models are trained, what each table shows of them, and the claims that are judged.

Here: the form of a plan file (`plans/SCALE.yaml`), and its checks. Not here: its sections (`plan_sections.py`),
training (`model_runs.py`), measuring (`measurement.py`), judging (`verdicts.py`).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from palindiff.evaluation.results import Scalar
from palindiff.experiments.reproduction.plan_sections import (
    ClaimPlan,
    ColumnPlan,
    DataPlan,
    GenerationPlan,
    InterpolationPlan,
    NamingTask,
    RowPlan,
    TablePlan,
    VariantPlan,
)
from palindiff.training.recipes.problems import describe_problem

PLANS = Path(__file__).with_name("plans")
ROOT, RUNS = "{data}", "{runs}"  # in paths of a plan: the folder of --data, and that of the runs of the scale
CONTROLS = "controls"

Target = str  # "table4", "figure4", "controls", or a family of claims: "claims"


# The task that a claim's metric needs.
TASK_OF: dict[str, NamingTask] = {"recall": "retrieval", "accuracy": "classification", "cosine": "collapse"}


class Plan(BaseModel, frozen=True, extra="forbid"):
    """All runs, measurements and claims of a scale."""

    about: str
    recipe: str
    settings: dict[str, tuple[str, ...]]  # lists of KEY=VALUE, by the names that variants use
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    hours: dict[str, float] = {}  # measured hours of a variant's run, where it was run; for --dry-run
    variants: dict[str, VariantPlan]
    naming: dict[str, DataPlan]
    primary: str  # of `naming`: the set of the claims about recall
    generation: dict[str, GenerationPlan] = {}
    columns: dict[str, ColumnPlan]
    tables: dict[Target, TablePlan]
    claims: dict[str, ClaimPlan] = {}
    claimed_generation: str | None = None  # of `generation`: what claims about generation compare
    controls: tuple[str, ...] = ()  # variants whose first seed is measured with controls (rule 8 of the protocol)
    controlled: tuple[str, ...] = ()  # of `naming`: on which sets; (): the primary one

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        known: dict[str, Collection[str]] = {
            "variant": self.variants, "naming": self.naming, "generation": self.generation, "list": self.settings,
            "column": self.columns,
        }  # fmt: skip
        problems = [
            f"{place} names the {kind} `{name}`. Expected one of {', '.join(known[kind])}. Use one."
            for place, kind, name in self._references()
            if name not in known[kind]
        ]
        problems = problems or [*self._circles(), *self._unmeasured(), *self._repeated()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _references(self) -> Iterator[tuple[str, str, str]]:
        yield "`primary`", "naming", self.primary
        if self.claimed_generation is not None:
            yield "`claimed_generation`", "generation", self.claimed_generation
        yield from (("`controls`", "variant", name) for name in self.controls)
        yield from (("`controlled`", "naming", name) for name in self.controlled)
        for name, variant in self.variants.items():
            for used in variant.use:
                yield f"`variants.{name}.use`", "list", used
            for other in filter(None, (variant.start, variant.same_flop_as, *variant.needs)):
                yield f"`variants.{name}`", "variant", other
        for name, column in self.columns.items():
            for data in column.data:
                yield f"`columns.{name}`", "naming", data
        for name, table in self.tables.items():
            for column_name in table.columns:
                yield f"`tables.{name}`", "column", column_name
            for row in table.rows:
                yield f"`tables.{name}`", "variant", row.variant
                if row.interpolation is not None and row.interpolation.data is not None:
                    yield f"`tables.{name}`", "naming", row.interpolation.data
                if row.interpolation is not None and row.interpolation.generation is not None:
                    yield f"`tables.{name}`", "generation", row.interpolation.generation
                if row.diffusion_classifier is not None:
                    yield from ((f"`tables.{name}`", "naming", data) for data in row.diffusion_classifier.data)
            if table.generation is not None:
                yield f"`tables.{name}`", "generation", table.generation
        for name, claim in self.claims.items():
            for other in _sides(claim):
                yield f"`claims.{name}`", "variant", other
            for data in claim.data:
                yield f"`claims.{name}`", "naming", data
            if claim.generation is not None:
                yield f"`claims.{name}`", "generation", claim.generation

    def _unmeasured(self) -> Iterator[str]:
        """Say which columns, rows and claims are of something that is not measured."""
        for name, column in self.columns.items():
            for data in column.data:
                if lacking := set(column.metrics) - self.naming[data].metrics:
                    yield (
                        f"`columns.{name}` shows {min(lacking)}, which `naming.{data}` does not measure. Expected one "
                        f"of {', '.join(sorted(self.naming[data].metrics))}. Change one of the two."
                    )
        for name, table in self.tables.items():
            generates = any(row.generates for row in table.rows)
            shows = any(not self.columns[column].data for column in table.columns)
            if (generates or shows) != (generates and shows and table.generation is not None):
                yield (
                    f"`tables.{name}` has rows that generate, a column of generation, or `generation`, but not all "
                    "three. Expected all or none. Change the table."
                )
            for row in table.rows:
                if row.interpolation is not None:
                    yield from self._unchosen(f"tables.{name}", row.interpolation)
        if both := sorted(set(self.families) & {*self.tables, CONTROLS}):
            yield f"`{both[0]}` is a family of claims and a table, or the controls. Expected two names. Rename one."
        for name, claim in self.claims.items():
            if claim.data if claim.metric == "kd" else claim.generation:
                key = "data" if claim.metric == "kd" else "generation"
                yield f"`claims.{name}` has `{key}`, and {claim.metric} does not use it. Expected none. Remove it."
            if claim.metric == "kd" and self.generation_of(claim) is None:
                yield (
                    f"`claims.{name}` compares generation. Expected `claimed_generation`, or `generation` of the "
                    "claim. Name a set of `generation`."
                )
            task = TASK_OF.get(claim.metric)
            for data in self.naming_of(claim):
                if task is not None and task not in self.naming[data].tasks:
                    yield (
                        f"`claims.{name}` compares {claim.metric} on `naming.{data}`. Expected the task {task}. "
                        f"Add it to the tasks of `naming.{data}`."
                    )
            if claim.metric == "cosine" and len(claim.data) > 1:
                yield f"`claims.{name}` compares the cosine on {len(claim.data)} sets. Expected one. Name one."

    def _unchosen(self, place: str, plan: InterpolationPlan) -> Iterator[str]:
        """Say why a share of weights cannot be chosen."""
        kind, name = ("naming", plan.data) if plan.data is not None else ("generation", plan.generation or "")
        if plan.data is not None and "retrieval" not in self.naming[name].tasks:
            yield f"`{place}` chooses by recall on `naming.{name}`. Expected the task retrieval there. Add it."
        if (self.naming if kind == "naming" else self.generation)[name].split == "test":
            yield f"`{place}` chooses on `{kind}.{name}`, a test split. Expected a validation split. Use another one."

    def _repeated(self) -> Iterator[str]:
        """Say which seeds and labels are there twice."""
        for name in ("", *self.variants):
            seeds = self.seeds_of(name) if name else self.seeds
            if len(set(seeds)) < len(seeds):
                place = f"variants.{name}.seeds" if name else "seeds"
                yield f"`{place}` are {list(seeds)}. Expected each once. Remove one."
        for name, table in self.tables.items():
            label, times = Counter(row.label for row in table.rows).most_common(1)[0]
            if times > 1:
                yield f"`tables.{name}` has {times} rows `{label}`. Expected each label once. Rename one."

    @property
    def targets(self) -> list[Target]:
        """What can be asked for."""
        return [*self.tables, *self.families, *([CONTROLS] if self.controls else [])]

    @property
    def families(self) -> list[Target]:
        """The families of claims."""
        return list(dict.fromkeys(claim.family for claim in self.claims.values()))

    def claims_of(self, family: Target) -> dict[str, ClaimPlan]:
        """The claims of a family, which Holm's correction takes together."""
        return {name: claim for name, claim in self.claims.items() if claim.family == family}

    def naming_of(self, claim: ClaimPlan) -> tuple[str, ...]:
        """The data sets of a claim about naming."""
        return claim.data or (self.primary,)

    def generation_of(self, claim: ClaimPlan) -> str | None:
        """The `generation` of a claim about it."""
        return claim.generation or self.claimed_generation

    @property
    def controlled_data(self) -> tuple[str, ...]:
        """The data sets of the controls."""
        return self.controlled or (self.primary,)

    def result_file(self, target: Target, scale: str) -> str:
        """The name of a target's result file."""
        table = self.tables.get(target)
        return f"{(table.stem if table is not None else None) or f'{target}-{scale}'}.json"

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """The seeds that a variant is trained with."""
        return self.variants[variant].seeds or self.seeds

    def data_of(self, table: TablePlan) -> list[str]:
        """The data sets of `naming` that a table's columns show."""
        return list(dict.fromkeys(data for column in table.columns for data in self.columns[column].data))

    def runs_of(self, target: Target) -> list[tuple[str, int]]:
        """The variants and seeds that a target needs, those first without which the cost of others is not known.

        Raises: ValueError for an unknown target.
        """
        if target not in self.targets:
            raise ValueError(f"The scale has no `{target}`. Expected one of {', '.join(self.targets)}. Use one.")
        found: dict[tuple[str, int], None] = {}
        for variant, seeds in self._asked_for(target):
            for seed in seeds:
                self._add(variant, seed, found)
        return list(found)

    def _asked_for(self, target: Target) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the variants that a target shows itself, and the seeds of each."""
        if target in self.families:
            claims = self.claims_of(target).values()
            yield from ((name, self.seeds_of(name)) for claim in claims for name in _sides(claim))
        elif target == CONTROLS:
            yield from ((name, self.seeds_of(name)[:1]) for name in self.controls)
        else:
            rows = self.tables[target].rows
            yield from ((row.variant, row.seeds or self.seeds_of(row.variant)) for row in rows)

    def _add(self, variant: str, seed: int, found: dict[tuple[str, int], None]) -> None:
        for other in self.counted_after(variant):
            self._add(other, self.seeds_of(other)[0], found)
        found[variant, seed] = None

    def counted_after(self, variant: str) -> list[str]:
        """The variants without which another one cannot be trained, or its cost not be counted."""
        other = self.variants[variant].same_flop_as
        return self.trained_before(variant) + ([] if other is None else self.counted_after(other))

    def trained_before(self, variant: str) -> list[str]:
        """The variants that another one needs or starts from."""
        plan = self.variants[variant]
        return list(filter(None, (*plan.needs, plan.start)))

    def _circles(self) -> Iterator[str]:
        """Say which variants need themselves, or cost as much as themselves."""
        needs = {name: self.trained_before(name) for name in self.variants}
        costs = {name: list(filter(None, [each.same_flop_as])) for name, each in self.variants.items()}
        for name in self.variants:
            if _leads_to(name, name, needs):
                yield f"`variants.{name}` needs itself. Expected others. Change `start` or `needs`."
            if _leads_to(name, name, costs):
                yield f"`variants.{name}` costs as much as itself. Expected another. Change `same_flop_as`."


def _leads_to(start: str, end: str, arrows: Mapping[str, Collection[str]]) -> bool:
    """Whether a path of one arrow or more leads from one name to another."""
    seen: set[str] = set()
    ahead = list(arrows[start])
    while ahead:
        name = ahead.pop()
        if name == end:
            return True
        if name not in seen:
            seen.add(name)
            ahead += arrows[name]
    return False


def _sides(claim: ClaimPlan) -> list[str]:
    return list(filter(None, (claim.a, claim.b, claim.a_flop, claim.b_flop)))


def plan_names() -> list[str]:
    """List the scales."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def load_plan(scale: str) -> Plan:
    """Read the plan of a scale, by its name or as a file.

    Raises: FileNotFoundError or ValueError if there is none, or it is not one.
    """
    path = Path(scale) if scale.endswith(".yaml") else PLANS / f"{scale}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"There is no scale `{scale}`. Expected one of {', '.join(plan_names())}. Use one.")
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = "\n".join(describe_problem(Plan, each) for each in error.errors())
        raise ValueError(f"`{path}` is not a plan. Fix the file:\n{problems}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is not YAML: {error}. Expected a plan. Fix the file.") from error


def paper_row(row: RowPlan) -> dict[str, Scalar]:
    """The paper's numbers of a row, as result files hold them."""
    return {f"paper_{column}": value for column, value in row.paper.items()}
