"""Search for a text diffusion that uses its query: at most 12 variants, trained for naming alone, on one seed.

Run: python benchmarks/chain_search.py --output DIR [--variants A,B] [--steps 1500] [--threads 1] [--recipe emoji]
     [--set KEY=VALUE ...] [--results results/chain_search.json]

Each variant is trained on the training split and measured on the validation split: the evaluator `chain_use`, and
retrieval from pure noise with 1 step, 8 steps, 8 guided steps, and the mean of 4 samplings. A variant is live if, at
any step that `chain_use` measures, the predictions from the image's own query and from noise have a mean cosine below
0.99. Chosen is the live variant with the highest recall@10 with 8 steps, the mean of both directions, among those of
equal length; never the one with the lowest loss. `none-twice` and `twice` repeat the regression and the chosen variant
with twice the steps.

Rerun the same command to resume: finished variants are not trained again. Processes with one --output and different
--variants may run side by side.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from palindiff.data.sources import open_images
from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationImages, chain_use
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.naming_tasks import caption_retrieval
from palindiff.evaluation.provenance import git_state
from palindiff.evaluation.results import Row, read_results, script_command, write_results
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.training.cost.flops import naming_tflop, step_tflop
from palindiff.training.cost.weight_free import fake_run
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import config_hash, load_recipe, prepare_run_dir
from palindiff.training.trainer import train_recipe

ROOT = Path(__file__).parents[1]
LIVE_BELOW = 0.99  # mean cosine of the predictions from the own query and from noise
RECALLS = ("text_retrieval_recall@10", "image_retrieval_recall@10")  # what chooses, their mean
AT_ONCE = 64  # images encoded together


class Setting(NamedTuple):
    """How a trained variant names images."""

    label: str
    steps: int
    guidance_scale: float = 1.0
    num_samples: int = 1


CHOOSES = "8 steps"
BEFORE = (  # what the recipe `emoji` was when the search was made, and chose its text diffusion
    "data.caption_column=null", "loop.batch_size=64", "optimizer.decay=cosine", "optimizer.learning_rate=8.0e-4",
    "optimizer.new_learning_rate=8.0e-4", "query_stream.query_scale=unit", "query_stream.gamma=1.0",
    "query_scheduler.rescale_betas_zero_snr=false", "objective.t_e_power=1",
)  # fmt: skip
SETTINGS = (
    Setting("1 step", 1),
    Setting(CHOOSES, 8),
    Setting("8 steps, guidance scale 4", 8, 4.0),
    Setting("8 steps, mean of 4 samplings", 8, 1.0, 4),
)


class Variant(NamedTuple):
    """Recipe keys of a variant; without any, they are those of the chosen one."""

    overrides: tuple[str, ...] | None
    is_twice: bool = False  # trained for twice the steps, and not to be chosen


NOISY = ("query_scheduler.rescale_betas_zero_snr=true", "objective.t_e_power=4")
SQRT_D = ("query_stream.query_scale=sqrt_d", *NOISY)
C_IN, ANY_CAPTION = "query_stream.query_input=normalised", "objective.query_caption=any"
VARIANTS = {
    "none": Variant(("query_stream.text_chain=none",)),
    "unit": Variant(("query_stream.gamma=1",)),
    "sqrt_d": Variant((*SQRT_D, "query_stream.gamma=1")),
    "sqrt_d-0.3": Variant((*SQRT_D, "query_stream.gamma=0.3")),
    "sqrt_d-0.5": Variant((*SQRT_D, "query_stream.gamma=0.5")),
    "c_in": Variant((*SQRT_D, "query_stream.gamma=1", C_IN)),
    "c_in-0.5": Variant((*SQRT_D, "query_stream.gamma=0.5", C_IN)),
    "c_in-unit": Variant((*NOISY, "query_stream.gamma=1", C_IN)),
    "captions": Variant((*SQRT_D, "query_stream.gamma=1", ANY_CAPTION)),
    "captions-c_in-uniform": Variant(
        (*SQRT_D, "query_stream.gamma=1", ANY_CAPTION, C_IN, "objective.t_e_power=1")
    ),
    "none-twice": Variant(("query_stream.text_chain=none",), is_twice=True),
    "twice": Variant(None, is_twice=True),
}  # fmt: skip


@dataclass(frozen=True)
class Search:
    """The variants of a search, and what they have in common."""

    output: Path
    recipe: str = "emoji"
    steps: int = 1500
    common: tuple[str, ...] = ()  # recipe keys of every variant
    variants: Mapping[str, Variant] = field(default_factory=lambda: VARIANTS)

    def run(self, names: Sequence[str], results: Path, command: str) -> None:
        """Train and measure what is not finished; after each, write the rows of all that are.

        Raises: ValueError for an unknown variant, or if the chosen variant is to be prolonged before there is one.
        """
        if unknown := [name for name in names if name not in self.variants]:
            raise ValueError(
                f"There is no variant `{unknown[0]}`. Expected one of {', '.join(self.variants)}. Use one of these."
            )
        for name in names:
            recipe = self.recipe_of(name)
            if self.finished(name, recipe) is None:
                began = time.perf_counter()
                rows = self.train_and_measure(name, recipe)
                settings = {"overrides": self.overrides(name)}
                write_results(self.file(name), rows, command, settings, recipe.loop.seed, time.perf_counter() - began)
            self.write(results, command)

    def recipe_of(self, name: str) -> DiffDisRecipe:
        """The recipe of a variant."""
        steps = self.steps * (2 if self.variants[name].is_twice else 1)
        schedule = {
            "loop.num_steps": steps,
            "optimizer.warmup_steps": steps // 15,
            "optimizer.decay_steps": steps // 3,
        }
        fixed = [
            "objective.task=alignment", "machine.precision=fp32", "machine.log_with=[]", "loop.evaluate_every=0",
            "evaluation.evaluators=[]", "evaluation.keep_best=none", "evaluation.prompts=[]", *BEFORE,
        ]  # fmt: skip
        of_length = [f"{key}={value}" for key, value in schedule.items()]
        return load_recipe(DiffDisRecipe, self.recipe, [*fixed, *of_length, *self.common, *self.overrides(name)])

    def overrides(self, name: str) -> tuple[str, ...]:
        """The recipe keys of a variant.

        Raises: ValueError if they are those of the chosen one, and others are not finished or none is live.
        """
        own = self.variants[name].overrides
        if own is not None:
            return own
        others = [each for each, variant in self.variants.items() if not variant.is_twice]
        missing = [each for each in others if self.finished(each, self.recipe_of(each)) is None]
        chosen = None if missing else self.chosen()
        if chosen is None:
            found = f"{', '.join(missing)} not finished" if missing else "no live variant"
            raise ValueError(
                f"`{name}` prolongs the chosen variant, but there is {found} in `{self.output}`. Expected a choice "
                "among all others. Use --variants without it, and rerun when they are finished."
            )
        return self.overrides(chosen)

    def train_and_measure(self, name: str, recipe: DiffDisRecipe) -> list[Row]:
        """Train a variant, or resume its training, and measure it on the validation split."""
        folder = self.output / name
        prepare_run_dir(recipe, folder, f"{self.recipe}, variant {name}")
        print(f"{name}: training {recipe.loop.num_steps} steps", flush=True)
        pipeline = train_recipe(recipe, folder, show_progress=False)
        print(f"{name}: evaluation", flush=True)
        train_tflop, tflop = costs(recipe)
        facts = {
            "config_hash": config_hash(recipe)[:16], "commit": git_state(ROOT)[0], "steps": recipe.loop.num_steps,
            "train_tflop": train_tflop, "train_seconds": training_cost(read_log(folder / LOG_FILE))[1],
        }  # fmt: skip
        return [
            {"name": name, "seed": recipe.loop.seed, **row, **facts, "tflop_per_image": tflop.get(setting)}
            for setting, rows in measure(pipeline, recipe).items()
            for row in rows
        ]

    def file(self, name: str) -> Path:
        """Where the rows of a finished variant are."""
        return self.output / name / "rows.json"

    def finished(self, name: str, recipe: DiffDisRecipe) -> list[Row] | None:
        """The rows of a variant that was trained by this recipe, or None."""
        rows = read_results(self.file(name)).rows if self.file(name).exists() else []
        return rows if rows and rows[0]["config_hash"] == config_hash(recipe)[:16] else None

    def all_finished(self) -> dict[str, list[Row]]:
        """The rows of every finished variant, by name, in the order of the search."""
        found = {}
        for name, variant in self.variants.items():
            if variant.overrides is not None or self.file(name).exists():
                rows = self.finished(name, self.recipe_of(name))
                found |= {} if rows is None else {name: rows}
        return found

    def chosen(self) -> str | None:
        """The live variant with the highest recall when naming starts from noise; None if none is live."""
        single = {name: each for name, each in self.variants.items() if not each.is_twice}
        rows = {name: self.finished(name, self.recipe_of(name)) for name in single}
        live = {name: recall(of_one) for name, of_one in rows.items() if of_one is not None and is_live(of_one)}
        return max(live, key=lambda name: live[name]) if live else None

    def write(self, results: Path, command: str) -> None:
        """Write the rows of all finished variants, with which of them are live and which is chosen."""
        found, chosen = self.all_finished(), self.chosen()
        rows = [
            row | {"is_live": is_live(of_one), "is_chosen": name == chosen}
            for name, of_one in found.items()
            for row in of_one
        ]
        settings = {
            "recipe": self.recipe, "steps": self.steps, "common": list(self.common), "chosen": chosen,
            "variants": {name: list(self.overrides(name)) for name in found},
            "unfinished": [name for name in self.variants if name not in found],
        }  # fmt: skip
        elapsed_s = sum(read_results(self.file(name)).elapsed_s for name in found)
        write_results(results, rows, command, settings, int(str(rows[0]["seed"])), elapsed_s)
        for name, of_one in found.items():
            marks = ("live" if is_live(of_one) else "not live") + (", chosen" if name == chosen else "")
            print(f"{name}: mean recall@10 {recall(of_one):.1%}, {marks}", flush=True)


def costs(recipe: DiffDisRecipe) -> tuple[float, dict[Setting | None, float]]:
    """TFLOP of a training, and of naming one image in each setting."""
    with fake_run(recipe) as run:
        train_tflop = recipe.loop.num_steps * sum(step_tflop(run, recipe).values())
        parts = naming_tflop(run, EvaluationConfig(naming_steps=1))
    once = parts["VAE"] + parts["reading"]
    is_regression = recipe.query_stream.text_chain == "none"
    passes = {
        each: (1 if is_regression else each.steps) * (1 if each.guidance_scale == 1 else 2) * each.num_samples
        for each in SETTINGS
    }
    return train_tflop, {each: once + number * parts["denoising"] for each, number in passes.items()}


@torch.no_grad()
def measure(pipeline: PalindiffPipeline, recipe: DiffDisRecipe) -> dict[Setting | None, list[Row]]:
    """Measure the validation split: retrieval in each setting, and under None what `chain_use` finds."""
    data = recipe.data.model_copy(update={"split": recipe.evaluation.validation_split})
    images = list(open_images(data))
    parts = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
    z = torch.cat([pipeline.encode_latents([each.source for each in part], data.fit) for part in parts])
    captions = [each.captions for each in images]
    found: dict[Setting | None, list[Row]] = {}
    for setting in SETTINGS:
        options = setting._asdict()
        label, steps, scale, num_samples = options.values()
        e_0_hat = pipeline.encode_image(z, steps, scale, num_samples=num_samples).cpu()
        found[setting] = []
        for metric in caption_retrieval(e_0_hat, captions, pipeline.encode_text):
            low, high = (None, None) if metric.items is None else bootstrap_interval(metric.items)
            found[setting].append({
                "setting": label, "metric": metric.name, "value": metric.value, "ci_low": low, "ci_high": high,
                "n": metric.n, "chance": metric.chance,
            })  # fmt: skip
    used = chain_use(pipeline, EvaluationImages(z, [each[0] for each in captions]), EvaluationConfig())
    found[None] = [{"setting": "chain_use", "ci_low": None, "ci_high": None, "chance": None} | row for row in used]
    return found


def is_live(rows: Sequence[Row]) -> bool:
    """Whether the predictions from the own query and from noise differ at any step."""
    cosines = [float(str(row["value"])) for row in rows if str(row["metric"]).startswith("chain_cosine_noise")]
    return any(cosine < LIVE_BELOW for cosine in cosines)


def recall(rows: Sequence[Row]) -> float:
    """Mean of recall@10 in both directions, in the setting that chooses."""
    found = [float(str(row["value"])) for row in rows if row["setting"] == CHOOSES and row["metric"] in RECALLS]
    assert len(found) == len(RECALLS), "as every finished variant was measured"
    return sum(found) / len(found)


def main() -> None:
    """Run the search, or the variants that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, separated by commas (default: all)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of a variant (default: 1500)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--recipe", default="emoji", help="recipe that the variants change (default: emoji)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE of it; repeatable")
    parser.add_argument("--results", type=Path, default=Path("results/chain_search.json"), help="file of the rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    search = Search(args.output, args.recipe, args.steps, tuple(args.overrides))
    command = script_command(__file__)
    try:
        search.run(args.variants.split(","), args.results, command)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
