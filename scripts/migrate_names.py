"""Rename keys and labels of recorded files to the current names: result files, training logs, recipes, weights.

Only names change: a file whose numbers would differ after renaming is refused and not written.

Run: python scripts/migrate_names.py FILE ... (results/*.json, log.jsonl, recipe.yaml; query_stream folders
without a CLIP projection)
"""

import json
import re
import shutil
import sys
from pathlib import Path

from palindiff.atomic import atomic_folder, atomic_text

NAMES = {  # whole words, old -> new
    "picture_to_text": "image_to_text",
    "text_to_picture": "text_to_image",
    "caption_to_painting": "caption_to_generated",
    "painting": "generation",
    "validation_painting": "validation_generation",
    "pictures_per_s": "images_per_s",
    "picture_to_text_recall": "image_to_text_recall",
    "text_to_picture_recall": "text_to_image_recall",
    "shipped": "bundled",
    "codec": "vae",
    "watch": "evaluation",
    "num_pictures": "num_images",
    "check_pictures": "check_images",
    "name one picture, joint": "name one image, joint",
    "name one picture, one_way": "name one image, one_way",
    "paint one picture": "generate one image",
}
RECALL_KEY = re.compile(r"(picture_to_text|text_to_picture)_recall_(\d+)")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")
PROJECTION_SETTINGS = ("projection_width", "text_tail_settings")  # of a query stream, null without a projection
TENSORS = {"picture_into_head": "image_into_head"}


def rename_word(word: str) -> str:
    """Return the current name of a key or label."""
    if match := RECALL_KEY.fullmatch(word):
        return f"{NAMES[match[1]]}_recall_{match[2]}"
    return NAMES.get(word, word)


def rename_text(text: str, is_yaml: bool) -> str:
    """Rename quoted keys and labels of JSON, or keys and plain values of YAML; `command` stays as it was run."""
    quoted = re.compile(r'(?<!\\)"([^"\\\n]+)"')
    lines = []
    for line in text.splitlines(keepends=True):
        if '"command":' in line:
            lines.append(line)
        elif is_yaml:
            lines.append(re.sub(r"\b(\w+)(?=:)|(?<=: )(\w+)(?=\s*$)", lambda m: rename_word(m[0]), line))
        else:
            lines.append(quoted.sub(lambda m: f'"{rename_word(m[1])}"', line))
    return "".join(lines)


def numbers(text: str) -> list[str]:
    """Return every number of a text, as written, in order; digits within a name do not count."""
    return NUMBER.findall(text)


def migrate(path: Path) -> None:
    """Rename in one file, or the tensors in the folder of a query stream.

    Raises: ValueError if a number would change.
    """
    if path.is_dir():
        migrate_tensors(path)
        return
    text = path.read_text(encoding="utf-8")
    renamed = rename_text(text, path.suffix == ".yaml")
    if numbers(text) != numbers(renamed):
        raise ValueError(f"Renaming would change a number of `{path}`. Expected only names to change. Fix NAMES.")
    if path.suffix == ".json" and path.stem != "config":
        json.loads(renamed)
    atomic_text(path, renamed)


def migrate_tensors(folder: Path) -> None:
    """Rename the settings and tensors of a query stream.

    Raises: ValueError if it holds a CLIP projection, which is stored otherwise now, or two tensors would share a name.
    """
    from safetensors.torch import load_file, save_file

    weights = folder / "diffusion_pytorch_model.safetensors"
    before = load_file(weights)
    after = {".".join(TENSORS.get(part, part) for part in name.split(".")): tensor for name, tensor in before.items()}
    if len(after) != len(before):
        raise ValueError(f"Two tensors of `{weights}` would share a name. Expected only names to change. Fix TENSORS.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if any(config.pop(name, None) is not None for name in PROJECTION_SETTINGS):
        raise ValueError(f"`{folder}` holds a CLIP projection. Expected none. Build it again with `palindiff init`.")
    with atomic_folder(folder, replace=True) as unfinished:
        shutil.copytree(folder, unfinished, dirs_exist_ok=True)
        save_file(after, unfinished / weights.name, metadata={"format": "pt"})
        settings = {"clip_projection_settings": None} | config
        (unfinished / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        migrate(Path(name))
