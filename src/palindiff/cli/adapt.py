"""`palindiff adapt`: adapt a CLIP and a Stable Diffusion to a catalogue of captioned images."""

from pathlib import Path
from typing import Annotated

import typer

from palindiff.cli.model_option import check_is_alone, hide_progress_bars
from palindiff.cli.output_option import DryRunOption, next_line
from palindiff.cli.recipe_option import Progress, SetOption


def adapt(
    clip: Annotated[str, typer.Option(metavar="DIR|NAME", help="CLIP to adapt: a transformers CLIPModel.")],
    stable_diffusion: Annotated[
        str, typer.Option(metavar="DIR|NAME", help="Stable Diffusion to adapt, whose text encoder is that CLIP's.")
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="Captioned images: folder, tars, parquet, ...")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the result. Rerun to resume.")],
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images (split test) to measure CLIP's zero-shot accuracy on, before and after.",
            show_default="not measured",
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Weight files of the Stable Diffusion, such as fp16.", show_default="none")
    ] = None,
    overrides: SetOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    dry_run: DryRunOption = False,
) -> None:  # fmt: skip
    """Adapt CLIP and Stable Diffusion at once to your captioned images.

    Holds out a part of the images, or uses their sub-folder `validation`, chooses what is trained (all weights,
    attention, LoRA) by the number of images and the memory, and stops when recall on the held-out images no longer
    rises. Writes DIR/clip and DIR/stable_diffusion, stock folders, and DIR/report.html.

    \b
    Examples:
      palindiff adapt --clip clip-vit-large-patch14 --stable-diffusion sd-v1-4 --data catalogue --output adapted
      palindiff adapt --clip CLIP --stable-diffusion SD --data catalogue --retain data/cifar10 --output adapted
      palindiff adapt --clip CLIP --stable-diffusion SD --data catalogue --output adapted --set trained=all
    """
    check_is_alone("adapt", "`palindiff train --recipe adapt` trains on several.")
    hide_progress_bars()
    from palindiff.experiments.adaptation import Adaptation, AdaptOptions
    from palindiff.experiments.adaptation_page import embed_command
    from palindiff.training.recipes.yaml_files import dump_recipe

    options = AdaptOptions(clip, stable_diffusion, data, output, retain, tuple(overrides or ()), seed, variant)
    adaptation = Adaptation(options, lambda sentence: typer.echo(sentence, err=dry_run), Progress())
    if dry_run:
        adaptation.check()
        typer.echo(dump_recipe(adaptation.recipe, f"adapt to {data}"))
        typer.echo("\n".join(adaptation.preset.reasons))
        return
    typer.echo(f"written: {adaptation.run()}")
    typer.echo(next_line(embed_command(adaptation.recipe.data, output)))
