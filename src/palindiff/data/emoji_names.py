"""Which icon of a package shows which emoji.

Here: matching by code point, and by the names that packages without code points give their icons. Not here: reading
the package (`icon_sets.py`).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from palindiff.data.emoji import Emoji
from palindiff.data.icon_sets import Icon, IconSet

_VARIATION_SELECTOR = 0xFE0F
_UNMARKED = str.maketrans({"&": " and ", "’": "", "'": ""})


@dataclass(frozen=True)
class IconMatches:
    """The icon of each emoji that a package has, and how many of its icons are not used."""

    icon_of: dict[str, Icon]  # an emoji's characters -> icon
    num_unmatched: int  # icons that show no emoji, as far as code points or names tell
    num_dropped: Counter[str]  # icons that show one, but are not drawn: reason -> number


def match_icons(icons: IconSet, emoji: Sequence[Emoji]) -> IconMatches:
    """Find the icon of each emoji: by code point where the package states code points, else by name.

    A name counts if it is exactly the emoji's CLDR name, else the Unicode name of its character, else an alias of the
    package `emoji`. Names that several emoji share at that rank count for none. An icon of several names shows the
    emoji of the best of them, the first of equals. Variation selectors are ignored.

    Source: ours.
    """
    found: list[tuple[int, str, Icon]] = []  # rank, characters, icon
    if icons.characters:
        characters = {_code_points(each.characters): each.characters for each in emoji}
        by_name = icons.by_name
        for points, name in icons.characters.items():
            letters = characters.get(tuple(point for point in points if point != _VARIATION_SELECTOR))
            if letters is not None and name in by_name:
                found.append((0, letters, by_name[name]))
    else:
        known = _emoji_by_name(emoji)
        for icon in icons.icons:
            if matched := [known[name] for name in icon.names if name in known]:
                rank, letters = min(matched, key=lambda each: each[0])
                found.append((rank, letters, icon))
    icon_of: dict[str, Icon] = {}
    for _, letters, icon in sorted(found, key=lambda each: each[0]):
        if not icon.is_hidden:
            icon_of.setdefault(letters, icon)
    shown, matched_icons = set(icon_of.values()), {icon for _, _, icon in found}
    unused = [icon for icon in icons.icons if icon in matched_icons and icon not in shown]
    reasons = Counter("hidden" if icon.is_hidden else "second icon of an emoji" for icon in unused)
    return IconMatches(icon_of, len(icons.icons) - len(matched_icons), reasons)


def _code_points(characters: str) -> tuple[int, ...]:
    return tuple(ord(letter) for letter in characters if ord(letter) != _VARIATION_SELECTOR)


def _emoji_by_name(emoji: Sequence[Emoji]) -> dict[str, tuple[int, str]]:
    """List the names under which packages keep emoji: name -> rank of the kind of name, and characters."""
    untoned = {each.name: each for each in emoji if not each.tone}
    found: dict[str, tuple[int, str]] = {}
    for rank, names_of in enumerate((_cldr_names, _unicode_names, _alias_names)):
        claims: dict[str, set[str]] = {}
        for each in emoji:
            for name in names_of(each, untoned.get(each.name, each)):
                claims.setdefault(name, set()).add(each.characters)
        for name, claimed in claims.items():
            if len(claimed) == 1:
                found.setdefault(name, (rank, claimed.pop()))
    return found


def _cldr_names(emoji: Emoji, untoned: Emoji) -> Iterator[str]:
    return _with_tone([emoji.name], emoji)


def _unicode_names(emoji: Emoji, untoned: Emoji) -> Iterator[str]:
    points = _code_points(untoned.characters)
    name = unicodedata.name(chr(points[0]), "") if len(points) == 1 else ""
    return _with_tone([name] if name else [], emoji)


def _alias_names(emoji: Emoji, untoned: Emoji) -> Iterator[str]:
    return _with_tone(untoned.aliases, emoji)


def _with_tone(names: Iterable[str], emoji: Emoji) -> Iterator[str]:
    """Write names as packages do: `ok-hand-dark-skin-tone` or `ok-hand-dark`, `flag-for-france` or `flag-france`."""
    for name in map(_slug, names):
        if emoji.is_flag:
            yield from (f"{flag}{name}" for flag in ("flag-", "flag-for-", "flag-for-flag-"))
        elif emoji.tone:
            tones = "-".join(f"{tone}-skin-tone" for tone in emoji.tone.split(" and "))
            who, _, look = name.partition("-")  # CLDR: "woman: dark skin tone, blond hair"
            yield from (f"{name}-{emoji.tone}", f"{name}-{tones}", f"{who}-{tones}-{look}")
        else:
            yield name


def _slug(name: str) -> str:
    """`Piñata` -> "pinata": lower case without accents, with a hyphen for each run of other signs."""
    plain = unicodedata.normalize("NFKD", name.translate(_UNMARKED)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
