"""Write docs/gallery.md: sheets of generated images with fixed seeds, none hand-picked, and how they were made.

Run: `python scripts/gallery.py --data data/emoji [--model emoji] [--output docs]`
"""

import argparse
from pathlib import Path

from palindiff.atomic import atomic_text
from palindiff.cli.model_option import open_model
from palindiff.evaluation.sheets import contact_sheet
from palindiff.experiments.emoji_subsets import COMPOSITION, SEEN, UNSEEN
from palindiff.experiments.shown_captions import FREE, shown_captions
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, GENERATION_STEPS
from palindiff.inference.generation import generate_images
from palindiff.inference.pipeline import PalindiffPipeline

NUM_CAPTIONS = 16  # of each sheet
COLUMNS, MIN_CELL_PX, COLOURS, MAX_BYTES = 8, 64, 256, 150_000
SHEETS = {
    SEEN: ("Concepts in training", "Concept and style are part of the training."),
    COMPOSITION: ("Known concepts in a new style", "Training has the concept, but never in the style asked for."),
    UNSEEN: ("Concepts not in training", "Training has neither an image nor the name of the concept."),
    FREE: ("Free wording", "Captions that are not the name of an emoji."),
}
OPENING = """# Gallery

After reading this page you know what images to expect of the model `{model}`, good and bad. Make the page again:

```
python scripts/gallery.py --data data/emoji --model {model}
```

No image is hand-picked. Captions are spread evenly over each split of the [emoji set](data.md#the-emoji-set), half of
them in each of the styles flat and outlined. Caption i of the page, counted from 0, is generated once, from seed i, at
guidance scale {guidance_scale:g} with {num_steps} DDIM steps, and shown. Images are squares of {image_size_px} pixels.
A sheet is reduced to {colours} colours.
"""


def write_gallery(pipeline: PalindiffPipeline, model: str, data_dir: Path, output: Path) -> Path:
    """Write `gallery.md` and a sheet for each group of captions, of which empty ones are left out.

    Raises: ValueError if a sheet is too large; as `shown_captions`.
    """
    parts, first_seed = [_opening(pipeline, model)], 0
    (output / "gallery").mkdir(parents=True, exist_ok=True)
    for group, captions in shown_captions(data_dir, NUM_CAPTIONS).items():
        if not captions:
            continue
        seeds = range(first_seed, first_seed + len(captions))
        title, note = SHEETS[group]
        sheet = output / "gallery" / f"{group}.png"
        images = generate_images(pipeline, captions, seeds)
        cell_px = max(pipeline.image_size_px, MIN_CELL_PX)
        contact_sheet(images, captions, COLUMNS, cell_px).quantize(COLOURS).save(sheet, optimize=True)
        if (num_bytes := sheet.stat().st_size) > MAX_BYTES:
            raise ValueError(f"`{sheet}` has {num_bytes:,} bytes. Expected at most {MAX_BYTES:,}. Use fewer captions.")
        parts.append(f"## {title}\n\n{note} Seeds {seeds[0]} to {seeds[-1]}.\n\n![{title}](gallery/{sheet.name})\n")
        first_seed += len(captions)
    page = output / "gallery.md"
    atomic_text(page, "\n".join(parts))
    return page


def _opening(pipeline: PalindiffPipeline, model: str) -> str:
    return OPENING.format(
        model=model,
        guidance_scale=GENERATION_GUIDANCE_SCALE,
        num_steps=GENERATION_STEPS,
        image_size_px=pipeline.image_size_px,
        colours=COLOURS,
    )


def main() -> None:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="bundled model, or a checkpoint folder (default: emoji)")
    parser.add_argument("--data", type=Path, required=True, help="folder that `palindiff data emoji` wrote")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the page (default: docs)")
    args = parser.parse_args()
    print(write_gallery(open_model(args.model), Path(args.model).name, args.data, args.output))


if __name__ == "__main__":
    main()
