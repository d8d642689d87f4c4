"""What to expect of a section of the demo page: one plain sentence, with the rate that was measured.

Here: sentences from rows and from counts. Not here: measuring (`result_rows.py`), and which images are shown
(`demo_groups.py`).
"""

from collections.abc import Sequence

from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import IMAGE_TO_TEXT
from palindiff.evaluation.thumbnails import CAPTION_TO_GENERATED

VERDICTS = (
    (0.9, "Nearly always right"),
    (0.6, "Mostly right"),
    (0.4, "Right about half of the time"),
    (0.15, "Sometimes right"),
    (0.0, "Rarely right"),
)
NOT_MEASURED = "not measured for this model"


def verdict(rate: float) -> str:
    """Say in words how often something is right. Units: rate is a share in [0, 1]."""
    return next(words for least, words in VERDICTS if rate >= least)


def generation_sentence(rows: Sequence[Row], split: str) -> str:
    """Say how often a generated image is most similar to the emoji that its caption describes."""
    first = _where(rows, direction=CAPTION_TO_GENERATED, split=split, k=1)
    if not first:
        return f"How often the generated image is right: {NOT_MEASURED}."
    candidates = round(1 / _number(first[0], "chance"))
    return (
        f"{verdict(_mean(first))}: of {candidates} real emoji, the right one is the most similar to the generated "
        f"image for {_span(first)} of {first[0]['n']} captions in each style (guessing: {_percent(first, 'chance')})."
    )


def naming_sentence(rows: Sequence[Row], split: str) -> str:
    """Say how often the right name comes first and among the first ten, of names that training never sees so."""
    first, ten = (_where(rows, direction=IMAGE_TO_TEXT, split=split, vendor=None, k=k) for k in (1, 10))
    if not first:
        return f"How often the right name comes first: {NOT_MEASURED}."
    among_ten = f", and is among the first ten for {_span(ten)}" if ten else ""
    return (
        f"{verdict(_mean(first))}: among {first[0]['n']} names, the right one comes first for {_span(first)} of the "
        f"images of a style{among_ten} (guessing: {_percent(first, 'chance')}{_and_chance(ten)})."
    )


def seen_sentence(num_right: int, num_images: int, num_names: int) -> str:
    """Say how often a training image is named right among all names."""
    rate = num_right / num_images
    return (
        f"{verdict(rate)}: among all {num_names:,} names, the right one comes first for {100 * rate:.0f} % of "
        f"{num_images} images from training."
    )


def vendor_sentence(num_right_of_few: int, num_right: int, num_images: int, num_choices: int, num_names: int) -> str:
    """Say how often these images are named right, among few names and among all."""
    return (
        f"{verdict(num_right_of_few / num_images)} with {num_choices} names to choose from, {num_right_of_few} of "
        f"these {num_images} images; {verdict(num_right / num_images).lower()} among all {num_names:,} names, "
        f"{num_right} of {num_images}."
    )


def vendor_measured(rows: Sequence[Row]) -> str:
    """Say what was measured on all concepts of the vendor, and what a copy of a similar training image's name gets."""
    first, ten = (_where(rows, direction=IMAGE_TO_TEXT, control="none", k=k) for k in (1, 10))
    if not first or not ten:
        return f"On all images of this artist: {NOT_MEASURED}."
    copied = _where(rows, direction=IMAGE_TO_TEXT, control="nearest_thumbnail", k=1)
    control = (
        f" Taking the name of the training image with the most similar colours is right for {_span(copied)}."
        if copied
        else ""
    )
    return (
        f"On all {first[0]['n']} such images, the right one of {first[0]['n']} names comes first for {_span(first)} "
        f"and is among the first ten for {_span(ten)}.{control}"
    )


def _where(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def _number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float), f"`{name}` of a measured row is a number"
    return float(value)


def _mean(rows: Sequence[Row]) -> float:
    return sum(_number(row, "recall") for row in rows) / len(rows)


def _span(rows: Sequence[Row]) -> str:
    recalls = [_number(row, "recall") for row in rows]
    low, high = f"{100 * min(recalls):.0f}", f"{100 * max(recalls):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _percent(rows: Sequence[Row], name: str) -> str:
    return f"{100 * _number(rows[0], name):.1f} %"


def _and_chance(ten: Sequence[Row]) -> str:
    return f" and {_percent(ten, 'chance')}" if ten else ""
