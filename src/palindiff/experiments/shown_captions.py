"""The captions whose generated images are shown, on the demo page and in the gallery: spread evenly, none hand-picked.

Here: the choice. Not here: generation, the page (`demo_groups.py`) and the gallery (`scripts/gallery.py`).
"""

from pathlib import Path

from palindiff.data.emoji import STYLE_WORDS, STYLES
from palindiff.experiments.emoji_subsets import SPLITS, concept_images, evenly, has_split

FREE_WORDING = (
    "a flat emoji of a blue apple",
    "an outlined emoji of a smiling face with a hat",
    "a flat emoji of a green heart on fire",
    "the flag of an island in the ocean",
    "an outlined emoji of a sad cat",
    "a flat emoji of a yellow car",
    "a red circle",
    "an outlined emoji of a doctor with dark skin tone",
)
FREE = "free"


def shown_captions(data_dir: Path, number: int) -> dict[str, list[str]]:
    """Choose captions of seen concepts, unseen compositions and unseen concepts, half in each style; free wording.

    A group whose split the set lacks is empty.
    """
    found: dict[str, list[str]] = {}
    for group, split in SPLITS.items():
        styles = STYLES if has_split(data_dir, split) else ()
        rows = [row for style in styles for row in evenly(concept_images(data_dir, split, style), number // 2)]
        found[group] = [row.captions[0] for row in rows]
    return found | {FREE: list(FREE_WORDING)}


def style_of(caption: str) -> str | None:
    """Return the style that a caption asks for; None if it names none."""
    return next((style for style, words in STYLE_WORDS.items() if caption.startswith(f"{words} of ")), None)


def without_style(caption: str) -> str:
    """Return what a caption names, without the words for its style: "a red heart"."""
    return caption.partition(" emoji of ")[2] or caption
