"""The recipe of UniDiff: a CLIP and a Stable Diffusion, what of them is trained, and how.

Not here: the losses' keys (`objectives/unidiff.py`), building (`build_unidiff.py`), the sections that all recipes have
(`schema.py`).
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from palindiff.evaluation.evaluators import EvaluationConfig
from palindiff.models.lora import LoraConfig
from palindiff.objectives.unidiff import UniDiffConfig
from palindiff.training.features.views import ViewConfig
from palindiff.training.recipes.schema import Recipe

Trained = Literal["all", "attention", "lora"]


class ClipSource(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The CLIP to start from."""

    source: str  # folder of a transformers CLIPModel, or of a contrastive result of palindiff


class StableDiffusionSource(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The Stable Diffusion to start from; CLIP's text encoder takes the place of its own."""

    source: str  # folder or Hub name of a Stable Diffusion 1.x or 2.x, or a palindiff checkpoint
    variant: str | None = None  # weights besides the usual ones, such as fp16


class UniDiffEvaluationConfig(EvaluationConfig, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which evaluators run, and when training stops early."""

    evaluators: tuple[Literal["retrieval", "classification", "samples"], ...] = ("retrieval", "samples")
    patience: int = Field(0, ge=0)  # evaluations without a better score, after which training stops; 0: never

    @property
    def image_options(self) -> dict[str, Any]:
        """A CLIP has nothing to choose."""
        return {}


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

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        objective = self.objective
        if not (objective.contrastive_weight or objective.generation_weight or objective.consistency_weight):
            raise ValueError("All three weights of `objective` are 0. Expected a loss to train. Set one above 0.")
        if objective.contrastive_weight and self.loop.batch_size == self.loop.accumulation:
            raise ValueError(
                f"`loop.batch_size` is {self.loop.batch_size} with `loop.accumulation` {self.loop.accumulation}: a "
                "micro-batch of one row has no other captions. Expected at least 2 rows. Change one of the two."
            )
        return self
