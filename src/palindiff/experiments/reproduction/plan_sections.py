"""The sections of a plan file: variants, data, naming, generation, tables, columns and claims.

Not here: the plan as a whole, and its checks (`plan.py`).
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from palindiff.evaluation.diffusion_classifier import STAGES, Stage
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.tasks import NamingSetting
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE

NamingTask = Literal["retrieval", "classification", "class_retrieval", "collapse"]
Unit = Literal["image", "label"]
"""What an interval draws: an image with its captions, or all images of one label, where these depend on each other"""
WAYS = ("text", "image")  # retrieval of captions and of images
COLLAPSE = ("effective_rank", "mean_pairwise_cosine", "uniformity")  # of image and of text embeddings

BUDGETS = ("steps", "flop")  # at which trainings are compared: equal numbers of them


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
    tasks: tuple[NamingTask, ...] = ("retrieval",)
    retrieval_ks: tuple[int, ...] = RETRIEVAL_KS
    recall_k: int = 10  # of the recall that claims compare: the mean of both directions
    unit: Unit = "image"

    @property
    def recall_metrics(self) -> tuple[str, ...]:
        """Recall in both directions, as claims compare it."""
        return tuple(f"{way}_retrieval_recall@{self.recall_k}" for way in WAYS)

    @property
    def all_recall_metrics(self) -> tuple[str, ...]:
        """Recall at all numbers in both directions, by whose mean training of UniDiff is chosen too."""
        return tuple(f"{way}_retrieval_recall@{k}" for way in WAYS for k in self.retrieval_ks)

    @property
    def metrics(self) -> set[str]:
        """What is measured."""
        of_retrieval = set(self.all_recall_metrics)
        of_retrieval |= {f"{way}_retrieval_mrr" for way in WAYS}
        collapse = {f"{name}_{metric}" for name in WAYS for metric in COLLAPSE} | {"alignment"}
        of_tasks: dict[NamingTask, set[str]] = {
            "retrieval": of_retrieval, "classification": {"acc1", "acc5", "mean_per_class_recall"},
            "class_retrieval": {"class_retrieval_map"}, "collapse": collapse,
        }  # fmt: skip
        return {metric for task in self.tasks for metric in of_tasks[task]}

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
    unit: Unit = "image"
    num_images: int = Field(256, gt=1)
    num_inference_steps: int = Field(20, gt=0)
    guidance_scale: float = Field(GENERATION_GUIDANCE_SCALE, ge=1)
    kid_subset_size: int = Field(100, gt=1)
    inception_weights: str | None = None  # file, for FID and KID; None: distances over EfficientNet-Lite0 alone
    clip_rn50_openai: bool = False  # CLIP-score as in the paper, which needs open_clip


class NamingPlan(NamingSetting, frozen=True, extra="forbid"):
    """How images are named; a contrastive model has nothing to choose."""

    timestep_spacing: Literal["trailing", "leading"] = "trailing"


class ClassifierPlan(BaseModel, frozen=True, extra="forbid"):
    """Classification by the U-Net's error under each class's prompt, in place of naming (the Diffusion Classifier)."""

    data: tuple[str, ...] = ()  # names of `naming`; (): all of the table's that are classified
    num_images: int = Field(250, gt=0)  # of each data set, stratified by class
    stages: tuple[Stage, ...] = STAGES


class InterpolationPlan(BaseModel, frozen=True, extra="forbid"):
    """Weights between those that training started from and its result, and where their share is chosen."""

    data: str | None = None  # of `naming`: a validation split; the mean of its recalls, at all numbers, chooses
    generation: str | None = None  # of `generation`, instead: a validation split; its KD chooses
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), min_length=1
    )
    """α: 0 is the start, 1 the result of training"""

    @model_validator(mode="after")
    def _is_chosen_by_one(self) -> Self:
        if (self.data is None) == (self.generation is None):
            raise ValueError("`interpolation` has both of `data` and `generation`, or none. Expected one. Name one.")
        return self


class RowPlan(BaseModel, frozen=True, extra="forbid"):
    """A row of a table: a variant under a setting of naming, and the paper's numbers for it."""

    label: str
    variant: str
    naming: NamingPlan = NamingPlan()
    generates: bool = False  # measure generation too
    diffusion_classifier: ClassifierPlan | None = None  # classify so, and measure nothing else
    interpolation: InterpolationPlan | None = None  # of a UniDiff's weights with its start
    seeds: tuple[int, ...] | None = Field(None, min_length=1)  # None: all of the variant's
    paper: dict[str, float] = {}  # by the title of a column, or the paper's own
    curve: str | None = None  # the line that the row is a point of, where the table is plotted
    x: float | None = None  # where on it


class ColumnPlan(BaseModel, frozen=True, extra="forbid"):
    """A column of tables: the mean of metrics over data sets."""

    title: str
    metrics: tuple[str, ...] = Field(min_length=1)
    data: tuple[str, ...] = ()  # names of `naming`; (): the table's `generation`
    is_share: bool = True  # shown in percent
    times_chance: float | None = Field(None, gt=0)
    """Shown only if its first value is at least this many times chance; None: always"""


class TablePlan(BaseModel, frozen=True, extra="forbid"):
    """A table or a figure of a paper."""

    title: str
    paper_says: str = ""  # what is known of the paper's models: caption and footnotes
    note: str = ""  # what a reader must know of ours
    rows: tuple[RowPlan, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)  # names of the plan's `columns`; what they need is measured
    generation: str | None = None  # name of a `generation` of the plan, for rows that generate
    x: str | None = None  # axis of a plot of the first column, for rows with `curve`; None: no plot
    sheet_captions: int = Field(0, ge=0)  # of a figure: captions whose images are shown, a column for each row
    shows_spread: bool = False  # mean and variance of each column over the rows, which are seeds of naming
    stem: str | None = None  # name of the result file without .json; None: TABLE-SCALE


class ClaimPlan(BaseModel, frozen=True, extra="forbid"):
    """A comparison of docs/protocol.md that gets a verdict: A against B at equal steps, and at equal training FLOP."""

    text: str
    a: str  # variants
    b: str
    a_flop: str | None = None  # in place of `a` at equal FLOP; None: the same
    b_flop: str | None = None
    family: str = "claims"  # claims that Holm's correction takes together: a target of `reproduce`
    metric: Literal["recall", "accuracy", "kd", "cosine"] = "recall"
    """"accuracy": zero-shot top-1; "cosine": mean cosine of different images, lower is less collapsed"""
    data: tuple[str, ...] = ()  # of `naming`, for all but kd; several: their mean; (): the plan's `primary`
    generation: str | None = None  # of `generation`, for kd; None: the plan's `claimed_generation`
    a_naming: NamingPlan = NamingPlan()
    b_naming: NamingPlan = NamingPlan()
    margin: float | None = Field(None, gt=0)  # percentage points; None: A is better than B
    has_budgets: bool = True  # False: of two settings of one model, or of trainings that stop early

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets at which it is judged."""
        return BUDGETS if self.has_budgets else BUDGETS[:1]

    def sides(self, budget: str) -> tuple[str, str]:
        """The variants A and B at a budget."""
        at_flop = budget == "flop"
        return (self.a_flop if at_flop else None) or self.a, (self.b_flop if at_flop else None) or self.b
