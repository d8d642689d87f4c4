"""Options of all tasks of an evaluation, as one set."""

from palindiff.evaluation.generation import GenerationConfig
from palindiff.evaluation.run_diffusion_classifier import DiffusionClassifierConfig
from palindiff.evaluation.tasks import EvaluationOptions


class TaskOptions(EvaluationOptions, frozen=True, extra="forbid", allow_inf_nan=False):
    """Options of the tasks that measure embeddings, and of the others by the names of these."""

    generation: GenerationConfig = GenerationConfig()
    diffusion_classifier: DiffusionClassifierConfig = DiffusionClassifierConfig()

    @property
    def classifier(self) -> DiffusionClassifierConfig:
        """The options of the Diffusion Classifier, whose one template is the first of all tasks' if it has none."""
        own = self.diffusion_classifier
        return own if own.template or not self.templates else own.model_copy(update={"template": self.templates[0]})
