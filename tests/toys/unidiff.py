"""UniDiff at toy size: a Stable Diffusion 1.x and its CLIP, on drawings."""

from accelerate.state import AcceleratorState

from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.trainer import train_recipe


def unidiff_tree(root, models, **sections):
    """A recipe as YAML holds it; keyword arguments lie over its sections. models: the fixture `stable_diffusion`."""
    tree = {
        "data": {"path": str(root / "images")},
        "clip": {"source": str(models / "clip_1")},
        "stable_diffusion": {"source": str(models / "sd1")},
        "objective": {"name": "unidiff"},
        "optimizer": {"learning_rate": 1e-3, "new_learning_rate": 1e-2, "warmup_steps": 2},
        "loop": {"num_steps": 4, "batch_size": 4, "ema_decay": 0.5, "log_every": 1, "save_every": 2,
                 "evaluate_every": 2},
        "evaluation": {"evaluators": ["retrieval"]},
        "machine": {"cache_dir": str(root / "cache"), "log_with": []},
    }  # fmt: skip
    merged = {
        name: {**tree.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in sections.items()
    }
    return tree | merged


def unidiff_recipe(root, models, **sections):
    return UniDiffRecipe.model_validate(unidiff_tree(root, models, **sections))


def train_unidiff(recipe, output):
    """Train, whatever accelerator an earlier test left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_recipe(recipe, output, show_progress=False)
