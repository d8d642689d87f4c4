"""Recipes as YAML: found by name or file, merged into the one they extend, changed by `key=value`, checked at once.

Here: reading, merging, writing, a recipe's config hash and the folder of its run. Not here: what a recipe holds
(`schema.py`), how problems are worded (`problems.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from palindiff.atomic import atomic_text
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.recipes.problems import describe_problem, show_value

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
Tree = dict[str, Any]  # what YAML gives, before a pydantic model has checked it

RECIPES, PRESETS = ".", "presets"  # folders of this package
RECIPE_FILE = "recipe.yaml"
DEFAULT_OBJECTIVE = "diffdis"  # of a recipe without `objective.name`
# Paths may change: fingerprints of the data and of what was loaded stand in a saved state.
ALTER_NO_NUMBERS = ("machine.", "evaluation.", "loop.log_every", "loop.evaluate_every", "loop.save_every")
CHOOSE_RESULT = {  # where training stops early, its result is that of one of the evaluations
    "loop.evaluate_every", "evaluation.patience", "evaluation.keep_best", "evaluation.evaluators",
    "evaluation.num_images", "evaluation.validation_split", "evaluation.where",
}  # fmt: skip
PATHS = {
    "data.path", "data.captions_file", "base.source", "base.config", "text.source", "vae", "source", "clip.source",
    "stable_diffusion.source",
}  # fmt: skip
RESOLVED = "resolved; config hash"  # in the first line of a run's own recipe.yaml
SCHEDULE = {"loop.num_steps", "optimizer.decay", "optimizer.decay_steps", "optimizer.cycles"}


def recipe_names() -> list[str]:
    """List the bundled recipes."""
    return sorted(_bundled(RECIPES))


def preset_names() -> list[str]:
    """List the bundled presets."""
    return sorted(_bundled(PRESETS))


def load_recipe(
    models: type[R] | Mapping[str, type[R]], recipe: str, overrides: Sequence[str] = (), preset: str | None = None
) -> R:
    """Read a bundled recipe by its name or any by FILE.yaml, with `dotted.key=value` overrides; values are YAML.

    models: the recipe's class, or the classes to choose from by `objective.name`.
    preset: settings for a size of GPU memory; they replace the recipe's, and overrides replace them.
    Raises: ValueError that lists every problem at once; FileNotFoundError if FILE.yaml does not exist.
    """
    problems: list[str] = []
    tree = _read(recipe, problems)
    if preset is not None:
        file = _choose(preset, _bundled(PRESETS), f"No preset is called `{preset}`")
        tree = _merge(tree, _parse(file, problems))
    changed = _override_all(tree, overrides, problems)
    model = _model_of(tree, models) if isinstance(models, Mapping) else models
    remedy = "Fix the file or the --set options."
    return _validated(model, tree, problems, changed, f"Recipe `{recipe}` has", remedy)


def load_options(model: type[R], overrides: Sequence[str]) -> R:
    """Build a model of options from its defaults, with `dotted.key=value` overrides, as `load_recipe` reads them.

    Raises: ValueError that lists every problem at once.
    """
    tree: Tree = {}
    problems: list[str] = []
    changed = _override_all(tree, overrides, problems)
    return _validated(model, tree, problems, changed, "The --set options have", "Fix them.")


def _override_all(tree: Tree, overrides: Sequence[str], problems: list[str]) -> list[str]:
    """Apply all overrides in place; return their keys."""
    changed: list[str] = []
    for text in overrides:
        try:
            changed.append(_override(tree, text))
        except ValueError as error:
            problems.append(f"--set {text}: {error}")
    return changed


def _validated(model: type[R], tree: Tree, problems: list[str], changed: Sequence[str], found: str, remedy: str) -> R:
    checked: R | None = None
    try:
        checked = model.model_validate(tree)
    except ValidationError as error:
        problems += sorted(describe_problem(model, each, changed) for each in error.errors(include_url=False))
    if checked is None or problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{found} {count}. {remedy}{listed}")
    return checked


def dump_recipe(recipe: BaseModel, origin: str) -> str:
    """Write a recipe out in full, defaults included, below a line that states its origin; it can be read again."""
    tree = recipe.model_dump(mode="json")
    body = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True, width=119)
    return f"# Recipe {' '.join(origin.split())}, {RESOLVED} {config_hash(recipe)[:16]}\n{body}"


def config_hash(recipe: BaseModel) -> str:
    """SHA-256 over all that alters a trained number: no path, interval or evaluation, of `machine` the precision."""
    return hashlib.sha256(json.dumps(_numbers(recipe), sort_keys=True).encode()).hexdigest()


def named_paths(recipe: BaseModel) -> dict[str, Any]:
    """Return the paths and Hub names of a recipe, which are not part of its hash, by dotted key."""
    return {key: value for key, value in _flatten(recipe.model_dump(mode="json")).items() if key in PATHS}


def prepare_run_dir(recipe: BaseModel, output: Path, origin: str) -> None:
    """Save the recipe as `output/recipe.yaml`, in a new folder or in that of a run of the same recipe.

    A run may be prolonged or get another decay, if the learning rates of its finished steps stay the same.

    Raises: ValueError if the folder holds the run of another recipe, or a recipe.yaml that no run wrote.
    """
    path = output / RECIPE_FILE
    if path.exists() and RESOLVED not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        raise ValueError(
            f"`{path}` was not written by a run. Expected the folder of a run, or a new one: a run saves its resolved "
            "recipe under that name. Use another --output."
        )
    has_begun = path.exists() and any(beside.name != RECIPE_FILE for beside in output.iterdir())
    if has_begun:
        try:
            there = load_recipe(type(recipe), str(path))
        except ValueError as error:
            raise ValueError(
                f"`{output}` holds a run with a recipe not valid here. Use another --output. {error}"
            ) from error
        _check_same_run(there, recipe, output)
    output.mkdir(parents=True, exist_ok=True)
    atomic_text(path, dump_recipe(recipe, origin))


def _check_same_run(there: Any, here: Any, output: Path) -> None:
    """Refuse a recipe that differs in more than its schedule, or in the rates of steps that are finished."""
    flat_there, flat_here = _numbers(there), _numbers(here)
    differing = [key for key in flat_here | flat_there if flat_there.get(key) != flat_here.get(key)]
    if not differing:
        return
    if SCHEDULE.issuperset(differing):
        states = saved_states(output / "state")
        finished = range(int(states[-1].name.removeprefix("step-")) if states else 0)
        old, new = (
            [each.optimizer.rate_factor(step, each.loop.num_steps) for step in finished] for each in (there, here)
        )
        if old == new and here.loop.num_steps >= len(finished):
            return
    shown = ", ".join(
        f"`{key}` is {show_value(flat_there.get(key))} there and {show_value(flat_here.get(key))} here"
        for key in differing[:3]
    )
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise ValueError(
        f"`{output}` holds a run of another recipe: {shown}{more}. Expected the recipe that run began with. "
        f"Use another --output, or resume with `{output / RECIPE_FILE}`."
    )


def _model_of(tree: Tree, models: Mapping[str, type[R]]) -> type[R]:
    """Choose a recipe's class by its tag `objective.name`."""
    section = tree.get("objective")
    name = section.get("name", DEFAULT_OBJECTIVE) if isinstance(section, dict) else DEFAULT_OBJECTIVE
    return _choose(str(name), models, f"`objective.name` is {show_value(name)}")


