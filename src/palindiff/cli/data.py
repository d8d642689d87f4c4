"""`palindiff data`: draw the emoji set, and show what palindiff reads from a source of captioned images."""

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from palindiff.cli.output_option import JsonOption, next_line, print_json, print_table

if TYPE_CHECKING:
    from palindiff.data.rows import ImageSet

NUM_SHOWN_ROWS = 5
NUM_SHOWN_ERRORS = 5  # the most frequent errors of img2dataset
MAX_SHOWN_LETTERS = 200  # of one caption

app = typer.Typer(
    name="data",
    help="Draw the emoji set, or inspect your own captioned images.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("emoji", epilog="Example: palindiff data emoji --output data/emoji")
def emoji(
    output: Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder for the images.")],
    size_px: Annotated[int, typer.Option(min=8, max=1024, help="Side of each image in pixels.")] = 64,
) -> None:
    """Draw about 7,900 emoji in two styles, with captions, split by concept."""
    from palindiff.data.emoji import ATTRIBUTION, STYLES, build_emoji_set

    counts = build_emoji_set(output, size_px)
    rows = [(split, *(f"{of_split[style]:,}" for style in STYLES)) for split, of_split in counts.items()]
    print_table(f"images in {output}", ["split", *STYLES], rows)
    for style, source in ATTRIBUTION.items():
        typer.echo(f"{style}: {source}")
    typer.echo(next_line(f"palindiff train --recipe emoji-quick --set {shlex.quote(f'data.path={output}')}"))


@app.command("show", epilog="Example: palindiff data show 'cc3m/{00000..00331}.tar' --check-images")
def show(
    path: Annotated[str, typer.Argument(help="Folder, .tar, .parquet, pattern of these, or a Hub name.")],
    split: Annotated[str, typer.Option(help="Split to show; unsplit data are `train`.")] = "train",
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="Kind of source, such as webdataset; auto: detect it from the files.")
    ] = "auto",
    subset: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    captions_file: Annotated[
        str | None, typer.Option(help="File that lists images with captions, relative to PATH. Default: infer it.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Key or column of the image. Default: infer it.")] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Key or column of the captions. Default: infer it.")
    ] = None,
    check_images: Annotated[
        bool, typer.Option("--check-images", help="Decode every image to find damaged ones. Default: off.")
    ] = False,
    epochs: Annotated[float, typer.Option(min=0.001, help="Epochs to compute the number of training steps for.")] = 6,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step, for the number of training steps.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Print the number of images and captions, the first rows, rows left out and why, and the number of steps."""
    from palindiff.data.downloads import read_downloads
    from palindiff.data.sources import DataConfig, Kind, find_shards, open_images

    if kind not in (kinds := ("auto", *get_args(Kind))):
        raise typer.BadParameter(f"'{kind}' is not one of {', '.join(map(repr, kinds))}.", param_hint="'--kind'")
    given = {"path": path, "split": split, "kind": kind, "subset": subset, "check_images": check_images}
    columns = {"captions_file": captions_file, "image_column": image_column, "caption_column": caption_column}
    config = DataConfig.model_validate({**given, **columns, "on_bad": "skip"})
    summary = _summarize(open_images(config))
    num_steps = max(1, round(epochs * summary["num_images"] / batch_size))
    summary["training"] = {"epochs": epochs, "batch_size": batch_size, "num_steps": num_steps}
    if shards := find_shards(config):
        summary["shards"] = vars(read_downloads(shards))
    if as_json:
        print_json({"path": path, "split": split, **summary})
    else:
        _print_summary(f"{path}, {split}", summary)


def _summarize(images: "ImageSet") -> dict[str, Any]:
    texts = list(images.texts())
    counts = [len(captions) for captions, _ in texts]
    return {
        "num_images": len(images),
        "num_captions": sum(counts),
        "captions_per_image": {"min": min(counts), "mean": sum(counts) / len(counts), "max": max(counts)},
        "labels": Counter(label for _, label in texts if label is not None),
        "num_left_out": images.num_left_out,
        "left_out": images.left_out,
        "reasons": dict(images.reasons.most_common()),
        "first_left_out": images.first_faults,
        "fingerprint": images.fingerprint,
        "first_rows": [
            {"name": row.source.name, "captions": row.captions, "label": row.label, "fields": dict(row.fields)}
            for row in images[:NUM_SHOWN_ROWS]
        ],
    }


def _print_summary(title: str, summary: Mapping[str, Any]) -> None:
    each, training = summary["captions_per_image"], summary["training"]
    typer.echo(
        f"{summary['num_images']:,} images, {summary['num_captions']:,} captions "
        f"({each['min']} to {each['max']} an image, mean {each['mean']:.2f}), {len(summary['labels']):,} classes"
    )
    rows = []
    for row in summary["first_rows"]:
        captions = (shorten(caption, MAX_SHOWN_LETTERS, placeholder=" ...") for caption in row["captions"])
        rows.append((row["name"], row["label"] or "", "\n".join(captions)))
    print_table(f"first rows of {title}", ["image", "class", "captions"], rows)
    if "shards" in summary:
        lines = [(name[:MAX_SHOWN_LETTERS], f"{number:,}") for name, number in _shard_lines(summary)]
        print_table(f"shards of {title}", ["", "number"], lines)
    typer.echo("\n  ".join([summary["left_out"] or "No row was left out.", *summary["first_left_out"]]))
    typer.echo(
        f"{training['epochs']:g} epochs at batch {training['batch_size']:,}: "
        f"--set loop.num_steps={training['num_steps']} --set loop.batch_size={training['batch_size']}"
    )


def _shard_lines(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Count rows from the list that was downloaded to the pairs that can be used."""
    shards = summary["shards"]
    lines = [("shards", shards["num_shards"])]
    if shards["num_without_report"] < shards["num_shards"]:
        if shards["num_without_report"]:
            lines.append(("of them without a report: not finished", shards["num_without_report"]))
        lines += [("rows listed, in shards with a report", shards["num_listed"]), *shards["failed"].items()]
        lines += [(f"  {error}", number) for error, number in shards["errors"].most_common(NUM_SHOWN_ERRORS)]
        lines.append(("downloaded", shards["num_fetched"]))
    lines += [(f"left out: {reason}", number) for reason, number in summary["reasons"].items()]
    return [*lines, ("usable pairs", summary["num_images"])]
