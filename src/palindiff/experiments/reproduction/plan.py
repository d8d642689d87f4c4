"""The plan of a scale: which models are trained, what each table shows of them, and the claims that are judged.

Here: the form of a plan file (`plans/SCALE.yaml`), and its checks. Not here: training (`model_runs.py`), measuring
(`measurement.py`), judging (`verdicts.py`).
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.results import Scalar

PLANS = Path(__file__).with_name("plans")
ROOT, RUNS = "{data}", "{runs}"  # in paths of a plan: the folder of --data, and that of the runs of the scale

Target = str  # "table4", "figure4", "claims"


class VariantPlan(BaseModel, frozen=True, extra="forbid"):
    """One model of a comparison: a recipe, what it changes, and what it starts from."""

    recipe: str | None = None  # bundled recipe or FILE.yaml; None: the plan's
    use: tuple[str, ...] = ("common",)  # names of `settings`, in this order
    set: tuple[str, ...] = ()  # KEY=VALUE of this variant alone, after those
    start: str | None = None  # the variant whose checkpoint is `base.source`; of its first seed
    needs: tuple[str, ...] = ()  # variants that are trained before, such as a VAE that `set` names below {runs}
    same_flop_as: str | None = None  # variant; the number of steps is chosen so that training costs as much
    seeds: tuple[int, ...] | None = Field(None, min_length=1)  # None: the plan's


class DataPlan(BaseModel, frozen=True, extra="forbid"):
    """Images on which every model is measured."""

    path: str
    split: str = "test"
    where: tuple[str, ...] = ()  # conditions on rows, KEY=PATTERN or KEY!=PATTERN
    class_set: str | None = None  # of the twelve of Table 1, by its name; None: the classes of the images
    templates: tuple[str, ...] | None = None  # of class names; None: those of the class set, or the usual ones
    tasks: tuple[Literal["retrieval", "classification"], ...] = ("retrieval",)
    retrieval_ks: tuple[int, ...] = RETRIEVAL_KS
    recall_k: int = 10  # of `recall`, which claims compare: the mean of both directions

    @model_validator(mode="after")
    def _measures_its_recall(self) -> Self:
        if "retrieval" in self.tasks and self.recall_k not in self.retrieval_ks:
            raise ValueError(
                f"`recall_k` is {self.recall_k}, and `retrieval_ks` {list(self.retrieval_ks)}. Expected one of these."
            )
        return self


class GenerationPlan(BaseModel, frozen=True, extra="forbid"):
    """What is generated, and compared with the real images of the same captions."""

    path: str
    split: str = "test"
    where: tuple[str, ...] = ()
    num_images: int = Field(256, gt=1)
    num_inference_steps: int = Field(20, gt=0)
    guidance_scale: float = Field(4.0, ge=1)
    kid_subset_size: int = Field(100, gt=1)
    inception_weights: str | None = None  # file, for FID and KID; None: distances over EfficientNet-Lite0 alone
    clip_rn50_openai: bool = False  # CLIP-score as in the paper, which needs open_clip


class NamingPlan(BaseModel, frozen=True, extra="forbid"):
    """How images are named; a contrastive model has nothing to choose."""

    num_inference_steps: int = Field(8, gt=0)
    guidance_scale: float = Field(1.0, ge=1)
    seed: int = Field(0, ge=0)
    timestep_spacing: Literal["trailing", "leading"] = "trailing"


class RowPlan(BaseModel, frozen=True, extra="forbid"):
    """A row of a table: a variant under a setting of naming, and the paper's numbers for it."""

    label: str
    variant: str
    naming: NamingPlan = NamingPlan()
    generates: bool = False  # measure generation too
    paper: dict[str, float] = {}  # by the paper's column


class TablePlan(BaseModel, frozen=True, extra="forbid"):
    """A table or a figure of the paper."""

    title: str
    paper_says: str = ""  # what is known of the paper's models: caption and footnotes
    rows: tuple[RowPlan, ...] = Field(min_length=1)
    generation: str | None = None  # name of a `generation` of the plan, for rows that generate
    sheet_captions: int = Field(0, ge=0)  # of a figure: captions whose images are shown, a column for each row


class ClaimPlan(BaseModel, frozen=True, extra="forbid"):
    """A primary comparison of docs/protocol.md: A against B at equal steps, and at equal training FLOP."""

    text: str
    a: str  # variants
    b: str
    a_flop: str | None = None  # in place of `a` at equal FLOP; None: the same
    b_flop: str | None = None
    metric: Literal["recall", "kd"] = "recall"
    a_naming: NamingPlan = NamingPlan()
    b_naming: NamingPlan = NamingPlan()
    margin: float | None = Field(None, gt=0)  # percentage points; None: A is better than B
    has_budgets: bool = True  # False: a comparison of two settings of one model


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
    tables: dict[Target, TablePlan]
    claims: dict[str, ClaimPlan] = {}

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for place, kind, name in self._references():
            all_known: dict[str, Collection[str]] = {
                "variant": self.variants, "naming": self.naming, "generation": self.generation, "list": self.settings
            }  # fmt: skip
            known = all_known[kind]
            if name not in known:
                raise ValueError(f"{place} names the {kind} `{name}`. Expected one of {', '.join(known)}. Use one.")
        return self

    def _references(self) -> Iterator[tuple[str, str, str]]:
        yield "`primary`", "naming", self.primary
        for name, variant in self.variants.items():
            for used in variant.use:
                yield f"`variants.{name}.use`", "list", used
            for other in filter(None, (variant.start, variant.same_flop_as, *variant.needs)):
                yield f"`variants.{name}`", "variant", other
        for name, table in self.tables.items():
            for row in table.rows:
                yield f"`tables.{name}`", "variant", row.variant
            if table.generation is not None:
                yield f"`tables.{name}`", "generation", table.generation
        for name, claim in self.claims.items():
            for other in filter(None, (claim.a, claim.b, claim.a_flop, claim.b_flop)):
                yield f"`claims.{name}`", "variant", other

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """The seeds that a variant is trained with."""
        return self.variants[variant].seeds or self.seeds

    def variants_of(self, target: Target) -> list[str]:
        """The variants that a table or the claims need, those first that others start from.

        Raises: ValueError for an unknown target.
        """
        if target == "claims":
            wanted = [each for claim in self.claims.values() for each in _sides(claim)]
        elif target in self.tables:
            wanted = [row.variant for row in self.tables[target].rows]
        else:
            raise ValueError(
                f"The scale has no `{target}`. Expected one of {', '.join([*self.tables, 'claims'])}. Use one."
            )
        found: dict[str, None] = {}
        for name in wanted:
            self._add(name, found, ())
        return list(found)

    def _add(self, name: str, found: dict[str, None], above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"`variants.{name}` needs itself. Expected others. Change `start` or `needs`.")
        variant = self.variants[name]
        for other in filter(None, (*variant.needs, variant.start)):
            self._add(other, found, (*above, name))
        found[name] = None


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
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"`{path}` is no plan: {error}. Expected the form of the plans in {PLANS.name}/.") from error


def paper_row(row: RowPlan) -> dict[str, Scalar]:
    """The paper's numbers of a row, as result files hold them."""
    return {f"paper_{column}": value for column, value in row.paper.items()}