def _numbers(recipe: BaseModel) -> Tree:
    """Return the values that alter a trained number, by dotted key."""
    flat = _flatten(recipe.model_dump(mode="json"))
    left_out = {key for key in flat if key.startswith(ALTER_NO_NUMBERS)} | PATHS
    if flat.get("evaluation.patience"):
        left_out -= CHOOSE_RESULT
        if "classification" in flat.get("evaluation.evaluators", ()):
            left_out -= {"evaluation.templates"}
    return {key: value for key, value in flat.items() if key == "machine.precision" or key not in left_out}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _bundled(kind: str) -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / kind).glob("*.yaml")}


def _choose(name: str, known: Mapping[str, T], found: str, or_file: str = "") -> T:
    """Look a name up; the error states what was found, and the nearest known name."""
    if name not in known:
        nearest = get_close_matches(name.lower(), known, n=1)  # all known names are in small letters
        hint = f" The nearest is `{nearest[0]}`." if nearest else ""
        raise ValueError(f"{found}.{hint} Expected {or_file}one of {', '.join(sorted(known))}. Use one of these.")
    return known[name]


def _find_recipe(recipe: str, beside: Path) -> Path:
    """Find a bundled recipe by name, or a file; FILE.yaml in another recipe's `extends` is relative to that file."""
    if not recipe.endswith((".yaml", ".yml")):
        return _choose(recipe, _bundled(RECIPES), f"No recipe is called `{recipe}`", "FILE.yaml or ")
    if not (beside / recipe).is_file():
        names = ", ".join(recipe_names())
        raise FileNotFoundError(
            f"`{beside / recipe}` is not a file. Expected FILE.yaml or one of {names}. Fix the path."
        )
    return beside / recipe


