"""`palindiff evaluate-vae`: measure how well a VAE reconstructs images."""

from pathlib import Path
from typing import Annotated

import typer

from palindiff.cli.output_option import DryRunOption, command_line, print_plan


def evaluate_vae(
    model: Annotated[
        str, typer.Option(metavar="bundled|DIR", help="The bundled VAE, or a run of train-vae.")
    ] = "bundled",
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the emoji set, with train/ and test/.")] = Path(
        "data/emoji"
    ),
    results: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the numbers to a file.", show_default="none")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write images before and after.", show_default="none")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Measure the reconstruction error of a VAE.

    Prints the PSNR in dB on images it was trained on, and on unseen ones.

    \b
    Examples:
      palindiff evaluate-vae
      palindiff evaluate-vae --model runs/vae-emoji --sheet vae.png
    """
    missing = [name for name in ("vae", "log.jsonl") if model != "bundled" and not (Path(model) / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"`{model}` holds no {' and no '.join(missing)}. Expected `bundled`, or a folder that `palindiff "
            "train-vae` wrote. Pass one with --model."
        )
    if dry_run:
        plan = {"model": model, "data": data, "results": results, "sheet": sheet}
        print_plan({name: value for name, value in plan.items() if value is not None})
        return
    from palindiff.evaluation.results import render_table
    from palindiff.experiments.vae_report import report_vae

    rows = report_vae(model, data, command_line(), results, sheet)
    typer.echo(render_table(rows, ["split", "n", "psnr_db:.2f", "pooled_psnr_db:.2f", "steps", "seconds"]))
