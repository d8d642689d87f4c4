"""`palindiff evaluate-codec`: how well the autoencoder brings unseen pictures back."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def evaluate_codec(
    model: Annotated[
        str, typer.Option(metavar="shipped|DIR", help="The shipped codec, or a run of train-codec.")
    ] = "shipped",
    data: Annotated[Path, typer.Option(help="Folder of the emoji set, with train/ and test/.")] = Path("data/emoji"),
    results: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the numbers there.", show_default="print only")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw before and after there.", show_default="no sheet")
    ] = None,
) -> None:
    """Measure the autoencoder on pictures it was trained on and on pictures it has never seen.

    \b
    Examples:
      palindiff evaluate-codec
      palindiff evaluate-codec --model runs/codec-emoji --sheet codec.png
    """
    from palindiff.evaluation.results import render_table
    from palindiff.experiments.codec_report import CodecReportOptions, report_codec

    rows = report_codec(CodecReportOptions(model, data, results, sheet), shlex.join(["palindiff", *sys.argv[1:]]))
    typer.echo(render_table(rows, ["split", "n", "psnr_db:.2f", "pooled_psnr_db:.2f", "steps", "seconds"]))
