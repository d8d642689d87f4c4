"""An icon set as captioned images: a folder for each split, in which names are captions.

Here: splits and captions of icons of any set. Not here: reading a set (`icon_sets.py`), emoji with their concepts
(`emoji_set.py`), reading the folder (`folder.py`, as any other set).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palindiff.atomic import atomic_folder
from palindiff.data.icon_sets import Icon, IconInfo, IconSet, read_icon_set
from palindiff.data.svg import SvgFault
from palindiff.data.svg_process import SvgProcess
from palindiff.seeds import hash_63_bits

SPLIT_SHARES = {"test": 0.1, "validation": 0.05}  # of the names; the rest is train


@dataclass(frozen=True)
class IconFolderReport:
    """What was drawn: images in each split and set, and icons of each set that were not drawn, with the reasons."""

    counts: dict[str, dict[str, int]]
    not_drawn: dict[str, Counter[str]]


def build_icon_folder(output: Path, sets: Sequence[IconInfo], size_px: int = 80) -> IconFolderReport:
    """Draw icon sets into `output/SPLIT/PREFIX/`, each split with a `metadata.jsonl`; on any error nothing is written.

    Icons in the current text colour become black on white. Hidden icons, which sets keep for old programs only, are
    left out.

    Units:   size_px is the side of each square image.
    Raises:  ModuleNotFoundError if the renderer is missing; FileExistsError if `output` is not empty; ValueError or
        FileNotFoundError as `read_icon_set`, or if two sets have one prefix or no icon can be drawn.
    """
    if repeated := [prefix for prefix, number in Counter(info.prefix for info in sets).items() if number > 1]:
        raise ValueError(f"Two packages have the prefix `{repeated[0]}`. Expected each set once. Remove one of them.")
    rows: dict[str, list[dict[str, object]]] = defaultdict(list)
    not_drawn: dict[str, Counter[str]] = {info.prefix: Counter() for info in sets}
    with atomic_folder(output) as folder, SvgProcess() as renderer:
        for info in sets:
            icons = read_icon_set(info)
            for icon in icons.icons:
                split = split_of(base_name(icon, icons))
                try:
                    row = _draw(folder / split, info, icon, size_px, renderer)
                except SvgFault as fault:
                    not_drawn[info.prefix][str(fault)] += 1
                    continue
                rows[split].append(row | {"label": base_name(icon, icons)})
        if not rows:
            raise ValueError(
                f"`{sets[0].folder}` has no icon that can be drawn. Expected one or more. Use another set."
            )
        for split, of_split in rows.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_split)
            (folder / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
        (folder / "ATTRIBUTION.txt").write_text("".join(f"{info.prefix}: {info.credit}\n" for info in sets), "utf-8")
    counts = {split: Counter(row["style"] for row in of_split) for split, of_split in sorted(rows.items())}
    return IconFolderReport(
        {split: {info.prefix: count[info.prefix] for info in sets} for split, count in counts.items()}, not_drawn
    )


def split_of(name: str) -> str:
    """Assign a name its split by its hash, so that it is the same in every set."""
    place, end = hash_63_bits(f"palindiff icon {name}") / 2**63, 0.0
    for split, share in SPLIT_SHARES.items():
        end += share
        if place < end:
            return split
    return "train"


def base_name(icon: Icon, icons: IconSet) -> str:
    """Return what variants of an icon share: the name of its body, without a prefix or suffix that the set declares.

    Turned copies and weights of one icon are near duplicates, so they must not be in two splits.
    """
    name = icon.parent
    for prefix in sorted(icons.prefixes, key=len, reverse=True):
        if name.startswith(f"{prefix}-"):
            name = name.removeprefix(f"{prefix}-")
            break
    for suffix in sorted(icons.suffixes, key=len, reverse=True):
        if name.endswith(f"-{suffix}"):
            return name.removesuffix(f"-{suffix}")
    return name


def _draw(folder: Path, info: IconInfo, icon: Icon, size_px: int, renderer: SvgProcess) -> dict[str, object]:
    """Draw one icon into its split's folder and return its row.

    Raises: SvgFault if it is not one that is drawn.
    """
    if icon.is_hidden:
        raise SvgFault("hidden")
    image = renderer.draw(icon.svg, size_px)
    file_name = f"{info.prefix}/{icon.names[0]}.png"
    (folder / info.prefix).mkdir(parents=True, exist_ok=True)
    image.save(folder / file_name)
    captions = [name.replace("-", " ") for name in icon.names]
    return {"file_name": file_name, "captions": captions, "style": info.prefix, "license": info.credit}
