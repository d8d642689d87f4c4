"""What the demo takes, at toy size: a recipe to train, and a bundled model with its log."""

import json

import yaml
from diffusers import DDIMScheduler

from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.training.recipes.build_models import UNetConfig, build_unet
from toys.recipe import recipe_tree, toy_vae

MINILM_WIDTH = 384
BUNDLED_LOG = [{"step": 1, "loss": 2.0, "generation": 1.0, "alignment": 1.0, "elapsed_s": 60.0},
               {"step": 500, "loss": 1.0, "generation": 0.5, "alignment": 0.5, "elapsed_s": 1200.0},
               {"step": 500, "image_to_text_recall_10": 0.5, "evaluation_s": 9.0}]  # fmt: skip


def write_timed_recipe(path, root):
    """A recipe as `emoji-quick` is one: all but its data, seed and number of steps are as they will be."""
    tree = recipe_tree(root, loop={"num_steps": 7, "evaluate_every": 0}, data={"path": "nowhere"})
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def write_bundled(base):
    """Toy networks for the real text encoder, laid out as the package's own checkpoints."""
    vae = toy_vae()
    vae.save_pretrained(base / "vae-emoji")
    unet = build_unet(UNetConfig(widths=(32, 32), head_dim=16, norm_groups=8), vae, MINILM_WIDTH)
    unet.save_pretrained(base / "emoji" / "unet")
    config = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8, gamma=1.0)
    QueryStream.for_unet(unet, MINILM_WIDTH, config, "mean").save_pretrained(base / "emoji" / "query_stream")
    text_diffusion_scheduler().save_pretrained(base / "emoji" / "query_scheduler")
    generation = {"prediction_type": "v_prediction", "steps_offset": 1}
    DDIMScheduler.from_config(text_diffusion_scheduler().config, **generation).save_pretrained(
        base / "emoji" / "scheduler"
    )
    (base / "emoji" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in BUNDLED_LOG))
    return base
