"""`palindiff evaluate-vae`: how well the VAE brings unseen images back."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from palindiff.cli.output_option import DryRunOption, print_plan


def evaluate_vae(
    model: Annotated[
        str, typer.Option(metavar="bundled|DIR", help="The bundled VAE, or a run of train-vae.")
    ] = "bundled",
    data: Annotated[Path, typer.Option(help="Folder of the emoji set, with train/ and test/.")] = Path("data/emoji"),
    results: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the numbers there.", show_default="print only")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw before and after there.", show_default="no sheet")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, help="Written beside the results; nothing is drawn at random, so no number depends on it."
        ),
    ] = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Measure the VAE on images it was trained on and on images it has never seen.

    \b
    Examples:
      palindiff evaluate-vae
      palindiff evaluate-vae --model runs/vae-emoji --sheet vae.png
    """
    if model != "bundled":
        _check_run(Path(model))
    if dry_run:
        told = {"model": model, "data": data, "seed": seed, "results": results, "sheet": sheet}
        print_plan({name: value for name, value in told.items() if value is not None}, as_json=False)
        return
    from palindiff.evaluation.results import render_table
    from palindiff.experiments.vae_report import VaeReportOptions, report_vae

    rows = report_vae(VaeReportOptions(model, data, results, sheet, seed), shlex.join(["palindiff", *sys.argv[1:]]))
    typer.echo(render_table(rows, ["split", "n", "psnr_db:.2f", "pooled_psnr_db:.2f", "steps", "seconds"]))


def _check_run(folder: Path) -> None:
    """Refuse what is no run before it is taken for a name of the Hub."""
    missing = [name for name in ("vae", "log.jsonl") if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"`{folder}` holds no {' and no '.join(missing)}. Expected `bundled`, or a folder that "
            "`palindiff train-vae` wrote. Name one with --model."
        )
