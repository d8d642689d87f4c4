"""What the verbs that read images share: how the text query of each is walked, and how many answers are told.

The guidance scale is generation's too.
"""

import math
from typing import Annotated

import typer


def check_finite(value: float) -> float:
    """Refuse what a range without a top lets through.

    Raises: BadParameter, which names the option.
    """
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite. Expected a number, such as 4.")
    return value


StepsOption = Annotated[
    int, typer.Option("--steps", min=1, help="Steps from noise to an embedding; a model without noise ignores them.")
]
GuidanceOption = Annotated[
    float,
    typer.Option(
        "--guidance-scale", min=1, callback=check_finite, help="1 + w of the paper's guidance; 1 turns it off."
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of the noise that every image's walk starts from.")
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many answers are told, best first.")]
