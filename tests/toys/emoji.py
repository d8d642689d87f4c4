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


def write_emoji_set(folder):
    for place, split in enumerate(("train", "validation", "test", "composition")):
        rows = [row for style in STYLES for row in emoji_rows(split, style)]
        write_split(folder / split, rows, drawn_from=40 * place)
    return folder
