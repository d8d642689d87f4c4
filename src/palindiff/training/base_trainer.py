"""What is common to the training of every objective: preparation, evaluation, the loop, resuming, saving.

Here: the order of these steps. Not here: what an objective adds to them (`train_diffdis.py`, `train_vae.py`), the loop
itself (`loop/`), which trainer a recipe has (`trainer.py`).
"""

import json
import math
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from palindiff.atomic import atomic_folder, atomic_text, check_writable
from palindiff.data.conditions import select_by_hash, select_where
from palindiff.data.sources import ImageSet, open_images
from palindiff.evaluation.results import Row
from palindiff.seeds import seeded_generator
from palindiff.training.features.dataset import Progress, default_cache_dir
from palindiff.training.loop.loop import Objective, TrainingSet, compute_losses, train
from palindiff.training.loop.run_log import RunLog
from palindiff.training.recipes.schema import Recipe

R = TypeVar("R", bound=Recipe)

BEST_FILE = "best.json"
RESULT_FILE = "result.json"  # the step whose result was written, whole
FEW_ROWS = 16  # of a micro-batch, over all processes: fewer are warned of where they are negatives
NO_AUGMENTATION = torch.tensor([0.5, 0.0])  # the uniform numbers for an image as it is, and its first caption


class Trainer(ABC, Generic[R]):
    """One run of one recipe, as the loop takes it. A subclass says what its objective is made of."""

    recipe_class: ClassVar[type[Recipe]]
    result_name: ClassVar[str]  # the folder of the result, below the run's
    next_command: ClassVar[str] = ""  # what reads the result, with `{result}` in place of its folder
    writes_latest: ClassVar[bool] = True  # whether each evaluation writes the model as `latest/`

    run_log: RunLog
    objective: nn.Module
    training_set: TrainingSet
    validation_set: TrainingSet | None = None  # for validation losses; None logs none
    validation_rows: Tensor  # (n,) int64, those of `validation_set` that are evaluated
    fingerprints: Mapping[str, str]  # of the training set and the frozen models

    def __init__(self, recipe: R, output: Path, accelerator: Accelerator, progress: Progress | None = None) -> None:
        """progress: is called while features are computed, on the main process."""
        self.recipe, self.output, self.accelerator = recipe, output, accelerator
        self.loop, self.optimizer, self.machine = recipe.loop, recipe.optimizer, recipe.machine
        self.progress = progress if progress is not None and accelerator.is_main_process else _silent

    @staticmethod
    @abstractmethod
    def count_parameters(recipe: Any) -> dict[str, int]:
        """Count, without data or weights, the parameters of each part, and those `trained`."""

    @abstractmethod
    def build_models(self) -> None:
        """Build or load the models; random weights come from torch's global generator, which is seeded before."""

    @abstractmethod
    def load_features(self) -> None:
        """Open the images, compute or map features; sets `training_set`, `fingerprints`, and what evaluation needs."""

    @abstractmethod
    def make_objective(self) -> nn.Module:
        """Combine models and losses into the module that is trained."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the trained weights by learning rate, as torch.optim takes them."""

    @abstractmethod
    def evaluation_rows(self, step: int) -> list[Row]:
        """Run the evaluators of the recipe's section `evaluation`; each row's `metric` is its key in the log."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained model into an empty folder."""

    @abstractmethod
    def trained_model(self) -> Any:
        """The result of a finished run."""

    def finish(self) -> None:
        """Do what follows the last step and comes before the result is written, on the main process."""

    def prepare(self) -> Self:
        """Do all that comes before the first step."""
        torch.manual_seed(self.recipe.loop.seed)
        self.build_models()
        self.load_features()
        self.objective = self.make_objective()
        return self

    def train(self, show_progress: bool = True) -> Any:
        """Prepare, train or resume, and write the result to `output / result_name`.

        The result has the EMA weights of the last step, or of the best evaluation where training may stop early.

        Returns: the trained model.
        """
        self.run_log = RunLog(self.output, show_progress)
        state = train(self.prepare(), self.accelerator)
        self.objective.eval()
        result, written = self.output / self.result_name, self.output / RESULT_FILE
        is_old = not result.exists() or not written.exists() or json.loads(written.read_text())["step"] != state.step
        if self.accelerator.is_main_process and (state.has_learned or is_old):
            self.finish()
            self._write_result(result)
            atomic_text(written, json.dumps({"step": state.step}) + "\n")
        self.accelerator.wait_for_everyone()
        return self.trained_model()

    def evaluate(self, step: int) -> dict[str, float]:
        """Measure the current weights, and write them as `latest/`, to be used while training continues."""
        numbers = self.validation_losses()
        numbers |= {str(row["metric"]): float(cast("float", row["value"])) for row in self.evaluation_rows(step)}
        if self.writes_latest:
            self._write(self.output / "latest")
        if (found := self.score(numbers)) is not None:
            self._keep_best(step, *found, self.tie_break(numbers))
        elif self.patience:
            raise ValueError(
                f"The evaluation of step {step} found no score by which training could stop, and "
                f"`evaluation.patience` is {self.patience}. Expected one: of validation images, for accuracy with "
                "classes. Choose another `evaluation.keep_best`, or set `evaluation.patience: 0`."
            )
        return numbers

    @property
    def patience(self) -> int:
        """Evaluations without a better score, after which training stops with the best as its result; 0: never."""
        return 0

    @property
    def evaluates_start(self) -> bool:
        """Whether the weights before the first step may be the best, as where training starts from a good model."""
        return self.patience > 0

    def stops_early(self, step: int) -> bool:
        """Whether `patience` evaluations have passed since the best one."""
        wait, best = self.patience * self.loop.evaluate_every, best_step(self.output)
        return best is not None and 0 < wait <= step - best

    def score(self, numbers: Mapping[str, float]) -> tuple[str, float] | None:
        """Name and compute what `best/` is chosen by, higher is better, of an evaluation's numbers; None: no best."""
        return None

    def tie_break(self, numbers: Mapping[str, float]) -> float:
        """What decides between evaluations of equal score, higher is better; of equal ones the first is the best."""
        return 0.0

    def _keep_best(self, step: int, metric: str, value: float, tie_break: float) -> None:
        """Write the current weights as `best/` if no evaluation before was as good; `best.json` says which it is.

        One of this step or later is of a run that was killed, perhaps with other models or images, and does not count.
        """
        path = self.output / BEST_FILE
        before = json.loads(path.read_text()) if path.exists() else {}
        before = before if before.get("step", step) < step else {}
        if before.get("metric") == metric and (before["value"], before.get("tie_break", 0.0)) >= (value, tie_break):
            return
        self._write(self.output / "best")
        found = {"step": step, "metric": metric, "value": value} | ({"tie_break": tie_break} if tie_break else {})
        atomic_text(path, json.dumps(found) + "\n")

    def warn_of_few_negatives(self) -> None:
        """Warn, on the main process, of micro-batches so small that a caption has few negatives."""
        rows = self.loop.batch_size // self.loop.accumulation
        if rows < FEW_ROWS and self.accelerator.is_main_process:
            warnings.warn(
                f"A micro-batch has {rows} rows, so a caption has at most {rows - 1} negatives; the paper's has 255. "
                "For more, raise `loop.batch_size`, or lower `loop.accumulation`.",
                stacklevel=3,
            )

    def validation_losses(self) -> dict[str, float]:
        """Each loss on the validation rows in a fixed order, without augmentation, under fixed draws."""
        totals: dict[str, float] = {}
        if self.validation_set is None:
            return totals
        num_batches = math.ceil(len(self.validation_rows) / self.recipe.loop.batch_size)
        batch_size = len(self.validation_rows) // num_batches  # all alike: a contrastive loss depends on its size
        for number, rows in enumerate(self.validation_rows.split(batch_size)[:num_batches]):
            batch = self.validation_set.read(rows, NO_AUGMENTATION.expand(batch_size, 2))
            draws = cast("Objective", self.objective).draw(batch_size, seeded_generator(0, "validation", number))
            for name, loss in compute_losses(self.objective, batch, draws, self.accelerator).items():
                totals[name] = totals.get(name, 0.0) + float(loss) / num_batches
        return {f"validation_{name}": total for name, total in totals.items()}

    def feature_cache_dir(self, what: str) -> Path:
        """The folder in which features are cached, checked to be writable; `what` names them in a message.

        Raises: OSError.
        """
        machine = self.recipe.machine
        folder = Path(machine.cache_dir) if machine.cache_dir else default_cache_dir()
        check_writable(folder, what, "Set `machine.cache_dir`, or the environment variable PALINDIFF_CACHE.")
        return folder

    def _write_result(self, result: Path) -> None:
        """Write the weights of the last step, or those of the best evaluation if training may stop early."""
        best = self.output / "best"
        if not (self.patience and best.is_dir()):
            self._write(result)
            return
        with atomic_folder(result, replace=True) as unfinished:
            shutil.copytree(best, unfinished, dirs_exist_ok=True)

    def _write(self, folder: Path) -> None:
        try:
            with atomic_folder(folder, replace=True) as unfinished:
                self.save(unfinished)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"The trained model could not be written to `{folder}` ({error}). Expected a disk with room for it. "
                "Free some space; the same command then resumes from the state saved before."
            ) from error


def best_step(output: Path) -> int | None:
    """The step of a run's best evaluation; None if none was kept."""
    path = output / BEST_FILE
    return int(json.loads(path.read_text(encoding="utf-8"))["step"]) if path.exists() else None


def open_sets(recipe: Recipe) -> tuple[ImageSet, ImageSet | None]:
    """Open the images to train on and to validate on: of another split, or held out from the same; or none.

    Raises: as `open_images`, and what to do where there is nothing to validate on.
    """
    data = recipe.data
    training, validation = _all_images(recipe)
    if validation is not None:
        validation = select_where(validation, recipe.evaluation.where)
    return training if data.num_images is None else select_by_hash(training, data.num_images), validation


def _all_images(recipe: Recipe) -> tuple[ImageSet, ImageSet | None]:
    data, split = recipe.data, recipe.evaluation.validation_split
    images = open_images(data)
    if data.validation_fraction:
        return images.held_out(data.validation_fraction)
    if split is None:
        return images, None
    try:
        return images, open_images(data.model_copy(update={"split": split}))
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"{error} To validate on a part of the training images, set `data.validation_fraction: 0.05`; to "
            "train without validation, `evaluation.validation_split: null`."
        ) from error


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
