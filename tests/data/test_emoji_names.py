"""emoji_names.py: which icon shows which emoji, by code point and by name."""

import pytest

from palindiff.data.emoji import Emoji, read_emoji
from palindiff.data.emoji_names import match_icons
from palindiff.data.icon_sets import read_icon_set, read_info
from toys.icon_sets import write_package

for package in ("emoji", "resvg_py"):
    pytest.importorskip(package, reason=f"needs the extra `emoji`, of which {package} is a part")

EVERYTHING = read_emoji()


def the(name, tone=""):
    return next(each for each in EVERYTHING if (each.name, each.tone) == (name, tone))


@pytest.fixture
def match(tmp_path):
    """Match a package of some icons -> IconMatches, and the name of each matched emoji's icon by the emoji's name."""

    def run(*names, **package):
        folder = write_package(tmp_path / "set", icons=package.pop("icons", names), **package)
        found = match_icons(read_icon_set(read_info(folder)), EVERYTHING)
        names_of = {each.characters: f"{each.name} {each.tone}".strip() for each in EVERYTHING}
        return found, {names_of[letters]: icon.names[0] for letters, icon in found.icon_of.items()}

    return run


def test_code_points_decide_where_there_are_some(match):
    characters = {
        "1f44c": "grinning-face",  # whatever its name says
        "0031-20e3": "one",  # without variation selector, with leading zeros
        "2764-FE0F": "heart",
        "e001": "private",
        "1f600": "missing",
    }
    found, names = match("grinning-face", "one", "heart", "private", "red-apple", characters=characters)
    assert names == {"OK hand": "grinning-face", "keycap 1": "one", "red heart": "heart"}
    assert (found.num_unmatched, found.num_dropped.total()) == (2, 0)  # private, and red-apple without code point


@pytest.mark.parametrize(
    ("icon", "name"),
    [
        ("ok-hand", "OK hand"),
        ("ok-hand-medium-skin-tone", "OK hand medium"),
        ("ok-hand-medium-dark", "OK hand medium-dark"),
        ("woman-dark-skin-tone-white-hair", "woman white hair dark"),
        ("flag-for-france", "France"),
        ("flag-cote-divoire", "Côte d’Ivoire"),
        ("turkey", "turkey"),  # the bird; flags are named so
        ("flag-turkiye", "Türkiye"),
        ("pinata", "piñata"),
        ("a-button-blood-type", "A button (blood type)"),
        ("direct-hit", "bullseye"),  # the Unicode name of its character
        ("pouting-face", "enraged face"),  # so too; it is an alias of the emoji "person pouting"
        ("raven", "black bird"),  # an alias
    ],
)
def test_a_name_is_that_of_cldr_or_of_unicode_or_an_alias(icon, name, match):
    assert match(icon)[1] == {name: icon}


@pytest.mark.parametrize("icon", ["france", "ok-hands", "handok", "dark-skin-tone", "letter-a"])
def test_no_other_name_matches(icon, match):
    found, names = match(icon)
    assert (names, found.num_unmatched) == ({}, 1)


def test_further_names_of_an_icon_match_too(match):
    found, names = match("hand", aliases={"fine": {"parent": "hand"}, "ok-hand": {"parent": "hand"}})
    assert (names, found.num_unmatched) == ({"OK hand": "hand"}, 0)


def test_an_icon_shows_one_emoji_the_first_of_its_best_names(match):
    """As in noto, where `up-button` is a further name of the upwards button, and the CLDR name of another emoji."""
    assert match("upwards-button", aliases={"up-button": {"parent": "upwards-button"}})[1] == {
        "upwards button": "upwards-button"
    }


def test_of_several_icons_of_an_emoji_the_best_name_wins(match):
    found, names = match("raven", "black-bird", "crow")
    assert names == {"black bird": "black-bird"}
    assert found.num_dropped == {"second icon of an emoji": 2}


def test_a_name_that_several_emoji_share_matches_none(tmp_path):
    twins = [Emoji("x", "one", "", ("same",)), Emoji("y", "two", "", ("same", "own"))]
    icons = read_icon_set(read_info(write_package(tmp_path / "set", icons=["same", "own"])))
    assert {letters: icon.names for letters, icon in match_icons(icons, twins).icon_of.items()} == {"y": ("own",)}


def test_hidden_icons_are_dropped_and_counted(match):
    found, names = match(icons={"ok-hand": {"hidden": True}, "eyes": {}})
    assert (names, found.num_unmatched, found.num_dropped) == ({"eyes": "eyes"}, 0, {"hidden": 1})


def test_turned_aliases_are_icons_of_their_own(match):
    aliases = {"backhand-index-pointing-right": {"parent": "backhand-index-pointing-left", "hFlip": True}}
    found, names = match("backhand-index-pointing-left", aliases=aliases)
    assert set(names) == {"backhand index pointing left", "backhand index pointing right"}
    assert found.icon_of[the("backhand index pointing right").characters].is_mirrored


def test_every_icon_is_counted_once(match):
    icons = {"ok-hand": {}, "raven": {}, "crow": {}, "eyes": {"hidden": True}, "nothing": {}, "none": {"hidden": True}}
    found, _ = match(icons=icons)
    assert len(found.icon_of) + found.num_unmatched + found.num_dropped.total() == len(icons)
    assert found.num_dropped == {"second icon of an emoji": 1, "hidden": 1}
