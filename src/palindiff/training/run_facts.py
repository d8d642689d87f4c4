"""The facts on the card of a trained checkpoint: from its recipe, and the licences of what it started from."""

import palindiff
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.bundled import BUNDLED_LICENSE, BUNDLED_VAE
from palindiff.pretrained.model_card import BaseWeights, CardFacts, License, public_name
from palindiff.pretrained.stable_diffusion import base_license
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import config_hash


def run_facts(recipe: DiffDisRecipe, pipeline: PalindiffPipeline, name: str) -> CardFacts:
    """Gather the facts of a finished run; results are measured later, so there are none."""
    task = recipe.objective.task
    parts = {"U-Net": pipeline.unet, "query stream": pipeline.query_stream}
    return CardFacts(
        name=name,
        bases=_bases(recipe),
        datasets=(public_name(recipe.data.path),),
        parameters={part: sum(weight.numel() for weight in model.parameters()) for part, model in parts.items()},
        training={
            "task": task,
            "trained": _trained(recipe),
            "fusion": recipe.query_stream.fusion,
            "γ": recipe.query_stream.gamma,
            "images": f"{pipeline.image_size_px} px",
            "steps": recipe.loop.num_steps,
            "batch size": recipe.loop.batch_size,
            "learning rates": f"{recipe.optimizer.learning_rate:g} (U-Net), {recipe.optimizer.new_learning_rate:g}",
            "average of the weights": recipe.loop.ema_decay,
            "seed": recipe.loop.seed,
            "recipe": f"config hash {config_hash(recipe)[:16]}, palindiff {palindiff.__version__}",
        },
        limits=() if task == "both" else (f"Only {task} was trained; the other task is as it was at the start.",),
    )


def _trained(recipe: DiffDisRecipe) -> str:
    """Which weights, in words."""
    updates = f"LoRA of rank {recipe.lora.rank} of the " if recipe.trained == "lora" else ""
    parts = [f"{updates}U-Net"]
    parts += [f"{updates}text encoder"] if recipe.text.is_trained else []
    parts += ["query stream"] if recipe.objective.task != "generation" else []
    return ", ".join(parts)


def _bases(recipe: DiffDisRecipe) -> tuple[BaseWeights, ...]:
    """What a run started from; a base's own text encoder has no name of its own."""
    parts: dict[str, str | None] = {"Text encoder": recipe.text.source}
    if recipe.base is not None:
        part = "U-Net and VAE" if recipe.base.unet_weights == "base" else "VAE"
        parts = {part: recipe.base.source, **parts}
    elif recipe.vae != "bundled":
        parts["VAE"] = recipe.vae
    bases = [
        BaseWeights(name=public_name(name), part=part, license=base_license(name))
        for part, name in parts.items()
        if name is not None
    ]
    if recipe.vae == "bundled":
        bases.append(BaseWeights(name=BUNDLED_VAE, part="VAE", license=License(license=BUNDLED_LICENSE)))
    return tuple(bases)
