"""Who looks on while DiffDis trains: validation loss, zero-shot accuracy, recall both ways, a sheet of samples.

Here: numbers of the EMA weights on validation images, the same noise at every look. Not here: what the numbers mean
(`evaluation/`), when they are taken (`training/loop.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from palindiff.atomic import atomic_folder
from palindiff.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, recall_at_k
from palindiff.evaluation.sheets import contact_sheet
from palindiff.evaluation.zero_shot import mean_class_recall, top_k_accuracy
from palindiff.inference.generation import generate_images
from palindiff.training.loop.attention import attention_backend
from palindiff.training.loop.loop import Evaluator
from palindiff.training.loop.order import random_generator
from palindiff.training.train_diffdis import Parts

KS = (1, 5, 10)


def evaluators(parts: Parts) -> Sequence[Evaluator]:
    """Choose what a recipe asks to be looked at, and what its task can show."""
    task = parts.recipe.objective.task
    chosen: list[Evaluator] = [lambda step: validation_losses(parts)]
    if task != "generation":
        chosen.append(lambda step: naming(parts))
    if task != "alignment" and parts.recipe.evaluation.prompts:
        chosen.append(lambda step: samples(parts, step))
    return [*chosen, lambda step: keep_latest(parts)]


def validation_losses(parts: Parts) -> dict[str, float]:
    """Each loss on the validation images in a fixed order, unflipped, first captions, under fixed noise."""
    rows, batch_size = _watched_rows(parts), min(parts.recipe.loop.batch_size, len(_watched_rows(parts)))
    totals: dict[str, float] = {}
    num_batches = len(rows) // batch_size
    for number in range(num_batches):
        some = rows[number * batch_size : (number + 1) * batch_size]
        batch = parts.validation_set.read(some, _plain(len(some)))
        draws = parts.objective.draw(len(some), random_generator(0, "validation", number))
        device = parts.pipeline.unet.device
        with attention_backend(parts.accelerator), parts.accelerator.autocast():
            losses = parts.objective(
                {name: tensor.to(device) for name, tensor in batch.items()},
                {name: tensor.to(device) for name, tensor in draws.items()},
            )
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0.0) + float(loss) / num_batches
    return {f"validation_{name}": total for name, total in totals.items()}


def naming(parts: Parts) -> dict[str, float]:
    """Recall both ways among the watched images and first captions; zero-shot accuracy where rows are labelled.

    Units: shares in [0, 1].
    """
    rows = _watched_rows(parts)
    captions = [parts.validation_rows[int(row)].captions[0] for row in rows]
    different = list(dict.fromkeys(captions))
    evaluation = parts.recipe.evaluation
    z, _ = parts.validation_set.images.read(rows, torch.zeros(len(rows), dtype=torch.bool))
    e_0_hat = parts.pipeline.encode_image(
        z.to(parts.pipeline.unet.device, torch.float32), evaluation.naming_steps, evaluation.naming_guidance_scale
    )
    scores = (e_0_hat @ parts.pipeline.encode_text(different).T).cpu()
    positives = torch.tensor([[caption == other for other in different] for caption in captions])
    ks = [k for k in KS if k <= min(scores.shape)]
    found: dict[str, float] = {}
    both = ((IMAGE_TO_TEXT, scores, positives), (TEXT_TO_IMAGE, scores.T, positives.T))
    for direction, queries, relevant in both:
        found |= {f"{direction}_recall_{k}": share for k, share in recall_at_k(queries, relevant, ks).items()}
    labels = [parts.validation_rows[int(row)].label for row in rows]
    if all(label is not None for label in labels):
        found |= _zero_shot(parts, e_0_hat, [str(label) for label in labels])
    return found


def samples(parts: Parts, step: int) -> dict[str, float]:
    """Generate the recipe's prompts, each from its own fixed seed, and keep the sheet as `samples/step-00000000.png`."""
    evaluation = parts.recipe.evaluation
    generated = generate_images(
        parts.pipeline, list(evaluation.prompts), list(range(len(evaluation.prompts))), evaluation.guidance_scale,
        evaluation.num_inference_steps,
    )  # fmt: skip
    path = parts.output / "samples" / f"step-{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(generated, evaluation.prompts, title=f"step {step}").save(path)
    return {}


def keep_latest(parts: Parts) -> dict[str, float]:
    """Write the averaged weights as a checkpoint folder, `latest/`, that can be used while the training goes on."""
    with atomic_folder(parts.output / "latest", replace=True) as folder:
        parts.pipeline.save_pretrained(folder)
    return {}


def _zero_shot(parts: Parts, e_0_hat: Tensor, labels: list[str]) -> dict[str, float]:
    classes = sorted(set(labels))
    e = parts.pipeline.encode_labels(classes, parts.recipe.evaluation.templates)
    scores, truth = (e_0_hat @ e.T).cpu(), torch.tensor([classes.index(label) for label in labels])
    top = top_k_accuracy(scores, truth, [k for k in (1, 5) if k <= len(classes)])
    return {f"zero_shot_top_{k}": share for k, share in top.items()} | {
        "zero_shot_mean_class_recall": mean_class_recall(scores, truth)
    }


def _watched_rows(parts: Parts) -> Tensor:
    """Rows of the validation images that are looked at: evenly spread when there are more than the recipe wants."""
    num_rows, num_images = len(parts.validation_set), parts.recipe.evaluation.num_images
    return torch.linspace(0, num_rows - 1, min(num_rows, num_images)).round().long()


def _plain(b: int) -> Tensor:
    """The uniform numbers that mean: not flipped, first caption."""
    return torch.tensor([0.5, 0.0]).expand(b, 2)
