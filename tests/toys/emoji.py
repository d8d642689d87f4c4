"""The emoji set's layout at toy size: two styles, a dozen unseen concepts, 16 px drawings."""

from palindiff.data.emoji import STYLES
from toys.recipe import write_split

NUM_CONCEPTS = {"train": 12, "validation": 4, "test": 12}
SCRIPT = "<script>alert('a')</script>"  # a name that must never become part of a page


def emoji_rows(split, style):
    """A neutral image of each concept, and for each third concept another that does not stand for it."""
    letter, rows = {"train": "a", "validation": "v", "test": "t", "composition": "c"}[split], []
    for number in range(NUM_CONCEPTS.get(split, 3)):
        name = f"{letter}{chr(97 + number)}" + (SCRIPT if split == "test" and number == 11 else "")
        for is_representative in (True, False)[: 1 + (number % 3 == 0)]:
            file_name = f"{style}/{number}{'' if is_representative else '-tone'}.png"
            captions = [f"{style} {name}{'' if is_representative else ' x'}", f"{name} again"]
            rows.append({"file_name": file_name, "captions": captions, "style": style, "label": name,
                         "is_representative": is_representative})  # fmt: skip
    return rows


def vendor_rows():
    """Three concepts of training, one of them twice; one that is unseen, and a flag."""
    names = [("aa", "train", True), ("ab", "train", True), ("ab", "train", False), ("ac", "train", True),
             ("ta", "test", True), ("x of the flag of Chad", "train", True)]  # fmt: skip
    return [
        {"file_name": f"emojione/{number}.png", "captions": [f"emojione {name}"], "style": "emojione",
         "label": name, "is_representative": is_representative, "concept_split": split,
         "license": "Emoji One, CC-BY-4.0"}
        for number, (name, split, is_representative) in enumerate(names)
    ]  # fmt: skip


def write_vendor(folder, rows=None, drawn_from=200):
    """Add the split of an unseen vendor to a set."""
    write_split(folder / "vendor", vendor_rows() if rows is None else rows, drawn_from)
    return folder


def write_emoji_set(folder):
    for place, split in enumerate(("train", "validation", "test", "composition")):
        rows = [row for style in STYLES for row in emoji_rows(split, style)]
        write_split(folder / split, rows, drawn_from=40 * place)
    return folder
