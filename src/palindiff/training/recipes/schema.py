"""What a recipe holds: the sections common to all objectives, and the recipes of DiffDis and of the VAE.

Here: which sections there are. Not here: their keys (each config is defined next to what it configures), reading and
writing YAML (`yaml_files.py`).
"""

from pydantic import BaseModel

from palindiff.data.sources import DataConfig
from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationSection, VaeEvaluationConfig
from palindiff.models.vae import VaeConfig
from palindiff.objectives.diffdis import DiffDisConfig
from palindiff.objectives.vae import VaeObjectiveConfig
from palindiff.training.features.dataset import ViewConfig
from palindiff.training.loop.device import MachineConfig
from palindiff.training.loop.loop_config import LoopConfig
from palindiff.training.loop.optimizer import OptimizerConfig
from palindiff.training.recipes.build_models import ModelRecipe


class Recipe(BaseModel, frozen=True, extra="forbid"):
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


class DiffDisRecipe(ModelRecipe, Recipe, frozen=True, extra="forbid"):
    """A model that generates and names: its parts, data augmentation, and both tasks."""

    views: ViewConfig = ViewConfig()
    objective: DiffDisConfig = DiffDisConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class VaeRecipe(Recipe, frozen=True, extra="forbid"):
    """A VAE from scratch."""

    vae: VaeConfig = VaeConfig()
    objective: VaeObjectiveConfig = VaeObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(new_learning_rate=1.5e-3)
    evaluation: VaeEvaluationConfig = VaeEvaluationConfig()
