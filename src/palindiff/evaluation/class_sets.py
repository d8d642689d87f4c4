"""Class names and prompt templates of zero-shot classification, and the class of each image.

Here: the sets of DiffDis, Table 1 (`class_sets/*.yaml`), a set of one's own, and class numbers from labels. Not here:
prompts and scores (`inference/`), accuracies (`naming_tasks.py`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from palindiff.data.rows import ImageSet
from palindiff.data.samples import CLASS_NAMES, CLASS_TEMPLATES, read_class_names, read_class_templates
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels

_FOLDER = Path(__file__).with_suffix("")
_NUM_NAMED = 5  # labels or classes that a message lists


class ClassSet(BaseModel, frozen=True, extra="forbid"):
    """The classes among which images are classified, and the captions that stand for them."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = LABEL_TEMPLATES  # with one {} for a class name
    metric: Literal["acc1", "mean_per_class_recall"] = "acc1"  # that the field reports on this set
    num_test: int | None = Field(None, gt=0)  # images of the standard test split; None: there is no standard
    source: str  # of names, templates and numbers
    licence: str | None = None  # of names and templates; None: the user's own
    folders: tuple[str, ...] = ()  # folder of each class, where the set's own copy calls classes otherwise
    is_numbered: bool = True  # copies of the set number classes in this order; False: some do not
    renamed: dict[int, str] = Field(default_factory=dict)  # class -> its name in the source, if not unique there

    @model_validator(mode="after")
    def _is_complete(self) -> "ClassSet":
        check_labels(self.class_names, self.templates)
        if self.folders and len(self.folders) != len(self.class_names):
            raise ValueError(
                f"`{self.name}` has {len(self.folders)} folders and {len(self.class_names)} classes. Expected one for "
                "each. Fix the list."
            )
        return self

    @property
    def deciding(self) -> dict[str, Any]:
        """All of it that decides a number: not its name, its sources, or what others report of it."""
        return self.model_dump(mode="json", include={"class_names", "templates", "folders", "is_numbered", "renamed"})

    @property
    def repeated(self) -> set[int]:
        """Classes that share their name in the source with another one."""
        names = set(self.renamed.values())
        return {number for number, name in enumerate(self.class_names) if name in names} | self.renamed.keys()

    @cached_property
    def number_of_name(self) -> dict[str, int]:
        """Class number of each class name."""
        return {name: number for number, name in enumerate(self.class_names)}

    @cached_property
    def number_of_number(self) -> dict[str, int]:
        """Class number of each number in digits; empty if a number may mean another class, or is a class name."""
        if not self.is_numbered or any(name.isdecimal() for name in self.class_names):
            return {}
        return {str(number): number for number in range(len(self.class_names))}

    @cached_property
    def number_of_spelling(self) -> dict[str, int]:
        """Class number of each `spelling` of a class name or folder; without those of more than one class."""
        found: dict[str, set[int]] = {}
        for names in (self.class_names, self.folders):
            for number, name in enumerate(names):
                found.setdefault(spelling(name), set()).add(number)
        return {key: numbers.pop() for key, numbers in found.items() if len(numbers) == 1}


def class_set_names() -> list[str]:
    """Names of the sets that come with palindiff."""
    return sorted((file.stem for file in _FOLDER.glob("*.yaml")), key=str.casefold)


def find_class_set(name: str) -> ClassSet | None:
    """Load a set as `load_class_set`, or None if no set is called so."""
    return load_class_set(name) if _letters(name) in map(_letters, class_set_names()) else None


def load_class_set(name: str) -> ClassSet:
    """Load a set that comes with palindiff; case and punctuation of its name do not matter.

    Raises: ValueError, with the nearest name, if there is no such set.
    """
    names = {_letters(each): each for each in class_set_names()}
    found = names.get(_letters(name))
    if found is None:
        near = get_close_matches(_letters(name), names, n=1)
        nearest = f" (nearest: {names[near[0]]})" if near else ""
        raise ValueError(
            f"`{name}` is not a class set of palindiff{nearest}. Expected one of {', '.join(names.values())}. "
            "Use one of these."
        )
    with (_FOLDER / f"{found}.yaml").open(encoding="utf-8") as stream:
        return ClassSet(name=found, **yaml.safe_load(stream))


