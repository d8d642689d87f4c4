"""The trained models of a scale: one run folder for each variant and seed, resumed by the same call.

Here: the recipe of a run, training, and opening the result. Not here: which runs a table needs (`plan.py`), the cost
of a step (`equal_flop.py`), what is measured of them (`measurement.py`).
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from filelock import FileLock, Timeout

from palindiff.atomic import atomic_text
from palindiff.evaluation.clip_score import files_sha256
from palindiff.evaluation.provenance import git_state
from palindiff.evaluation.records import hash_settings
from palindiff.experiments.reproduction.equal_flop import scaled_schedule, step_tflop
from palindiff.experiments.reproduction.interpolation import interpolate
from palindiff.experiments.reproduction.plan import ROOT, RUNS, Plan
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.embedder import Embedder, PipelineEmbedder
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.unidiff_folders import load_unidiff
from palindiff.training.base_trainer import best_step, open_sets
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost
from palindiff.training.recipes.build_unidiff import load_start
from palindiff.training.recipes.schema import ContrastiveRecipe, DiffDisRecipe, Recipe, VaeRecipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import RECIPE_FILE, config_hash, load_recipe, named_paths, prepare_run_dir
from palindiff.training.trainer import TRAINERS, recipe_classes, train_recipe

FACTS_FILE = "reproduction.json"  # in the run's folder: what trained it
FAILURE_FILE = "failure.txt"  # there if its last training diverged: why
LOCK_FILE = "reproduction.lock"  # held by the process that trains or measures the run


class IsBusyError(Exception):
    """Another process has the run."""


@dataclass(frozen=True)
class KnownHashes:
    """Hashes that many runs share, found once for all."""

    plans: dict[tuple[str, int], str] = field(default_factory=dict)  # by variant and seed
    images: dict[str, dict[str, str]] = field(default_factory=dict)  # fingerprints, by a recipe's settings of data


@dataclass(frozen=True)
class ModelRun:
    """A variant with a seed: its recipe, and the folder of its run."""

    plan: Plan
    variant: str
    seed: int
    data: Path  # folder of --data
    runs: Path  # folder of all runs of the scale
    overrides: tuple[str, ...] = ()  # KEY=VALUE of every run, such as the number of threads
    known: KnownHashes = field(default_factory=KnownHashes, compare=False)  # shared by runs of a call

    @property
    def name(self) -> str:
        """As its folder is called."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.runs / self.name

    @cached_property
    def own_recipe(self) -> Recipe:
        """The recipe with the number of steps that its settings say.

        Raises: ValueError if it cannot be read, or is of another objective.
        """
        return self._load(())

    @property
    def counted_after(self) -> list["ModelRun"]:
        """The runs that must be finished first: those it starts from, and those of the run whose cost it has."""
        return self._first_seeds(self.plan.counted_after(self.variant))

    @property
    def is_countable(self) -> bool:
        """Whether its cost can be counted."""
        return all(each.is_finished for each in self.counted_after)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run, with as many steps as its training may cost.

        Raises: as `own_recipe`; FileNotFoundError or ValueError if it is not countable.
        """
        variant, recipe = self.plan.variants[self.variant], self.own_recipe
        if variant.same_flop_as is None:
            return recipe
        other = self._of(variant.same_flop_as, self.seed)
        steps = round(other.recipe.loop.num_steps * step_tflop(other.recipe) / step_tflop(recipe))
        return self._load((f"loop.num_steps={steps}", *scaled_schedule(recipe, steps)))

    @property
    def train_tflop(self) -> float:
        """TFLOP of the run's steps, with those of the runs that it starts from or needs; a VAE's count nothing."""
        steps = self.recipe.loop.num_steps
        if self.is_finished and isinstance(self.recipe, UniDiffRecipe):  # which may have stopped early
            steps = training_cost(read_log(self.folder / LOG_FILE))[0]
        return steps * step_tflop(self.recipe) + sum(each.train_tflop for each in self.trained_before)

    @property
    def is_trained_to_name(self) -> bool:
        """Whether naming is one of its tasks; otherwise a DiffDis's query stream is as it was drawn."""
        return not isinstance(self.own_recipe, DiffDisRecipe) or self.own_recipe.objective.task != "generation"

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its result."""
        return self.result.is_dir()

    @property
    def is_complete(self) -> bool:
        """Whether it is finished, and so are the runs that it starts from or costs as much as."""
        return self.is_finished and self.is_countable

    @property
    def has_failed(self) -> bool:
        """Whether its last training diverged."""
        return (self.folder / FAILURE_FILE).exists()

    @property
    def result(self) -> Path:
        """The folder of the trained model."""
        return self.folder / TRAINERS[self.own_recipe.objective_name].result_name

    @contextmanager
    def locked(self, waits: bool = False) -> Iterator[None]:
        """Keep other processes from training or measuring the run; wait for one that does, if asked to.

        Raises: IsBusyError if another one does, and this one does not wait.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / LOCK_FILE, timeout=-1 if waits else 0):
                yield
        except Timeout as error:
            raise IsBusyError(f"{self.name}: another process has it") from error

    def train(self) -> None:
        """Train it, or resume its training; nothing if it is finished.

        Raises: ValueError if the folder holds a run of another recipe, data or start, or an unfinished one of another
            commit; FloatingPointError if the training diverges.
        """
        facts = self.folder / FACTS_FILE
        if self.is_finished:
            self.check_finished()
            return
        commit, is_dirty = _own_code()
        recipe_name = self.plan.variants[self.variant].recipe or self.plan.recipe
        prepare_run_dir(self.recipe, self.folder, f"{recipe_name}, variant {self.variant}")
        if facts.exists():
            found = json.loads(facts.read_text(encoding="utf-8"))
            self._check_commit(found["commit"], commit)
            self._check_origin(found)
            if is_dirty and not found["is_dirty"]:
                atomic_text(facts, json.dumps(found | {"is_dirty": True}, indent=2) + "\n")
        else:
            written = {"commit": commit, "is_dirty": is_dirty, "origin": self.origin}
            atomic_text(facts, json.dumps(written, indent=2) + "\n")
        failure = self.folder / FAILURE_FILE
        try:
            train_recipe(self.recipe, self.folder, show_progress=False)
        except FloatingPointError as error:
            atomic_text(failure, f"{error}\n")
            raise
        failure.unlink(missing_ok=True)

    @property
    def plan_hash(self) -> str:
        """Hash of what is trained, wherever it is: recipe, images, and the runs it starts from or costs as much as.

        Sources of weights are taken as the plan names them, with the folders of data and runs left open.

        Raises: as `origin`.
        """
        key = self.variant, self.seed
        if key not in self.known.plans:
            same_flop_as = self.plan.variants[self.variant].same_flop_as
            anywhere = replace(self, data=Path("DATA"), runs=Path("RUNS")).own_recipe  # braces would be YAML
            facts: dict[str, Any] = {
                "recipe": config_hash(anywhere), "sources": named_paths(anywhere), "images": self._images(),
                "before": [each.plan_hash for each in self.trained_before],
                "same FLOP as": same_flop_as and self._of(same_flop_as, self.seed).plan_hash,
            }  # fmt: skip
            self.known.plans[key] = hash_settings(facts)
        return self.known.plans[key]

    @cached_property
    def origin(self) -> dict[str, str]:
        """What the run learns from, by name: images, and the weights that it starts from or needs.

        Raises: FileNotFoundError or ValueError if the images cannot be opened.
        """
        return self._images() | {each.name: files_sha256(each.result) for each in self.trained_before}

    def _images(self) -> dict[str, str]:
        recipe = self.own_recipe
        chosen = recipe.evaluation.model_dump(include={"validation_split", "where"})
        key = f"{recipe.data.model_dump_json()} {chosen} {self._stops_early}"
        if key not in self.known.images:
            training, validation = open_sets(recipe)
            found = {"training images": training.fingerprint}
            if self._stops_early and validation is not None:  # they choose its result
                found["validation images"] = validation.fingerprint
            self.known.images[key] = found
        return self.known.images[key]

    def open(self, device: str = "cpu", share: float = 1.0) -> tuple[Embedder, StableDiffusionPipeline | None]:
        """Load the finished model onto a device -> what names, and what generates if that is another model.

        share: of the trained weights of a UniDiff; its start's have the rest.

        Raises: FileNotFoundError if it is not finished; ValueError if it is a VAE.
        """
        if not self.is_finished:
            raise FileNotFoundError(f"`{self.result}` does not exist. Expected a finished run. Train it first.")
        if isinstance(self.own_recipe, UniDiffRecipe):
            clip, pipeline = load_unidiff(self.result)
            if share < 1:
                interpolate(load_start(self.own_recipe), clip, pipeline, share)
            return ClipModel(clip).to(device), pipeline.to(device)
        assert share == 1, "of a UniDiff only, as `check` has found before any training"
        return self._open_one(device), None

    def _open_one(self, device: str) -> Embedder:
        if isinstance(self.own_recipe, ContrastiveRecipe):
            return ClipModel.from_pretrained(self.result).to(device)
        if isinstance(self.own_recipe, VaeRecipe):
            raise ValueError(f"`{self.variant}` is a VAE, which names nothing. Expected another row. Change the plan.")
        return PipelineEmbedder(PalindiffPipeline.from_pretrained(self.result).to(device))

    def facts(self) -> dict[str, str | int | float | None]:
        """What result rows say of the training."""
        steps, seconds = training_cost(read_log(self.folder / LOG_FILE))
        trained_by = json.loads((self.folder / FACTS_FILE).read_text(encoding="utf-8"))
        return {
            "config_hash": config_hash(self.recipe)[:16], "commit": trained_by["commit"],
            "is_dirty": trained_by["is_dirty"], "steps": steps,
            "train_tflop": self.train_tflop, "train_seconds": round(seconds),
        } | self._best_step()  # fmt: skip

    def _best_step(self) -> dict[str, int]:
        """The step whose weights are the result, of a training that stops early."""
        best = best_step(self.folder) if self._stops_early else None
        return {} if best is None else {"best_step": best}

    @property
    def _stops_early(self) -> bool:
        return isinstance(self.own_recipe, UniDiffRecipe) and self.own_recipe.evaluation.patience > 0

    @property
    def commit(self) -> str:
        """The commit that trained it, with a star if files were changed."""
        trained_by = json.loads((self.folder / FACTS_FILE).read_text(encoding="utf-8"))
        return f"{str(trained_by['commit'])[:9]}{'*' if trained_by['is_dirty'] else ''}"

    @property
    def _start(self) -> "ModelRun | None":
        start = self.plan.variants[self.variant].start
        return None if start is None else self._of(start, self.plan.seeds_of(start)[0])

    @property
    def trained_before(self) -> list["ModelRun"]:
        """The runs whose weights it starts from or needs."""
        return self._first_seeds(self.plan.trained_before(self.variant))

    def _first_seeds(self, variants: Iterable[str]) -> list["ModelRun"]:
        return [self._of(each, self.plan.seeds_of(each)[0]) for each in variants]

    def _of(self, variant: str, seed: int) -> "ModelRun":
        return replace(self, variant=variant, seed=seed)

    def _load(self, further: tuple[str, ...]) -> Recipe:
        variant, start = self.plan.variants[self.variant], self._start
        base = () if start is None else (f"base.source={json.dumps(str(start.result))}",)
        used = [each for name in variant.use for each in self.plan.settings[name]]
        given = [*used, *base, *variant.set, *further, *self.overrides, f"loop.seed={self.seed}"]
        own = [each.replace(ROOT, str(self.data)).replace(RUNS, str(self.runs)) for each in given]
        return load_recipe(recipe_classes(), variant.recipe or self.plan.recipe, own)

    def check_finished(self) -> None:
        """Check that the finished run is of the plan as it is now.

        Raises: ValueError if it is of another recipe, data or start, or no run of `reproduce`.
        """
        facts = self.folder / FACTS_FILE
        there = load_recipe(recipe_classes(), str(self.folder / RECIPE_FILE))
        if config_hash(there) != config_hash(self.recipe) or not facts.exists():
            found = "a finished run of another recipe" if facts.exists() else "a run that `reproduce` did not train"
            raise ValueError(
                f"`{self.folder}` holds {found}. Expected one of the plan's recipe. Use another --runs, or remove the "
                "folder to train the run anew."
            )
        self._check_origin(json.loads(facts.read_text(encoding="utf-8")))

    def _check_origin(self, facts: dict[str, Any]) -> None:
        before = facts["origin"]
        if changed := [name for name, now in self.origin.items() if before.get(name) != now]:
            raise ValueError(
                f"`{self.folder}` holds a run of other {changed[0]}. Expected those that are there now. Restore them, "
                "use another --runs, or remove the folder to train the run anew."
            )

    def _check_commit(self, trained_by: str | None, commit: str | None) -> None:
        if trained_by != commit:
            raise ValueError(
                f"`{self.folder}` holds an unfinished run of commit {trained_by}, and this is {commit}. Expected the "
                "commit that began it. Check that one out, or remove the folder to train the run anew."
            )


@cache
def _own_code() -> tuple[str | None, bool | None]:
    """Commit of this code and whether files were changed, as they were when this process first asked."""
    return git_state(Path(__file__).parent)
