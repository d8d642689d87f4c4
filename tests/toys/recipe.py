"""A whole recipe at toy size: a text encoder, a VAE and drawn images on disk, and two small networks."""

import json

import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw

from palindiff.models.vae import VaeConfig, build_vae
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.train_diffdis import DiffDisTrainer
from palindiff.training.trainer import train_recipe
from toys.run import cpu_accelerator
from toys.text_encoders import write_sentence_encoder

SIDE_PX = 16
VAE = VaeConfig(widths=(8, 8), latent_channels=3, norm_groups=4, image_size_px=SIDE_PX)
COLOURS = ("red", "green", "blue", "black")


def toy_vae(seed=2):
    """16 px images <=> latents of 3 x 8 x 8."""
    torch.manual_seed(seed)
    return build_vae(VAE).eval()


def drawing(number):
    """An image whose mirror image is another."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    colour = COLOURS[number % len(COLOURS)]
    ImageDraw.Draw(image).polygon([(1, 1), (2, 14), (4 + number % 12, number * 7 % 16)], fill=colour)
    return image


def write_split(folder, rows, drawn_from=0):
    """Write rows of a split, each with a drawing of its own."""
    for number, row in enumerate(rows, start=drawn_from):
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(number).save(path)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_drawings(folder):
    """Twelve images to train on, with one to three captions each, and six labelled ones to validate on."""
    train = [
        {
            "file_name": f"{i}.png",
            "captions": [f"a {COLOURS[i % 4]} {'abcdef'[i // 2]}", "a red a", "an x"][: i % 3 + 1],
        }
        for i in range(12)
    ]
    validation = [
        {"file_name": f"{i}.png", "captions": [f"a {COLOURS[i % 4]} {'ghi'[i % 3]}", "an x"], "label": "ghi"[i % 3]}
        for i in range(6)
    ]
    write_split(folder / "train", train)
    write_split(folder / "validation", validation, drawn_from=12)
    return folder


def write_toy_parts(root):
    """Write the folders that `recipe_tree` names."""
    write_sentence_encoder(root / "encoder")
    toy_vae().save_pretrained(root / "vae")
    write_drawings(root / "images")
    return root


def recipe_tree(root, **sections):
    """A recipe as YAML holds it; keyword arguments lie over its sections."""
    tree = {
        "data": {"path": str(root / "images")},
        "text": {"source": str(root / "encoder")},
        "vae": str(root / "vae"),
        "unet": {"widths": [32, 32], "head_dim": 16, "norm_groups": 8},
        "query_stream": {"num_head_layers": 1, "head_width": 16, "head_dim": 8, "gamma": 1.0},
        "objective": {},
        "optimizer": {"learning_rate": 1e-3, "new_learning_rate": 2e-3, "warmup_steps": 2},
        "loop": {"num_steps": 2, "batch_size": 4, "ema_decay": 0.5, "log_every": 1},
        "evaluation": {"naming_steps": 2, "num_inference_steps": 2},
        "machine": {"cache_dir": str(root / "cache")},
    }
    return tree | {name: tree.get(name, {}) | section if isinstance(section, dict) else section
                   for name, section in sections.items()}  # fmt: skip


def toy_recipe(root, **sections):
    return DiffDisRecipe.model_validate(recipe_tree(root, **sections))


def train_toy_recipe(recipe, output):
    """Train, whatever accelerator an earlier test left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_recipe(recipe, output, show_progress=False)


def prepare_toy(recipe, output, progress=None):
    """A trainer with the models and features of a recipe, before any training."""
    return DiffDisTrainer(recipe, output, cpu_accelerator(), progress).prepare()


def weights_of(pipeline):
    """Copies of all weights that training may change, by name."""
    parts = {"unet": pipeline.unet, "query_stream": pipeline.query_stream}
    return {
        f"{part}.{name}": weight.detach().clone()
        for part, module in parts.items()
        for name, weight in module.named_parameters()
    }
