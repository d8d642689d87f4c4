"""What the verbs that read pictures share: how the text query of each is walked, and how many answers are told."""

from typing import Annotated

import typer

StepsOption = Annotated[
    int, typer.Option("--steps", min=1, help="Steps from noise to an embedding; a model without noise ignores them.")
]
GuidanceOption = Annotated[
    float, typer.Option("--guidance-scale", min=1, help="1 + w of the paper's guidance; 1 turns it off.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of the noise that every picture's walk starts from.")
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many answers are told, best first.")]
