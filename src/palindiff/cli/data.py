"""`palindiff data`: draw emoji and icons, and show what palindiff reads from a source of captioned images."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from palindiff.atomic import check_is_free
from palindiff.cli.output_option import JsonOption, next_line, print_count, print_json, print_table

if TYPE_CHECKING:
    from palindiff.data.emoji_styles import PackageStyle
    from palindiff.data.rows import ImageSet

NUM_SHOWN_ROWS = 5
NUM_SHOWN_ERRORS = 5  # the most frequent errors of img2dataset
MAX_SHOWN_LETTERS = 200  # of one caption
PAIRS_FILE = "nearest.json"

OutputOption = Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder for the images.")]
SizeOption = Annotated[int, typer.Option(min=8, max=1024, help="Side of each image in pixels.")]

app = typer.Typer(
    name="data",
    help="Draw emoji or icons, or inspect your own captioned images.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("emoji", epilog="Example: palindiff data emoji --icons node_modules/@iconify-json --output data/emoji")
def emoji(
    output: OutputOption,
    size_px: SizeOption = 80,
    icons: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Icon package in Iconify's JSON format, or a folder of packages: more styles, such as noto. "
            "Repeatable.",
            show_default="none: two styles",
        ),
    ] = None,
) -> None:
    """Draw about 7,900 emoji in two styles, and in those of icon packages, with captions, split by concept."""
    from palindiff.data.emoji import read_emoji
    from palindiff.data.emoji_set import build_emoji_set
    from palindiff.data.emoji_styles import find_style_packages, read_package_style

    check_is_free(output)
    found, passed = find_style_packages(icons or [])
    everything = read_emoji() if found else []
    packages = [read_package_style(info, everything) for info in found]
    finish = _write_similar_pairs if packages else None
    progress = partial(print_count, "images drawn")
    report = build_emoji_set(output, size_px, packages=packages, finish=finish, progress=progress)
    _print_counts(output, report.counts)
    if packages:
        _print_packages(packages, report.not_drawn)
        typer.echo(f"the held-out images most similar to training images: {output / PAIRS_FILE}")
    if passed:
        names = shorten(", ".join(info.prefix for info in passed), MAX_SHOWN_LETTERS, placeholder=" ...")
        typer.echo(f"skipped, not known as emoji styles: {names}")
    typer.echo((output / "ATTRIBUTION.txt").read_text(encoding="utf-8"), nl=False)
    typer.echo(next_line(f"palindiff train --recipe emoji-quick --set {shlex.quote(f'data.path={output}')}"))


@app.command("icons", epilog="Example: palindiff data icons node_modules/@iconify-json/mdi --output data/mdi")
def icons(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Icon package in Iconify's JSON format, or a folder of packages.")
    ],
    output: OutputOption,
    size_px: SizeOption = 80,
) -> None:
    """Draw icons with their names as captions, split by name."""
    from palindiff.data.icon_folder import build_icon_folder
    from palindiff.data.icon_sets import find_icon_sets

    report = build_icon_folder(output, find_icon_sets(folder), size_px)
    _print_counts(output, report.counts)
    for prefix, reasons in report.not_drawn.items():
        typer.echo(f"{prefix}: {_dropped(reasons)} dropped")
    typer.echo((output / "ATTRIBUTION.txt").read_text(encoding="utf-8"), nl=False)
    typer.echo(next_line(f"palindiff data show {shlex.quote(str(output))}"))


def _print_counts(output: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    styles = next(iter(counts.values()))
    rows = [(style, *(f"{of_split[style]:,}" for of_split in counts.values())) for style in styles]
    print_table(f"images in {output}", ["style", *counts], rows)


def _print_packages(packages: "Sequence[PackageStyle]", not_drawn: Mapping[str, Counter[str]]) -> None:
    rows = []
    for each in packages:
        drawn = len(each.matches.icon_of) - not_drawn[each.name].total()
        dropped = _dropped(each.matches.num_dropped + not_drawn[each.name])
        rows.append((each.name, f"{drawn:,}", f"{each.matches.num_unmatched:,}", dropped))
    print_table("icons of each package", ["style", "drawn", "not matched", "dropped"], rows)


def _dropped(reasons: Counter[str]) -> str:
    """Return a number of icons, with the reasons in brackets."""
    each = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
    return f"{reasons.total():,}" + (f" ({each})" if each else "")


def _write_similar_pairs(folder: Path) -> None:
    from palindiff.evaluation.near_duplicates import similar_pairs

    pairs = json.dumps(similar_pairs(folder), ensure_ascii=False, indent=1)
    (folder / PAIRS_FILE).write_text(pairs, encoding="utf-8")


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
