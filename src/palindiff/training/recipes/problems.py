"""Problems of a recipe as sentences: dotted key, what was found, what was expected, the nearest known key."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

SHOWN_CHARACTERS = 60


def describe_problem(model: type[BaseModel], problem: ErrorDetails, overridden: Sequence[str] = ()) -> str:
    """Put one of pydantic's findings about a recipe into a sentence that starts with the dotted key."""
    *sections, last = problem["loc"] or ("the recipe",)
    dotted = ".".join(str(part) for part in (*sections, last))
    where = f"`{dotted}`" + (" (from --set)" if dotted in overridden else "")
    level = _model_at(model, sections)
    if problem["type"] == "extra_forbidden":
        return f"{where}: found an unknown key. {_known_keys(level, str(last))}"
    if problem["type"] == "missing":
        return f"{where}: missing. Expected {_type_name(level, str(last))}."
    if problem["type"] == "value_error":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    section = _model_at(model, problem["loc"])
    if problem["type"] in ("model_type", "model_attributes_type") and section is not None:
        expected = f"a section of keys ({', '.join(section.model_fields)})"
    else:
        expected = _plain_expectation(problem["msg"])
    if problem["type"] == "string_type" and dotted in overridden:
        expected += f", which quotes make of it: --set {dotted}='\"{show_value(problem['input'])}\"'"
    return f"{where}: found {show_value(problem['input'])}. Expected {expected}."


def show_value(value: object) -> str:
    """Show a value of a recipe, shortened: of sections and long lists only their kind."""
    if isinstance(value, dict):
        return "a section of keys"
    if value is None:
        return "nothing"
    shown = repr(value) if isinstance(value, str) else str(value)
    if len(shown) <= SHOWN_CHARACTERS:
        return shown
    return f"a list of {len(value)}" if isinstance(value, list) else f"{shown[:SHOWN_CHARACTERS]}..."


def _plain_expectation(message: str) -> str:
    """Cut pydantic's message down to what it expects: "Input should be less than 1" -> "a number less than 1"."""
    expected = re.sub(r"^\w+ should (be|have) ", "", message).partition(", unable to")[0].partition(" after ")[0]
    return f"a number {expected}" if expected.startswith(("greater", "less", "finite")) else expected


def _known_keys(level: type[BaseModel] | None, key: str) -> str:
    if level is None:
        return "Expected no key here."
    if nearest := get_close_matches(key, level.model_fields, n=1):
        return f"The nearest known one is `{nearest[0]}`."
    return f"Expected one of {', '.join(level.model_fields)}."


def _type_name(level: type[BaseModel] | None, key: str) -> str:
    field = level.model_fields.get(key) if level is not None else None
    annotation = field.annotation if field is not None else None
    if (section := _model_in(annotation)) is not None:
        return f"a section of keys ({', '.join(section.model_fields)})"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if isinstance(annotation, type) and annotation in plain:
        return plain[annotation]
    return "a value" if annotation is None else str(annotation).replace("typing.", "")


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """Find the model of the section at a location in a recipe."""
    level: type[BaseModel] | None = model
    for part in loc:
        field = level.model_fields.get(str(part)) if level is not None else None
        level = _model_in(field.annotation) if field is not None else None
    return level


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model in an annotation such as `Model` or `Model | None`."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((each for each in members if isinstance(each, type) and issubclass(each, BaseModel)), None)
