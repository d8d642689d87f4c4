"""From finished runs to what ships in the package: fp16 weights, the training log, a model card.

The text tower and its tokenizer stay in their own package; `palindiff.load` puts the parts together.

Run: `python -m palindiff.experiments.shipping emoji RUN` or `... codec-emoji RUN`.
"""

import json
import shutil
import sys
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel

from palindiff.data.emoji import ATTRIBUTION
from palindiff.data.publish import replaced_folder
from palindiff.models.query_stream import QueryStream
from palindiff.training.journal import read_log

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
MAX_BYTES = {"emoji": 25_000_000, "codec-emoji": 8_000_000}

CARD = """---
library_name: diffusers
license: cc-by-sa-4.0
pipeline_tag: text-to-image
tags: [palindiff, diffdis, text-to-image, zero-shot-image-classification, image-text-retrieval]
---

# palindiff emoji

Paints 64 x 64 emoji in two styles from captions, names pictures, and finds pictures by words. {parameters} parameters
(U-Net {unet}, query stream {stream}); the text tower is all-MiniLM-L6-v2, taken from its own package and frozen.

- **Data.** Training split of the emoji set that `palindiff data emoji` draws: {attribution}.
- **Training.** Recipe `emoji` ({command}):
  {steps:,} steps in {hours:.1f} hours of training on two CPU cores. `log.jsonl` beside this card is its log,
  `recipe.yaml` the resolved recipe. The weights are the moving average, as fp16.
- **Measures.** `results/demo.json` in the repository, quoted in its README, with the command that made them.
- **Limits.** 64 px. It knows emoji and nothing else. Concepts that were not in training
  are painted as blobs of about the right colours and shape. Names are English. Skin tones and genders are as the two
  sets draw them.
- **Licence.** The weights were learned from pictures under CC BY 4.0 and CC BY-SA 4.0; use them under CC BY-SA 4.0 and
  with the attribution above.
"""


def ship(name: str, run: Path, checkpoints: Path = CHECKPOINTS) -> Path:
    """Write what ships under a name from a finished run; an older version is replaced.

    Raises: FileNotFoundError if the run is not finished; ValueError if the weights are larger than may ship.
    """
    target = checkpoints / name
    possible = {"emoji": ("checkpoint", "latest"), "codec-emoji": ("vae",)}[name]
    source = next((run / part for part in possible if (run / part).is_dir()), None)
    if source is None:
        raise FileNotFoundError(
            f"`{run}` holds no `{'` and no `'.join(possible)}`. Expected a run of `{name}`. "
            "Let the training go on first."
        )
    with replaced_folder(target) as folder:
        (_write_emoji if name == "emoji" else _write_codec)(source, run, folder)
        shutil.copy(run / "log.jsonl", folder / "log.jsonl")
        shutil.copy(run / "recipe.yaml", folder / "recipe.yaml")
        _forget_where_they_lay(folder)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        if num_bytes > MAX_BYTES[name]:
            raise ValueError(
                f"The weights of `{name}` take {num_bytes:,} bytes. Expected at most {MAX_BYTES[name]:,}. "
                "Train a smaller model."
            )
    return target


def _forget_where_they_lay(folder: Path) -> None:
    """Take out of every config.json the path that its model was loaded from: it is this machine's alone."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_codec(source: Path, run: Path, folder: Path) -> None:
    AutoencoderKL.from_pretrained(source).half().save_pretrained(folder)


def _write_emoji(source: Path, run: Path, folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(source / "unet").half()
    stream = QueryStream.from_pretrained(source / "query_stream").half()
    unet.save_pretrained(folder / "unet")
    stream.save_pretrained(folder / "query_stream")
    for part in ("scheduler", "query_scheduler"):
        shutil.copytree(source / part, folder / part)
    log = read_log(run / "log.jsonl")
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
