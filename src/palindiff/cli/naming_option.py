"""Options and answers that the verbs share which encode images; the guidance scale is also an option of generation."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS

if TYPE_CHECKING:
    from torch import Tensor

    from palindiff.inference.embedder import Embedder


def check_finite(value: float) -> float:
    """Refuse infinity, which a range without a maximum accepts.

    Raises: BadParameter, which names the option.
    """
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite. Expected a number, such as 4.")
    return value


StepsOption = Annotated[
    int, typer.Option("--steps", min=1, help="Denoising steps; a model without text diffusion ignores them.")
]
GuidanceOption = Annotated[
    float,
    typer.Option(
        "--guidance-scale", min=1, callback=check_finite, help="Classifier-free guidance, the paper's w + 1; 1: off."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise that every query starts from.")]
TopOption = Annotated[int, typer.Option("--top", min=1, help="Number of answers, best first.")]


def options_of(embedder: "Embedder", model: str, options: dict[str, int | float]) -> dict[str, int | float]:
    """Return the options of naming that a model takes: all of them, or none if it is a contrastive model.

    Raises: ValueError if one cannot work, or a contrastive model is given another than the default.
    """
    from palindiff.inference.embedder import PipelineEmbedder

    if isinstance(embedder, PipelineEmbedder):
        embedder.pipeline.check_options(**options)
        return options
    if options != {"num_inference_steps": NAMING_STEPS, "guidance_scale": NAMING_GUIDANCE_SCALE, "seed": 0}:
        raise ValueError(
            f"Steps, guidance scale or seed are given with the contrastive model `{model}`. Expected none of them: it "
            "embeds an image in one pass. Remove these options."
        )
    return {}


def best_answers(scores: "Tensor", offered: list[str], top: int) -> list[list[tuple[str, float]]]:
    """List the best answers of each row, best first, with their scores.

    Shapes: scores (b, k) for k offered answers.
    """
    best = scores.topk(min(top, len(offered)))
    return [
        [(offered[place], score) for place, score in zip(places, row, strict=True)]
        for places, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
