"""`palindiff rank`: image-text retrieval, the captions of images or the images of captions."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from palindiff.cli.inputs import ImagesArgument, OnBadOption, open_inputs, read_lines
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_embedder
from palindiff.cli.naming_option import GuidanceOption, SeedOption, StepsOption, TopOption, best_answers, options_of
from palindiff.cli.output_option import DryRunOption, JsonOption, print_json, print_plan, print_table
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.labels import check_texts


def rank(
    images: ImagesArgument,
    captions: Annotated[
        list[str] | None, typer.Option("--caption", help="Caption to compare with. Repeatable.")
    ] = None,
    captions_file: Annotated[
        Path | None, typer.Option("--captions", metavar="FILE", help="Text file with more captions, one per line.")
    ] = None,
    by: Annotated[
        Literal["image", "caption"],
        typer.Option("--by", help="image: best captions of each image; caption: best images of each caption."),
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

    The model is a palindiff checkpoint or a CLIP, which takes no steps, guidance scale or seed.

    \b
    Examples:
      palindiff rank apple.png --caption "a red apple" --caption "a blue car"
      palindiff rank photos --caption "a dog on a beach" --by caption --top 10
      palindiff rank photos more/cat.jpg --captions captions.txt --model runs/first/checkpoint --json
    """
    texts = [*(captions or []), *read_lines(captions_file, "--caption")]
    check_texts(texts, "caption", "Use --caption or --captions.")
    given = open_inputs(images, on_bad)
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    settings = {"model": model, **options, "by": by}
    if dry_run:
        print_plan(settings | {"captions": texts, "images": given.names}, as_json)
        return
    embedder = open_embedder(model, device)
    options = options_of(embedder, model, options)
    cosines = given.embed(embedder, options) @ embedder.encode_text(texts).T
    settings = {"model": model, **options, "by": by}
    names = given.names
    kind, queries, offered = ("caption", names, texts) if by == "image" else ("image", texts, names)
    ranked = best_answers(cosines if by == "image" else cosines.T, offered, top)
    answers = list(zip(queries, ranked, strict=True))
    if as_json:
        results = [
            {by: query, f"{kind}s": [{kind: name, "cosine": cosine} for name, cosine in best]}
            for query, best in answers
        ]
        print_json(settings | {"results": results})
    else:
        sections = [
            [(query if place == 0 else "", name, f"{cosine:.3f}") for place, (name, cosine) in enumerate(best)]
            for query, best in answers
        ]
        print_table(f"best {kind}s of each {by}", [by, kind, "cosine"], *sections)
