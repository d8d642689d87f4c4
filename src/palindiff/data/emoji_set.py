"""Drawing the emoji set: a folder of images and captions for each split.

Here: which image goes where, and what its row says. Not here: names and splits (`emoji.py`), styles
(`emoji_styles.py`), reading the set (`folder.py`, as any other set).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image

from palindiff.atomic import atomic_folder
from palindiff.data.emoji import Concept, Emoji, group_concepts, read_emoji
from palindiff.data.emoji_styles import PackageStyle, Style, concept_split, list_styles
from palindiff.data.svg import SvgFault
from palindiff.data.svg_process import SvgProcess

DRAWN_AT_ONCE = 500  # images between two reports of progress

Row = dict[str, object]


@dataclass(frozen=True)
class EmojiSetReport:
    """What was drawn: images in each split and style; icons of each package that were not drawn, with the reasons."""

    counts: dict[str, dict[str, int]]
    not_drawn: dict[str, Counter[str]]


def build_emoji_set(
    output: Path,
    size_px: int = 80,
    emoji: Sequence[Emoji] | None = None,
    packages: Sequence[PackageStyle] = (),
    finish: Callable[[Path], object] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> EmojiSetReport:
    """Draw the set into `output/SPLIT/`, each with a `metadata.jsonl`; on any error nothing is written.

    `emoji` are those to draw, None for all; the splits are those of the whole set in both cases. `packages` are
    further styles: they add rows, and fields to every row, but change nothing else. `finish` may add files to the
    complete folder before it is moved to `output`. `progress` gets the number of images drawn and of all.

    Units:   size_px is the side of each square image.
    Raises:  ModuleNotFoundError if a package of the extra is missing; FileExistsError if `output` is not empty.
    """
    everything = read_emoji()
    concepts = group_concepts(everything)
    styles = list_styles(everything, concepts, packages)
    chosen = {each.characters for each in (everything if emoji is None else emoji)}
    jobs = [
        (style, concept, each)
        for concept, style in product(concepts, styles)
        for each in style.members(concept)
        if each.characters in chosen
    ]
    rows: dict[str, list[Row]] = defaultdict(list)
    not_drawn: dict[str, Counter[str]] = {package.name: Counter() for package in packages}
    with atomic_folder(output) as folder, SvgProcess() as renderer:
        for number, (style, concept, each) in enumerate(jobs, start=1):
            split = style.splits[concept.name]
            try:
                stem, image = style.draw(each, size_px, renderer)
                row = _save(folder / split, style, concept, each, stem, image)
                rows[split].append(row | (_further_fields(concept, each, style, styles) if packages else {}))
            except SvgFault as fault:
                not_drawn[style.name][str(fault)] += 1
            if number % DRAWN_AT_ONCE == 0 or number == len(jobs):
                progress(number, len(jobs))
        _write_texts(folder, rows, styles)
        if finish is not None:
            finish(folder)
    counts = {split: Counter(row["style"] for row in of_split) for split, of_split in sorted(rows.items())}
    return EmojiSetReport(
        {split: {style.name: count[style.name] for style in styles} for split, count in counts.items()}, not_drawn
    )


def _save(folder: Path, style: Style, concept: Concept, emoji: Emoji, stem: str, image: Image.Image) -> Row:
    """Save one image in its split's folder and return its row."""
    file_name = f"{style.name}/{stem}.png"
    (folder / style.name).mkdir(parents=True, exist_ok=True)
    image.save(folder / file_name)
    row: Row = {"file_name": file_name, "captions": emoji.captions(style.name), "style": style.name}
    return row | {"label": concept.name, "is_representative": emoji is style.representative(concept)}


def _further_fields(concept: Concept, emoji: Emoji, style: Style, styles: Sequence[Style]) -> Row:
    """Return the fields that only a set with icon packages has."""
    return {
        "all_captions": emoji.all_captions(style.name),
        "concept_split": concept_split(concept, styles),
        "license": style.credit,
    }


def _write_texts(folder: Path, rows: dict[str, list[Row]], styles: Sequence[Style]) -> None:
    for split, of_split in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_split)
        (folder / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
    attribution = "".join(f"{style.name}: {style.credit}\n" for style in styles)
    (folder / "ATTRIBUTION.txt").write_text(attribution, encoding="utf-8")
