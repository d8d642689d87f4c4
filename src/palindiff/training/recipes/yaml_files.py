"""Recipes as YAML: found by name or file, laid over the one they extend, changed by `key=value`, checked all at once.

Here: reading, merging, writing, a recipe's identity and the folder it claims. Not here: what a recipe holds (the
pydantic models beside what they configure), nor how problems are worded (`recipe_problems.py`).
"""

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from palindiff.atomic import atomic_text
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.recipes.problems import describe_problem, show_value

R = TypeVar("R", bound=BaseModel)
Tree = dict[str, Any]  # what YAML gives, before a pydantic model has checked it

RECIPES, PRESETS = ".", "presets"  # folders of this package
RECIPE_FILE = "recipe.yaml"
MACHINE, PRECISION = "machine", "precision"  # the section that alters no numbers, but for this key of it
RESOLVED = "resolved; identity"  # what the first line of a run's own recipe.yaml says
SCHEDULE = {"loop.num_steps", "optimizer.decay", "optimizer.decay_steps", "optimizer.cycles"}
YAML_ENDINGS = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """List the recipes that come with palindiff."""
    return sorted(_bundled(RECIPES))


def preset_names() -> list[str]:
    """List the presets that come with palindiff, smallest card first."""
    return sorted(_bundled(PRESETS))


def load_recipe(model: type[R], recipe: str, overrides: Sequence[str] = (), preset: str | None = None) -> R:
    """Read a bundled recipe by its name or any by FILE.yaml, with `dotted.key=value` overrides; values are YAML.

    preset: what a card of some size needs, laid over the recipe and below the overrides.
    Raises: ValueError that lists every problem at once; FileNotFoundError if FILE.yaml does not exist.
    """
    problems: list[str] = []
    tree = _read_with_bases(recipe, problems)
    if preset is not None:
        tree = _merge(tree, _parse(_find_preset(preset), problems))
    changed = [key for text in overrides if (key := _override(tree, text, problems))]
    checked: R | None = None
    try:
        checked = model.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems += sorted(describe_problem(model, problem, changed) for problem in found)
    if checked is None or problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"Recipe `{recipe}` has {count}. Mend the file or the --set options.{listed}")
    return checked


def dump_recipe(recipe: BaseModel, told: str) -> str:
    """Write a recipe out in full, defaults included, below a line that tells its origin; it can be read again."""
    tree = recipe.model_dump(mode="json")
    body = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True, width=119)
    return f"# Recipe {' '.join(told.split())}, {RESOLVED} {identity(recipe)[:16]}\n{body}"


def identity(recipe: BaseModel) -> str:
    """SHA-256 over all that alters numbers: every field but threads, workers and where features are kept."""
    return hashlib.sha256(json.dumps(_numbers(recipe), sort_keys=True).encode()).hexdigest()


def prepare_run_dir(recipe: BaseModel, output: Path, told: str) -> None:
    """Save the recipe as `output/recipe.yaml`, where a run of the same recipe may have begun already.

    A run may be made longer, or be given another end: the steps it has learned must be those of the new recipe too.

    Raises: ValueError if the folder holds the run of another recipe, or a recipe.yaml that no run wrote.
    """
    path = output / RECIPE_FILE
    if path.exists() and RESOLVED not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        raise ValueError(
            f"`{path}` was not written by a run. Expected the folder of a run, or a new one: a run keeps its resolved "
            "recipe under that name. Name another --output."
        )
    has_begun = path.exists() and any(beside.name != RECIPE_FILE for beside in output.iterdir())
    if has_begun:
        try:
            there = load_recipe(type(recipe), str(path))
        except ValueError as error:
            raise ValueError(f"`{output}` holds a run with a recipe not valid here. Name another. {error}") from error
        if identity(there) != identity(recipe) and not _goes_on(there, recipe, output):
            raise ValueError(_difference(output, _numbers(there), _numbers(recipe)))
    output.mkdir(parents=True, exist_ok=True)
    atomic_text(path, dump_recipe(recipe, told))


def _numbers(recipe: BaseModel) -> Tree:
    tree = recipe.model_dump(mode="json")
    machine = tree.pop(MACHINE, {})
    return tree | {MACHINE: {PRECISION: machine[PRECISION]} if PRECISION in machine else {}}


def _goes_on(there: Any, here: Any, output: Path) -> bool:
    """Whether recipes differ in their schedule alone, and not in the rates of the steps that are learned already."""
    flat_there, flat_here = _flatten(_numbers(there)), _flatten(_numbers(here))
    if {key for key in flat_there | flat_here if flat_there.get(key) != flat_here.get(key)} - SCHEDULE:
        return False
    states = saved_states(output / "state")
    num_learned = int(states[-1].name.removeprefix("step-")) if states else 0

    def rates(recipe: Any) -> list[float]:
        return [recipe.optimizer.rate_factor(step, recipe.loop.num_steps) for step in range(num_learned)]

    return here.loop.num_steps >= num_learned and rates(there) == rates(here)


