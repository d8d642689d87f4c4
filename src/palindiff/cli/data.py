"""`palindiff data`: draw the emoji set, and show what palindiff reads of a source of captioned images."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from palindiff.cli.output_option import folded_table

if TYPE_CHECKING:
    from rich.console import Console

    from palindiff.data.sources import ImageSet

NUM_SHOWN_ROWS = 5
NUM_SHOWN_ERRORS = 5  # of img2dataset, the most frequent
MAX_SHOWN_LETTERS = 200  # of one caption

app = typer.Typer(
    name="data",
    help="Draw the emoji set, or look at images of your own as palindiff reads them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("emoji", epilog="Example: palindiff data emoji --output data/emoji")
def emoji(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="New or empty folder to draw into.")],
    size_px: Annotated[
        int, typer.Option("--size-px", min=8, max=1024, help="Side of each square image, pixels.")
    ] = 64,
) -> None:
    """Draw some 7,900 emoji in two styles, with captions, split by concept."""
    from rich.console import Console

    from palindiff.data.emoji import ATTRIBUTION, STYLES, build_emoji_set

    counts = build_emoji_set(output, size_px)
    table = folded_table(f"images below {output}", "split", *STYLES)
    for split, of_split in counts.items():
        table.add_row(split, *(f"{of_split[style]:,}" for style in STYLES))
    console = Console()
    console.print(table)
    for style, source in ATTRIBUTION.items():
        console.print(f"{style}: {source}", markup=False, highlight=False, soft_wrap=True)


@app.command("show", epilog="Example: palindiff data show 'cc3m/{00000..00331}.tar' --check-images")
def show(
    path: Annotated[str, typer.Argument(help="Folder, .tar, .parquet, pattern of these, or a Hub name.")],
    split: Annotated[str, typer.Option("--split", help="Split to show; what is not split is `train`.")] = "train",
    kind: Annotated[
        Literal["auto", "folder", "classes", "webdataset", "parquet", "hub"],
        typer.Option("--kind", help="What to take it for; auto finds out."),
    ] = "auto",
    subset: Annotated[str | None, typer.Option("--subset", help="Configuration of a Hub set.")] = None,
    image_column: Annotated[str | None, typer.Option("--image-column", help="Key or column of the image.")] = None,
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Key or column of the captions.")
    ] = None,
    check_images: Annotated[
        bool, typer.Option("--check-images", help="Decode every image, to find the damaged ones.")
    ] = False,
    epochs: Annotated[
        float, typer.Option("--epochs", min=0.001, help="How often training sees each image, to tell its steps.")
    ] = 6,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images of one step, likewise.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print how many images and captions are read, the first rows, what is left out and why, and steps to train."""
    from palindiff.data.downloads import read_downloads
    from palindiff.data.sources import DataConfig, find_shards, open_images

    given = {"path": path, "split": split, "kind": kind, "subset": subset, "check_images": check_images}
    columns = {"image_column": image_column, "caption_column": caption_column}
    config = DataConfig.model_validate({**given, **columns, "on_bad": "skip"})
    told = _describe(open_images(config))
    told["training"] = {"epochs": epochs, "batch_size": batch_size, "num_steps": _steps(told, epochs, batch_size)}
    if shards := find_shards(config):
        told["shards"] = vars(read_downloads(shards))
    if as_json:
        typer.echo(json.dumps({"path": path, "split": split, **told}, ensure_ascii=False, indent=2))
    else:
        _print(f"{path}, {split}", told)


def _steps(told: Mapping[str, Any], epochs: float, batch_size: int) -> int:
    return max(1, round(epochs * told["num_images"] / batch_size))


def _describe(images: "ImageSet") -> dict[str, Any]:
    counts: list[int] = []
    labels: Counter[str] = Counter()
    for captions, label in images.texts():
        counts.append(len(captions))
        labels.update([label] if label is not None else [])
    first = [
        {"name": row.source.name, "captions": row.captions, "label": row.label, "fields": dict(row.fields)}
        for row in images[:NUM_SHOWN_ROWS]
    ]
    return {
        "num_images": len(images),
        "num_captions": sum(counts),
        "captions_per_image": {"min": min(counts), "mean": sum(counts) / len(counts), "max": max(counts)},
        "labels": labels,
        "num_left_out": images.num_left_out,
        "left_out": images.left_out,
        "reasons": dict(images.reasons.most_common()),
        "fingerprint": images.fingerprint,
        "first_rows": first,
    }


def _print(title: str, told: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    each = told["captions_per_image"]
    console = Console()
    console.print(
        f"{told['num_images']:,} images, {told['num_captions']:,} captions "
        f"({each['min']} to {each['max']} an image, mean {each['mean']:.2f}), {len(told['labels']):,} classes"
    )
    table = folded_table(f"first rows of {title}", "image", "class", "captions")
    for row in told["first_rows"]:
        captions = "\n".join(shorten(caption, MAX_SHOWN_LETTERS, placeholder=" ...") for caption in row["captions"])
        table.add_row(escape(row["name"]), escape(row["label"] or ""), escape(captions))
    console.print(table)
    if "shards" in told:
        _print_shards(console, title, told)
    training = told["training"]
    said = [
        told["left_out"] or "No row was left out.",
        f"{training['epochs']:g} epochs at batch {training['batch_size']:,}: "
        f"--set loop.num_steps={training['num_steps']} --set loop.batch_size={training['batch_size']}",
    ]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


def _print_shards(console: "Console", title: str, told: Mapping[str, Any]) -> None:
    """Follow the rows from the list that was downloaded to the pairs that can be used."""
    from rich.markup import escape

    shards = told["shards"]
    has_report = shards["num_without_report"] < shards["num_shards"]
    lines = [("shards", shards["num_shards"])]
    if has_report and shards["num_without_report"]:
        lines.append(("of them without a report: not finished", shards["num_without_report"]))
    if has_report:
        lines += [("rows listed, in shards with a report", shards["num_listed"]), *shards["failed"].items()]
        lines += [(f"  {error}", number) for error, number in Counter(shards["errors"]).most_common(NUM_SHOWN_ERRORS)]
        lines.append(("downloaded", shards["num_fetched"]))
    lines += [*((f"left out: {reason}", number) for reason, number in told["reasons"].items())]
    lines.append(("usable pairs", told["num_images"]))
    table = folded_table(f"shards of {title}", "", "number")
    for name, number in lines:
        table.add_row(escape(name[:MAX_SHOWN_LETTERS]), f"{number:,}")
    console.print(table)
