"""The objective of a DiffDis recipe: its models under its losses, in training and under a cost estimate alike."""

from torch import Tensor

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.training.recipes.build_models import training_scheduler
from palindiff.training.recipes.schema import DiffDisRecipe


def build_objective(
    recipe: DiffDisRecipe, pipeline: PalindiffPipeline, text_encoder: TextEncoder, c_empty: Tensor | None
) -> DiffDisObjective:
    """Put the models under their losses, with gradient checkpointing where the recipe asks for it.

    Shapes: c_empty (1, l, d_c), the empty caption's condition; None where captions are encoded at each step, and then
            the text encoder is part of the objective.
    """
    use_checkpointing = recipe.machine.gradient_checkpointing
    if use_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    encoder: TextEncoder | None = None
    if c_empty is None:
        encoder = text_encoder.requires_grad_(recipe.text.is_trained)
        if use_checkpointing and recipe.text.is_trained:
            encoder.model.activation_checkpointing_enable()
    return DiffDisObjective(
        pipeline.unet,
        pipeline.query_stream,
        training_scheduler(pipeline.scheduler),
        pipeline.query_scheduler,
        c_empty,
        recipe.objective,
        encoder,
    )
