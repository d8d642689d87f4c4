"""The recipe of UniDiff: a CLIP and a Stable Diffusion, what of them is trained, and how.

Not here: the losses' keys (`objectives/unidiff.py`), building (`build_unidiff.py`), the sections that all recipes have
(`schema.py`).
"""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from palindiff.evaluation.evaluators import BestBy, SampleSection
from palindiff.models.lora import LoraConfig
from palindiff.objectives.unidiff import UniDiffConfig
from palindiff.training.features.views import ViewConfig
from palindiff.training.recipes.schema import Recipe, check_negatives

Trained = Literal["all", "attention", "lora"]


class ClipSource(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The CLIP to start from."""

    source: str  # folder or Hub name of a transformers CLIPModel, or a contrastive result of palindiff


class StableDiffusionSource(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The Stable Diffusion to start from; CLIP's text encoder takes the place of its own."""

    source: str  # folder or Hub name of a Stable Diffusion 1.x, or a palindiff checkpoint
    variant: str | None = None  # weights besides the usual ones, such as fp16


class UniDiffEvaluationConfig(SampleSection, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which evaluators run, and when training stops early."""

    evaluators: tuple[Literal["retrieval", "classification", "samples"], ...] = ("retrieval", "samples")
    patience: int = Field(0, ge=0)
    """Evaluations without a better score, after which training stops; its result is the best one then; 0: never"""


class UniDiffRecipe(Recipe, frozen=True, extra="forbid", allow_inf_nan=False):
    """Both models trained at once on the same images and captions."""

    clip: ClipSource
    stable_diffusion: StableDiffusionSource
    trained: Trained = "all"
    """"all" weights; "attention": CLIP and the attention of the U-Net; "lora": updates of low rank in both"""
    lora: LoraConfig = LoraConfig()  # of `trained: lora`
    views: ViewConfig = ViewConfig()
    objective: UniDiffConfig = UniDiffConfig()
    evaluation: UniDiffEvaluationConfig = UniDiffEvaluationConfig()

    @property
    def latent_views(self) -> ViewConfig:
        """Views of the cached latents: generation trains on whole images, mirrored only where `flip` says so of it."""
        flip: Literal["both", "none"] = "both" if self.views.flip == "both" else "none"
        return self.views.model_copy(update={"crops": 0, "flip": flip})

    @property
    def best_by(self) -> BestBy | None:
        """What the best evaluation is chosen by; None: there is no best one.

        "auto" is recall or accuracy, whichever is evaluated, where CLIP's loss is trained, else the generation loss.
        """
        options, objective = self.evaluation, self.objective
        if options.keep_best != "auto":
            return None if options.keep_best == "none" else options.keep_best
        if objective.contrastive_weight and "retrieval" in options.evaluators:
            return "recall"
        if objective.contrastive_weight and "classification" in options.evaluators:
            return "classification"
        return "generation" if objective.generation_weight or objective.consistency_weight else None

    @model_validator(mode="after")
    def _stops_by_what_is_evaluated(self) -> Self:
        objective = self.objective
        if self.evaluation.keep_best == "generation" and not (
            objective.generation_weight or objective.consistency_weight
        ):
            raise ValueError(
                "`evaluation.keep_best` is 'generation', and `generation_weight` and `consistency_weight` of "
                "`objective` are 0, so the U-Net is not trained. Expected a score that changes. Set `keep_best: auto`."
            )
        evaluator = {None: "", "recall": "retrieval", "classification": "classification"}.get(self.best_by)
        if self.evaluation.patience and evaluator is not None and evaluator not in self.evaluation.evaluators:
            raise ValueError(
                f"`evaluation.patience` is {self.evaluation.patience}, and `evaluation.keep_best` "
                f"'{self.evaluation.keep_best}' finds nothing to compare in `evaluation.evaluators` "
                f"{list(self.evaluation.evaluators)}. Expected a score to stop by. Set `keep_best: auto` with "
                "retrieval or classification among the evaluators, or `evaluation.patience: 0`."
            )
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        objective = self.objective
        if not (objective.contrastive_weight or objective.generation_weight or objective.consistency_weight):
            raise ValueError("All three weights of `objective` are 0. Expected a loss to train. Set one above 0.")
        if objective.contrastive_weight:
            check_negatives(self.loop)
        num_rows = self.loop.batch_size // self.loop.accumulation
        if objective.consistency_weight and objective.consistency == "relational" and num_rows < 3:
            raise ValueError(
                f"`objective.consistency` is 'relational' with {num_rows} rows in a micro-batch. Expected 3 or more: "
                "each image is compared with all others. Change `loop.batch_size` or `loop.accumulation`."
            )
        return self
