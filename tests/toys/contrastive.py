"""Contrastive models and recipes at toy size."""

import torch
from accelerate.state import AcceleratorState

from palindiff.models.image_encoder import ImageEncoderConfig, build_image_encoder
from palindiff.training.recipes.schema import ContrastiveRecipe
from palindiff.training.trainer import train_recipe

TOY_VIT = ImageEncoderConfig(image_size_px=16, patch_size_px=8, width=16, num_layers=2, head_dim=8)


def toy_image_encoder(d_e, seed=3):
    torch.manual_seed(seed)
    return build_image_encoder(TOY_VIT, d_e).eval()


def contrastive_tree(root, text_encoder, **sections):
    """A recipe as YAML holds it, on the drawings of `toy_parts`; keyword arguments lie over its sections."""
    tree = {
        "data": {"path": str(root / "images")},
        "text": {"source": str(text_encoder)},
        "image_encoder": TOY_VIT.model_dump(),
        "views": {"flip": "naming", "crops": 1},
        "objective": {"name": "contrastive"},
        "optimizer": {"learning_rate": 1e-3, "new_learning_rate": 1e-2, "warmup_steps": 2},
        "loop": {"num_steps": 4, "batch_size": 4, "ema_decay": 0.5, "log_every": 1, "save_every": 2,
                 "evaluate_every": 2},
        "machine": {"cache_dir": str(root / "cache")},
    }  # fmt: skip
    return tree | {name: tree.get(name, {}) | section for name, section in sections.items()}


def contrastive_recipe(root, text_encoder, **sections):
    return ContrastiveRecipe.model_validate(contrastive_tree(root, text_encoder, **sections))


def train_contrastive(recipe, output):
    """Train, whatever accelerator an earlier test left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_recipe(recipe, output, show_progress=False)
