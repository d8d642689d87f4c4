"""Copy a finished run into the package: fp16 weights, the training log, the resolved recipe, a model card.

The text encoder and its tokenizer stay in their own package; `palindiff.load` puts the parts together.

Run: `python scripts/bundle_checkpoint.py emoji RUN [NEXT_RUN ...]` or `... vae-emoji RUN`. A run that started from
another's weights follows it: the weights are the last run's, the log is of all. The card of new weights says that they
are not measured; measure them, then run `scripts/bundled_card.py`.
"""

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from bundled_card import ATTRIBUTION_FILE, card  # beside this file
from diffusers import AutoencoderKL, UNet2DConditionModel

from palindiff.atomic import atomic_folder
from palindiff.models.query_stream import QueryStream
from palindiff.pretrained.bundled import CHECKPOINTS
from palindiff.pretrained.saving import make_portable
from palindiff.pretrained.vocabulary import read_vocabulary
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost
from palindiff.training.recipes.yaml_files import RECIPE_FILE, load_recipe
from palindiff.training.trainer import recipe_classes
from palindiff.training.training_cost import COST_FILE, tflop_of_step

SOURCES = {"emoji": ("checkpoint", "latest"), "vae-emoji": ("vae",)}  # where a run keeps the weights, best first
PARTS = {"emoji": {"unet": UNet2DConditionModel, "query_stream": QueryStream}, "vae-emoji": {"": AutoencoderKL}}
MAX_BYTES = {"emoji": 32_000_000, "vae-emoji": 8_000_000}  # together 40 MB


def bundle(name: str, runs: Sequence[Path], checkpoints: Path = CHECKPOINTS) -> Path:
    """Write a bundled checkpoint from the last of some runs; it replaces an older one.

    `runs` are in the order of training, each finished or (emoji) at its last evaluation.

    Raises: FileNotFoundError if a run has written no weights; ValueError if log and recipe are not those of the
        weights, the model was trained with another VAE than the bundled one, or the weights are too large.
    """
    if name not in SOURCES:
        raise ValueError(f"No checkpoint `{name}` is bundled. Expected one of: {', '.join(SOURCES)}. Use one.")
    run, source = runs[-1], _source_of(name, runs[-1])
    logs = [_log_of(_source_of(name, each), each) for each in runs]
    with atomic_folder(checkpoints / name, replace=True) as folder:
        for part, model_class in PARTS[name].items():
            model_class.from_pretrained(source / part).half().save_pretrained(folder / part)
        if name == "emoji":
            _check_vae(source / "vae", checkpoints / "vae-emoji")
            for part in ("scheduler", "query_scheduler"):
                shutil.copytree(source / part, folder / part)
            _copy_credits(run, folder)
            if (vocabulary := read_vocabulary(source)) is not None:
                vocabulary.write(folder)
        joined = "".join(json.dumps(line) + "\n" for line in _joined(logs))
        (folder / LOG_FILE).write_text(joined, encoding="utf-8")
        if len(runs) > 1:
            (folder / COST_FILE).write_text(json.dumps({"tflop": _tflop(runs, logs)}) + "\n", encoding="utf-8")
        for number, each in enumerate(runs, start=1):
            file = RECIPE_FILE if each == run else f"recipe-part{number}.yaml"
            text = (each / RECIPE_FILE).read_text(encoding="utf-8")
            (folder / file).write_text(without_folders(text), encoding="utf-8")
        make_portable(folder)
        if name == "emoji":
            (folder / "README.md").write_text(card(folder, checkpoints / "vae-emoji"), encoding="utf-8")
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        if num_bytes > MAX_BYTES[name]:
            limit = f"Expected at most {MAX_BYTES[name]:,}. Use a smaller model."
            raise ValueError(f"The weights of `{name}` take {num_bytes:,} bytes. {limit}")
    return checkpoints / name


def without_folders(recipe: str) -> str:
    """Return a recipe's text with absolute paths, which say nothing on other machines, cut to their last names."""
    return re.sub(r"(?<![\w./:])/(?:[\w.+-]+/)*([\w.+-]+)", r"\1", recipe)


def _source_of(name: str, run: Path) -> Path:
    source = next((run / part for part in SOURCES[name] if (run / part).is_dir()), None)
    if source is None:
        raise FileNotFoundError(
            f"`{run}` holds no `{'` and no `'.join(SOURCES[name])}`. Expected a run of `{name}`. Finish the training."
        )
    return source


def _joined(logs: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Put the logs of runs one after another, as if they were one run: steps and seconds go on."""
    lines: list[dict[str, float]] = []
    for log in logs:
        steps, seconds = training_cost(lines) if lines else (0, 0.0)
        for line in log:
            moved = {"step": line["step"] + steps}
            if "elapsed_s" in line:
                moved["elapsed_s"] = line["elapsed_s"] + seconds
            lines.append(line | moved)
    return lines


def _tflop(runs: Sequence[Path], logs: Sequence[Sequence[Mapping[str, float]]]) -> float:
    """TFLOP of the steps of runs, up to those of the weights that were used."""
    of_step = [tflop_of_step(load_recipe(recipe_classes(), str(run / RECIPE_FILE))) or 0.0 for run in runs]
    return sum(training_cost(log)[0] * tflop for log, tflop in zip(logs, of_step, strict=True))


def _copy_credits(run: Path, folder: Path) -> None:
    """Keep the credits of the styles that the run was trained on, of a set that says them."""
    data = yaml.safe_load((run / RECIPE_FILE).read_text(encoding="utf-8")).get("data", {})
    credits = Path(data.get("path", "")) / ATTRIBUTION_FILE
    rows = Path(data.get("path", "")) / str(data.get("split", "train")) / "metadata.jsonl"
    if not (credits.is_file() and rows.is_file()):
        return
    styles = {json.loads(line).get("style") for line in rows.read_text(encoding="utf-8").splitlines()}
    lines = credits.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition(": ")[0] in styles]
    (folder / ATTRIBUTION_FILE).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _log_of(source: Path, run: Path) -> list[dict[str, float]]:
    """Read the log up to the step of these weights."""
    log = read_log(run / LOG_FILE)
    if source.name == "latest":  # written at an evaluation, after which the run may have gone on
        last_evaluation = max((line["step"] for line in log if "evaluation_s" in line), default=0)
        return [line for line in log if line["step"] <= last_evaluation]
    num_steps = yaml.safe_load((run / RECIPE_FILE).read_text(encoding="utf-8"))["loop"]["num_steps"]
    last_step = max((line["step"] for line in log), default=0)
    if last_step != num_steps:
        raise ValueError(
            f"`{run}` has a log of {last_step} steps and a recipe of {num_steps}. Expected the log of a finished run "
            "of that recipe. Finish the training."
        )
    return log


def _check_vae(trained_with: Path, bundled: Path) -> None:
    """Refuse a model whose latents are not those of the bundled VAE."""
    ours, theirs = (
        AutoencoderKL.from_pretrained(path, use_safetensors=True).half().state_dict()
        for path in (trained_with, bundled)
    )
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
        raise ValueError(
            f"`{trained_with}` is not the VAE in `{bundled}`. Expected the VAE that the model was trained with. "
            "Run this for that VAE first."
        )


if __name__ == "__main__":
    print(bundle(sys.argv[1], [Path(each) for each in sys.argv[2:]]))
