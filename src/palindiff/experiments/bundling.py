"""From finished runs to what ships in the package: fp16 weights, the training log, a model card.

The text encoder and its tokenizer stay in their own package; `palindiff.load` puts the parts together.

Run: `python -m palindiff.experiments.bundling emoji RUN` or `... vae-emoji RUN`.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel

from palindiff.atomic import replacing_folder
from palindiff.data.emoji import ATTRIBUTION
from palindiff.models.query_stream import QueryStream
from palindiff.pretrained.saving import remove_local_paths
from palindiff.training.loop.run_log import read_log

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
SOURCES = {"emoji": ("checkpoint", "latest"), "vae-emoji": ("vae",)}  # where a run keeps the weights, best first
MAX_BYTES = {"emoji": 25_000_000, "vae-emoji": 8_000_000}

CARD = """---
library_name: diffusers
license: cc-by-sa-4.0
pipeline_tag: text-to-image
tags: [palindiff, diffdis, text-to-image, zero-shot-image-classification, image-text-retrieval]
---

# palindiff emoji

Generates 64 x 64 emoji in two styles from captions, names images, and finds images by words. {parameters} parameters
(U-Net {unet}, query stream {stream}); the text encoder is all-MiniLM-L6-v2, taken from its own package and frozen.

- **Data.** Training split of the emoji set that `palindiff data emoji` draws: {attribution}.
- **Training.** Recipe `emoji` ({command}):
  {steps:,} steps in {hours:.1f} hours of training on two CPU cores. `log.jsonl` beside this card is its log,
  `recipe.yaml` the resolved recipe. The weights are the moving average, as fp16.
- **Measures.** `results/demo.json` in the repository, quoted in its README, with the command that made them.
- **Limits.** 64 px. It knows emoji and nothing else. Of concepts that were not in training, people and
  flags come out as some person or flag, most objects as blobs of about the right colours and shape; the first name
  given is mostly wrong. Names are English. Skin tones and genders are as the two sets draw them.
- **Licence.** The weights were learned from images under CC BY 4.0 and CC BY-SA 4.0; use them under CC BY-SA 4.0 and
  with the attribution above.
"""


def ship(name: str, run: Path, checkpoints: Path = CHECKPOINTS) -> Path:
    """Write what ships under a name from a run, finished or (emoji) at its last look; an older version is replaced.

    Raises: FileNotFoundError if the run has written no weights; ValueError if log and recipe are not those of the
        weights, the model was trained with another VAE than ships, or the weights are larger than may ship.
    """
    if name not in SOURCES:
        raise ValueError(f"Nothing called `{name}` ships. Expected one of: {', '.join(SOURCES)}.")
    target, possible = checkpoints / name, SOURCES[name]
    source = next((run / part for part in possible if (run / part).is_dir()), None)
    if source is None:
        raise FileNotFoundError(
            f"`{run}` holds no `{'` and no `'.join(possible)}`. Expected a run of `{name}`. "
            "Let the training go on first."
        )
    log = _log_of(source, run)
    if name == "emoji":
        _check_vae(source / "vae", checkpoints / "vae-emoji")
    with replacing_folder(target) as folder:
        if name == "emoji":
            _write_emoji(source, run, folder, log)
        else:
            AutoencoderKL.from_pretrained(source).half().save_pretrained(folder)
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        shutil.copy(run / "recipe.yaml", folder / "recipe.yaml")
        remove_local_paths(folder)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        if num_bytes > MAX_BYTES[name]:
            raise ValueError(
                f"The weights of `{name}` take {num_bytes:,} bytes. Expected at most {MAX_BYTES[name]:,}. "
                "Train a smaller model."
            )
    return target


def _log_of(source: Path, run: Path) -> list[dict[str, float]]:
    """The log up to the step of these weights."""
    log = read_log(run / "log.jsonl")
    if source.name == "latest":  # written at a look, after which the run went on
        last_look = max((line["step"] for line in log if "evaluation_s" in line), default=0)
        return [line for line in log if line["step"] <= last_look]
    num_steps = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["loop"]["num_steps"]
    last_step = max((line["step"] for line in log), default=0)
    if last_step != num_steps:
        raise ValueError(
            f"`{run}` has a log of {last_step} steps and a recipe of {num_steps}. Expected a run that its recipe "
            "made. Let the training go on first."
        )
    return log


def _check_vae(trained_with: Path, ships: Path) -> None:
    """The emoji model's latents are those of one VAE."""
    ours, bundled = (AutoencoderKL.from_pretrained(folder).half().state_dict() for folder in (trained_with, ships))
    if ours.keys() != bundled.keys() or any(not torch.equal(ours[name], bundled[name]) for name in ours):
        raise ValueError(
            f"`{trained_with}` is not the VAE in `{ships}`. Expected the one that the model was trained with. "
            "Ship that VAE first."
        )


def _write_emoji(source: Path, run: Path, folder: Path, log: list[dict[str, float]]) -> None:
    unet = UNet2DConditionModel.from_pretrained(source / "unet").half()
    stream = QueryStream.from_pretrained(source / "query_stream").half()
    unet.save_pretrained(folder / "unet")
    stream.save_pretrained(folder / "query_stream")
    for part in ("scheduler", "query_scheduler"):
        shutil.copytree(source / part, folder / part)
    counts = [model.num_parameters() / 1e6 for model in (unet, stream)]
    (folder / "README.md").write_text(
        CARD.format(
            parameters=f"{sum(counts):.1f} M",
            unet=f"{counts[0]:.1f} M",
            stream=f"{counts[1]:.1f} M",
            attribution="; ".join(f"{style}: {source}" for style, source in ATTRIBUTION.items()),
            command=(run / "recipe.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
            steps=int(max(line["step"] for line in log)),
            hours=max(line.get("elapsed_s", 0.0) for line in log) / 3600,
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    print(ship(sys.argv[1], Path(sys.argv[2])))