def class_set_of(images: ImageSet, folder: Path) -> ClassSet:
    """Make a set of the classes of a user's own images.

    Class names are the lines of `classnames.txt`, templates those of `zeroshot_classification_templates.txt` with
    `{c}` for the class, in the folder or its parent, as in CLIP_benchmark's webdataset layout. Without the first the
    classes are the labels of the images, sorted, with spaces for underscores; without the second a caption is the
    class name alone.

    Raises: ValueError if two classes have one name, a template has no `{c}`, or, without names, an image no label.
    """
    names, where = read_class_names(folder), CLASS_NAMES
    if not names:
        names, where = tuple(label.replace("_", " ").strip() for label in sorted(set(_labels(images)))), "labels"
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"Several classes of `{images.source}` are called {_listed(repeated)} ({where}). Expected a name of its "
            "own for each class. Fix the names, or use a class set of palindiff."
        )
    templates = read_class_templates(folder)
    if strange := [template for template in templates if template.count("{c}") != 1 or "{}" in template]:
        raise ValueError(
            f"{CLASS_TEMPLATES} of `{images.source}` has the line '{strange[0]}'. Expected {{c}} once in each line, "
            "where the class name goes. Fix the line."
        )
    templates = tuple(template.replace("{c}", "{}") for template in templates) or LABEL_TEMPLATES
    return ClassSet(name=folder.absolute().name, class_names=names, templates=templates, source=where)


def true_classes(images: ImageSet, class_set: ClassSet) -> Tensor:
    """Return the class number of each image, from its label.

    A label is a class name, or else a class number, or else a class name or folder in another `spelling`. Nothing
    else is understood.

    Shapes: n images -> (n,) int64.
    Raises: ValueError if images have no label, or labels are none of these; numbers beside names are refused too,
        except of classes whose names the source repeats (`samples.SampleReading.repeated_names`).
    """
    labels = _labels(images)
    number_of = class_numbers(set(labels), class_set)
    if unknown := sorted(set(labels) - number_of.keys()):
        raise ValueError(_not_understood(unknown, images.source, class_set))
    by_number = number_of.keys() & class_set.number_of_number.keys() - class_set.number_of_name.keys()
    stray = sorted(label for label in by_number if number_of[label] not in class_set.repeated)
    if stray and len(by_number) < len(number_of):
        raise ValueError(
            f"`{images.source}` has the labels {_listed(stray)} beside names such as "
            f"`{min(number_of.keys() - by_number)}`. Expected names only, or numbers only. Fix the labels."
        )
    return torch.tensor([number_of[label] for label in labels])


def class_numbers(labels: Iterable[str], class_set: ClassSet) -> dict[str, int]:
    """Return the class number of each label that is understood, by the rules of `true_classes`."""
    found = {}
    for label in labels:
        for known, key in (
            (class_set.number_of_name, label),
            (class_set.number_of_number, label),
            (class_set.number_of_spelling, spelling(label)),
        ):
            if key in known:
                found[label] = known[key]
                break
    return found


def classes_without_images(truth: Tensor, class_set: ClassSet) -> list[str]:
    """Name the classes of a set that no image has: they are answers, but never right.

    Shapes: truth (n,) int64, as `true_classes` returns it.
    """
    present = set(truth.tolist())
    return [name for number, name in enumerate(class_set.class_names) if number not in present]


def spelling(name: str) -> str:
    """Write a name so that capitals, and the signs between words (space, `_`, `-`, `/`), make no difference."""
    return re.sub(r"[\s_/-]+", " ", name.casefold()).strip()


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _labels(images: ImageSet) -> list[str]:
    """Return the label of each image, if all have one."""
    labels = [label for _, label in images.texts()]
    without = [row for row, label in enumerate(labels) if label is None]
    if without:
        (name,) = images.records(without[:1])["image_path"]
        raise ValueError(
            f"{len(without):,} of {len(labels):,} images of `{images.source}` have no class (the first: `{name}`). "
            "Expected a class for each. Use class folders, KEY.cls in tars or a column `label`."
        )
    return [str(label) for label in labels]


def _not_understood(unknown: Sequence[str], source: str, class_set: ClassSet) -> str:
    """Say which labels are no class of a set, with the nearest class name of each."""
    spellings = class_set.number_of_spelling
    near = {label: get_close_matches(spelling(label), spellings, n=1) for label in unknown[:_NUM_NAMED]}
    listed = [f"`{label}`{_nearest(found, spellings, class_set)}" for label, found in near.items()]
    more = f" and {len(unknown) - _NUM_NAMED} more" if len(unknown) > _NUM_NAMED else ""
    names = ", ".join(class_set.class_names[:2])
    expected = f"class names such as {names}"
    if class_set.number_of_number:
        expected += f", or numbers from 0 to {len(class_set.class_names) - 1}"
    elif any(label.isdecimal() for label in unknown):
        expected += f" (a number is none: copies of `{class_set.name}` number their classes differently)"
    return (
        f"{len(unknown)} labels of `{source}` are no class of `{class_set.name}`: {', '.join(listed)}{more}. Expected "
        f"{expected}. Use the class set of these images, or fix the labels."
    )


def _nearest(found: Sequence[str], spellings: Mapping[str, int], class_set: ClassSet) -> str:
    return f" (nearest: {class_set.class_names[spellings[found[0]]]})" if found else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NUM_NAMED]) + more