def _difference(output: Path, there: Tree, here: Tree) -> str:
    flat_there, flat_here = _flatten(there), _flatten(here)
    keys = [key for key in flat_here | flat_there if flat_there.get(key) != flat_here.get(key)]
    shown = ", ".join(
        f"`{key}` is {show_value(flat_there.get(key))} there and {show_value(flat_here.get(key))} here"
        for key in keys[:3]
    )
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (
        f"`{output}` holds a run of another recipe: {shown}{more}. Expected the recipe that run began with. "
        f"Name another --output, or go on with `{output / RECIPE_FILE}`."
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _bundled(kind: str) -> dict[str, Path]:
    folder = Path(str(importlib.resources.files("palindiff.training.recipes"))) / kind
    return {path.stem: path for path in folder.glob("*.yaml")}


def _find_preset(preset: str) -> Path:
    bundled = _bundled(PRESETS)
    if preset not in bundled:
        known = f"Expected one of {', '.join(sorted(bundled))}: the memory of the card."
        raise ValueError(f"No preset is called `{preset}`.{_nearest(preset, bundled)} {known}")
    return bundled[preset]


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = get_close_matches(name.lower(), known, n=1)  # every name that ships is in small letters
    return f" The nearest is `{nearest[0]}`." if nearest else ""


def _read_with_bases(recipe: str, problems: list[str]) -> Tree:
    """Follow `extends` to the recipe that extends none, then lay each over the one below it."""
    trees: list[Tree] = []
    seen: list[Path] = []
    base: object = recipe
    while base is not None:
        if not isinstance(base, str):
            raise ValueError(f"`extends` in `{seen[-1]}` is {show_value(base)}. Expected one recipe's name or file.")
        path = _find(base, beside=seen[-1].parent if seen else Path())
        if path.resolve() in [each.resolve() for each in seen]:
            circle = " > ".join(each.name for each in [*seen, path])
            raise ValueError(f"Recipes extend each other in a circle: {circle}. Remove one `extends`.")
        seen.append(path)
        trees.append(_parse(path, problems))
        base = trees[-1].pop("extends", None)
    merged: Tree = {}
    for tree in reversed(trees):
        merged = _merge(merged, tree)
    return merged


def _find(recipe: str, beside: Path) -> Path:
    """Find a bundled recipe by name, or a file; a relative FILE.yaml that another extends stands beside that one."""
    bundled = _bundled(RECIPES)
    known = f"Expected FILE.yaml or one of {', '.join(sorted(bundled))}."
    if recipe.endswith(YAML_ENDINGS):
        if not (beside / recipe).is_file():
            raise FileNotFoundError(f"`{beside / recipe}` is no file. {known}")
        return beside / recipe
    if recipe not in bundled:
        raise ValueError(f"No recipe is called `{recipe}`.{_nearest(recipe, bundled)} {known}")
    return bundled[recipe]


class _UniqueKeyLoader(yaml.SafeLoader):
    """Notes keys that stand twice in one place, of which YAML would silently keep the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                self.repeated.append(f"`{key.value}` in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _parse(path: Path, problems: list[str]) -> Tree:
    try:
        loader = _UniqueKeyLoader(path.read_text(encoding="utf-8"))
        tree = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is no valid YAML: {' '.join(str(error).split())}. Mend that line.") from error
    if tree is not None and not isinstance(tree, dict):
        raise ValueError(f"`{path}` is {show_value(tree)}. Expected sections of `key: value`.")
    problems += [
        f"{repeated} of `{path}`: found a second time. Expected each key once." for repeated in loader.repeated
    ]
    return tree or {}


def _merge(below: Tree, above: Tree) -> Tree:
    """Lay one tree over another: sections key by key, all else replaced."""
    merged = dict(below)
    for key, value in above.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if is_section else value
    return merged


def _override(tree: Tree, text: str, problems: list[str]) -> str | None:
    """Apply one `dotted.key=value` in place; a problem is noted and the override left out."""
    key, equals, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        problems.append(
            f"--set {text}: found {'no `=`' if not equals else 'an empty key'}. Expected dotted.key=value."
        )
        return None
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        problems.append(f"--set {text}: found a value that is no valid YAML. Expected for instance 3, true or [a, b].")
        return None
    section = tree
    for part in sections:
        if not isinstance(section.setdefault(part, {}), dict):
            problems.append(f"--set {text}: `{part}` is {show_value(section[part])}. Expected a section of keys.")
            return None
        section = section[part]
    section[name] = parsed
    return key.strip()