def _read(recipe: str, problems: list[str], extended_by: tuple[Path, ...] = ()) -> Tree:
    """Read a recipe and merge it into the one it extends, if any.

    extended_by: the files that led here by `extends`, the first one first.
    """
    path = _find_recipe(recipe, beside=extended_by[-1].parent if extended_by else Path())
    files = (*extended_by, path)
    if path.resolve() in [each.resolve() for each in extended_by]:
        circle = " > ".join(each.name for each in files)
        raise ValueError(f"Recipes extend each other in a circle: {circle}. Remove one `extends`.")
    tree = _parse(path, problems)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ValueError(
            f"`extends` in `{path}` is {show_value(base)}. Expected one recipe's name or file. Fix that line."
        )
    return _merge(_read(base, problems, files), tree)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Notes repeated keys, of which YAML would silently keep the last."""

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
        raise ValueError(f"`{path}` is not valid YAML: {' '.join(str(error).split())}. Fix that line.") from error
    if tree is not None and not isinstance(tree, dict):
        raise ValueError(f"`{path}` is {show_value(tree)}. Expected sections of `key: value`. Fix the file.")
    problems += [
        f"{repeated} of `{path}`: found a second time. Expected each key once." for repeated in loader.repeated
    ]
    return tree or {}


def _merge(below: Tree, above: Tree) -> Tree:
    """Merge one tree into another: sections key by key, all else replaced."""
    merged = dict(below)
    for key, value in above.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if is_section else value
    return merged


def _override(tree: Tree, text: str) -> str:
    """Apply one `dotted.key=value` in place.

    Returns: the key.
    Raises: ValueError, whose message continues `--set KEY=VALUE:`.
    """
    key, equals, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        raise ValueError(f"found {'no `=`' if not equals else 'an empty key'}. Expected dotted.key=value.")
    section = tree
    for part in sections:
        if not isinstance(section.setdefault(part, {}), dict):
            raise ValueError(f"`{part}` is {show_value(section[part])}. Expected a section of keys.")
        section = section[part]
    section[name] = _parse_value(value.strip())
    return key.strip()


def _parse_value(text: str) -> object:
    """Parse a value of --set: YAML on one line, without comments; what is no number, list or the like is text, whole.

    Raises: ValueError, whose message continues `--set KEY=VALUE:`.
    """
    is_plain = not text.startswith(("'", '"', "[", "{", "|", ">", "!", "&", "*"))
    try:
        parsed: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if is_plain:
            return text
        raise ValueError("found a value that is not valid YAML. Expected for instance 3, true or [a, b].") from error
    has_comment = text.startswith("#") or " #" in text
    return text if is_plain and (has_comment or isinstance(parsed, str | list | dict)) else parsed
