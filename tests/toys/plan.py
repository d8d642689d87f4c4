"""A plan of a reproduction at toy size: variants of both tasks, of one, and one that starts from another."""

import yaml

from toys.recipe import recipe_tree, write_toy_parts

QUIET = ["machine.log_with=[]", "loop.evaluate_every=0", "evaluation.evaluators=[]", "evaluation.keep_best=none"]


def write_plan_parts(root):
    """The toy text encoder, VAE and images, with a recipe file that names them."""
    write_toy_parts(root)
    tree = recipe_tree(root, loop={"num_steps": 2, "batch_size": 4, "ema_decay": 0.5}, data={"path": "nowhere"})
    (root / "toy.yaml").write_text(yaml.safe_dump(tree))
    return root


def toy_plan(parts):
    """A plan as YAML holds it, to be changed."""
    return {
        "about": "toys",
        "recipe": str(parts / "toy.yaml"),
        "seeds": [0, 1],
        "settings": {"common": [*QUIET, "data.path={data}/images"]},
        "variants": {
            "both": {},
            "alignment": {"set": ["objective.task=alignment"]},
            "alignment-long": {"set": ["objective.task=alignment"], "same_flop_as": "both"},
            "tuned": {
                "start": "both",
                "seeds": [0],
                "set": ["unet=null", "vae=null", "scheduler=null", "text={}", "base.query_stream=new"],
            },
        },
        "naming": {
            "validation": {
                "path": "{data}/images", "split": "validation", "tasks": ["retrieval", "classification"],
                "templates": ["a {}"], "retrieval_ks": [1, 3], "recall_k": 3,
            }
        },
        "primary": "validation",
        "claimed_generation": "few",
        "controls": ["both"],
        "columns": {
            "recall": {
                "title": "recall@3", "data": ["validation"],
                "metrics": ["text_retrieval_recall@3", "image_retrieval_recall@3"],
            },
            "accuracy": {"title": "accuracy", "metrics": ["acc1"], "data": ["validation"]},
            "kd": {"title": "KD", "metrics": ["kd_efflite0"], "is_share": False},
        },
        "generation": {
            "few": {"path": "{data}/images", "split": "validation", "num_images": 4, "kid_subset_size": 3,
                    "num_inference_steps": 2}
        },
        "tables": {
            "table4": {
                "title": "One task against both",
                "generation": "few",
                "columns": ["recall", "accuracy", "kd"],
                "rows": [
                    {"label": "discriminate only", "variant": "alignment", "paper": {"ImageNet": 11.31}},
                    {"label": "both", "variant": "both", "generates": True, "paper": {"ImageNet": 12.96}},
                ],
            },
            "table8": {
                "title": "Steps",
                "columns": ["recall"],
                "rows": [
                    {"label": str(n), "variant": "both", "naming": {"num_inference_steps": n}} for n in (1, 2)
                ],
            },
            "table5": {
                "title": "Tuned", "columns": ["recall"], "rows": [{"label": "tuned", "variant": "tuned"}]
            },
        },
        "claims": {
            "P1": {"text": "alignment gains", "a": "both", "b": "alignment", "b_flop": "alignment-long"},
            "P7": {
                "text": "steps", "a": "both", "b": "both", "a_naming": {"num_inference_steps": 1},
                "b_naming": {"num_inference_steps": 2}, "margin": 1.0, "has_budgets": False,
            },
        },
    }  # fmt: skip
