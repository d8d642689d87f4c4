"""Copy a finished run into the package: fp16 weights, the training log, the resolved recipe, a model card.

The text encoder and its tokenizer stay in their own package; `palindiff.load` puts the parts together.

Run: `python scripts/bundle_checkpoint.py emoji RUN` or `... vae-emoji RUN`. The card of new weights says that they are
not measured; measure them, then run `scripts/bundled_card.py`.
"""

import json
import shutil
import sys
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
from palindiff.training.loop.run_log import read_log

SOURCES = {"emoji": ("checkpoint", "latest"), "vae-emoji": ("vae",)}  # where a run keeps the weights, best first
PARTS = {"emoji": {"unet": UNet2DConditionModel, "query_stream": QueryStream}, "vae-emoji": {"": AutoencoderKL}}
MAX_BYTES = {"emoji": 32_000_000, "vae-emoji": 8_000_000}  # together 40 MB


def bundle(name: str, run: Path, checkpoints: Path = CHECKPOINTS) -> Path:
    """Write a bundled checkpoint from a run, finished or (emoji) at its last evaluation; it replaces an older one.

    Raises: FileNotFoundError if the run has written no weights; ValueError if log and recipe are not those of the
        weights, the model was trained with another VAE than the bundled one, or the weights are too large.
    """
    if name not in SOURCES:
        raise ValueError(f"No checkpoint `{name}` is bundled. Expected one of: {', '.join(SOURCES)}. Use one.")
    source = next((run / part for part in SOURCES[name] if (run / part).is_dir()), None)
    if source is None:
        raise FileNotFoundError(
            f"`{run}` holds no `{'` and no `'.join(SOURCES[name])}`. Expected a run of `{name}`. Finish the training."
        )
    log = _log_of(source, run)
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
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        shutil.copy(run / "recipe.yaml", folder / "recipe.yaml")
        make_portable(folder)
        if name == "emoji":
            (folder / "README.md").write_text(card(folder, checkpoints / "vae-emoji"), encoding="utf-8")
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        if num_bytes > MAX_BYTES[name]:
            limit = f"Expected at most {MAX_BYTES[name]:,}. Use a smaller model."
            raise ValueError(f"The weights of `{name}` take {num_bytes:,} bytes. {limit}")
    return checkpoints / name


def _copy_credits(run: Path, folder: Path) -> None:
    """Keep the credits of the styles that the run was trained on, of a set that says them."""
    data = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")).get("data", {})
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
    log = read_log(run / "log.jsonl")
    if source.name == "latest":  # written at an evaluation, after which the run went on
        last_evaluation = max((line["step"] for line in log if "evaluation_s" in line), default=0)
        return [line for line in log if line["step"] <= last_evaluation]
    num_steps = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["loop"]["num_steps"]
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
    print(bundle(sys.argv[1], Path(sys.argv[2])))
