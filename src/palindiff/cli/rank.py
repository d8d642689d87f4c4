"""`palindiff rank`: find the captions of images, or the images of captions."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from palindiff.cli.inputs import (
    IMAGES_AT_ONCE,
    ImagesArgument,
    OnBadOption,
    check_texts,
    find_images,
    read_lines,
    readable_images,
)
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.naming_option import GuidanceOption, SeedOption, StepsOption, TopOption
from palindiff.cli.output_option import DryRunOption, JsonOption, folded_table, print_count, print_json, print_plan
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS

Ranked = list[tuple[str, float]]


def rank(
    images: ImagesArgument,
    captions: Annotated[
        list[str] | None, typer.Option("--caption", help="A caption to compare with. Repeatable.")
    ] = None,
    captions_file: Annotated[
        Path | None, typer.Option("--captions", metavar="FILE", help="Text file with more captions, one a line.")
    ] = None,
    by: Annotated[
        Literal["image", "caption"],
        typer.Option("--by", help="image: each image's best captions; caption: each caption's best images."),
    ] = "image",
    model: ModelOption = DEFAULT_MODEL,
    top: TopOption = 5,
    steps: StepsOption = NAMING_STEPS,
    guidance_scale: GuidanceOption = NAMING_GUIDANCE_SCALE,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    on_bad: OnBadOption = "refuse",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Rank captions for images, or images for captions, by the cosine of their embeddings.

    \b
    Examples:
      palindiff rank apple.png --caption "a red apple" --caption "a blue car"
      palindiff rank photos --caption "a dog on a beach" --by caption --top 10
      palindiff rank photos more/cat.jpg --captions captions.txt --model runs/first/checkpoint --json
    """
    texts = [*(captions or []), *read_lines(captions_file, "--caption")]
    check_texts(texts, "caption", "--caption or --captions")
    files = find_images(images)
    walk = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    settings = {"model": model, **walk}
    if dry_run:
        print_plan(settings | {"by": by, "captions": texts, "images": [str(file) for file in files]}, as_json)
        return
    files = readable_images(files, on_bad)
    pipeline = open_model(model, device)
    counted = {"batch_size": IMAGES_AT_ONCE, "tell": lambda done: print_count(done, len(files))}
    cosines = pipeline.rank(files, texts, **walk, **counted)
    names = [str(file) for file in files]
    asked, offered = (names, texts) if by == "image" else (texts, names)
    best = (cosines if by == "image" else cosines.T).topk(min(top, len(offered)))
    answers: list[Ranked] = [
        [(offered[i], cosine) for i, cosine in zip(places, values, strict=True)]
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    kind = "caption" if by == "image" else "image"
    if as_json:
        told = [
            {by: each, f"{kind}s": [{kind: name, "cosine": cosine} for name, cosine in ranked]}
            for each, ranked in zip(asked, answers, strict=True)
        ]
        print_json(settings | {"by": by, "results": told})
    else:
        _print(by, kind, asked, answers)


def _print(by: str, kind: str, asked: list[str], answers: list[Ranked]) -> None:
    from rich.console import Console
    from rich.markup import escape

    table = folded_table(f"best {kind}s of each {by}", by, kind, "cosine")
    for each, ranked in zip(asked, answers, strict=True):
        for place, (name, cosine) in enumerate(ranked):
            is_last = place == len(ranked) - 1
            table.add_row(escape(each) if place == 0 else "", escape(name), f"{cosine:.3f}", end_section=is_last)
    Console().print(table)
