"""`palindiff embed`: image embeddings of a set of any size, in shards."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from palindiff.cli.inputs import OnBadOption
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, launched_process, open_embedder
from palindiff.cli.naming_option import GuidanceOption, SeedOption, StepsOption, options_of
from palindiff.cli.output_option import DryRunOption, next_line, print_plan
from palindiff.cli.recipe_option import Progress
from palindiff.inference.defaults import IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS


def embed(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder, .tar or .parquet files, a pattern of these, or a Hub name."),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder, or that of a stopped run, to resume.")],
    split: Annotated[str, typer.Option(help="Split of the source; unsplit data are train.")] = "train",
    model: ModelOption = DEFAULT_MODEL,
    steps: StepsOption = NAMING_STEPS,
    guidance_scale: GuidanceOption = NAMING_GUIDANCE_SCALE,
    seed: SeedOption = 0,
    fit: Annotated[
        Literal["crop", "pad"], typer.Option(help="crop: the middle square; pad: the whole image on white.")
    ] = "crop",
    batch_size: Annotated[int, typer.Option(min=1, help="Images embedded together.")] = IMAGES_AT_ONCE,
    num_workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that decode images; 0 decodes in the main process.")
    ] = 0,
    device: DeviceOption = "auto",
    on_bad: OnBadOption = "refuse",
    dry_run: DryRunOption = False,
) -> None:
    """Embed the images of a source once; `classify`, `rank` and `evaluate` read them instead of images.

    The model is a palindiff checkpoint or a CLIP. Writes DIR/embeddings.json and, for every 1,024 images,
    DIR/img_emb/*.npy and DIR/metadata/*.parquet. Rerun the same command to resume. Started by torchrun, processes
    share the shards.

    \b
    Examples:
      palindiff embed photos --output photos-embedded
      palindiff embed "cc3m/{00000..00331}.tar" --output cc3m-embedded --workers 8 --on-bad skip
      torchrun --nproc_per_node 2 -m palindiff.cli.main embed photos --output photos-embedded
      palindiff rank photos-embedded --caption "a dog on a beach" --by caption
    """
    from palindiff.data.samples import keep_class_names
    from palindiff.data.sources import DataConfig, open_any_images

    data = DataConfig(path=source, split=split, fit=fit, on_bad=on_bad)
    rows = open_any_images(data)
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    if dry_run:
        counted = {"images": len(rows), "source": rows.source, "output": output}
        print_plan({"model": model, **options, "fit": fit, **counted})
        return
    from palindiff.inference.embeddings import embed_images, embedding_folder

    embedder = open_embedder(model, device)
    folder = embedding_folder(output, embedder, model, rows, split, options_of(embedder, model, options), fit)
    unreadable = embed_images(
        embedder, rows, [folder], on_bad, batch_size, num_workers, Progress(), *launched_process()
    )
    keep_class_names(Path(source.replace("{split}", split)), output)
    for fault in filter(None, [rows.left_out, *unreadable.values()]):
        typer.echo(fault, err=True)
    typer.echo(f"written to {output}")
    kept, named = shlex.quote(str(output)), shlex.quote(model)
    typer.echo(next_line(f'palindiff rank {kept} --caption "a caption" --by caption --model {named}'))
