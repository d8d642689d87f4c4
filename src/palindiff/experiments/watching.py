"""Who looks on while DiffDis trains: validation loss, zero-shot accuracy, recall both ways, a sheet of samples.

Here: numbers of the EMA weights on validation pictures, the same noise at every look. Not here: what the numbers mean
(`evaluation/`), when they are taken (`training/loop.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from palindiff.data.publish import replaced_folder
from palindiff.evaluation.retrieval import PICTURE_TO_TEXT, TEXT_TO_PICTURE, recall_at_k
from palindiff.evaluation.sheets import contact_sheet
from palindiff.evaluation.zero_shot import mean_class_recall, top_k_accuracy
from palindiff.inference.painting import paint
from palindiff.training.attention import attention_backend
from palindiff.training.diffdis import Parts
from palindiff.training.loop import Evaluator
from palindiff.training.order import random_generator

KS = (1, 5, 10)


def watchers(parts: Parts) -> Sequence[Evaluator]:
    """Choose what a recipe asks to be looked at, and what its task can show."""
    task = parts.recipe.objective.task
    chosen: list[Evaluator] = [lambda step: validation_losses(parts)]
    if task != "generate":
        chosen.append(lambda step: naming(parts))
    if task != "discriminate" and parts.recipe.watch.prompts:
        chosen.append(lambda step: samples(parts, step))
    return [*chosen, lambda step: keep_latest(parts)]


def validation_losses(parts: Parts) -> dict[str, float]:
    """Each loss on the validation pictures in a fixed order, unflipped, first captions, under fixed noise."""
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
    """Recall both ways among the watched pictures and first captions; zero-shot accuracy where rows are labelled.

    Units: shares in [0, 1].
    """
    rows = _watched_rows(parts)
    captions = [parts.validation_rows[int(row)].captions[0] for row in rows]
    different = list(dict.fromkeys(captions))
    watch = parts.recipe.watch
    z, _ = parts.validation_set.pictures.read(rows, torch.zeros(len(rows), dtype=torch.bool))
    e_0_hat = parts.pipeline.encode_image(
        z.to(parts.pipeline.unet.device, torch.float32), watch.naming_steps, watch.naming_guidance_scale
    )
    scores = (e_0_hat @ parts.pipeline.encode_text(different).T).cpu()
    positives = torch.tensor([[caption == other for other in different] for caption in captions])
    ks = [k for k in KS if k <= min(scores.shape)]
    found: dict[str, float] = {}
    both = ((PICTURE_TO_TEXT, scores, positives), (TEXT_TO_PICTURE, scores.T, positives.T))
    for direction, queries, relevant in both:
        found |= {f"{direction}_recall_{k}": share for k, share in recall_at_k(queries, relevant, ks).items()}
    labels = [parts.validation_rows[int(row)].label for row in rows]
    if all(label is not None for label in labels):
        found |= _zero_shot(parts, e_0_hat, [str(label) for label in labels])
    return found


def samples(parts: Parts, step: int) -> dict[str, float]:
    """Paint the recipe's prompts, each from its own fixed seed, and keep the sheet as `samples/step-00000000.png`."""
    watch = parts.recipe.watch
    painted = paint(
        parts.pipeline, list(watch.prompts), list(range(len(watch.prompts))), watch.guidance_scale,
        watch.num_inference_steps,
    )  # fmt: skip
    path = parts.output / "samples" / f"step-{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(painted, watch.prompts, title=f"step {step}").save(path)
    return {}


def keep_latest(parts: Parts) -> dict[str, float]:
    """Write the averaged weights as a checkpoint folder, `latest/`, that can be used while the training goes on."""
    with replaced_folder(parts.output / "latest") as folder:
        parts.pipeline.save_pretrained(folder)
    return {}


def _zero_shot(parts: Parts, e_0_hat: Tensor, labels: list[str]) -> dict[str, float]:
    classes = sorted(set(labels))
    e = parts.pipeline.encode_labels(classes, parts.recipe.watch.templates)
    scores, truth = (e_0_hat @ e.T).cpu(), torch.tensor([classes.index(label) for label in labels])
    top = top_k_accuracy(scores, truth, [k for k in (1, 5) if k <= len(classes)])
    return {f"zero_shot_top_{k}": share for k, share in top.items()} | {
        "zero_shot_mean_class_recall": mean_class_recall(scores, truth)
    }


def _watched_rows(parts: Parts) -> Tensor:
    """Rows of the validation pictures that are looked at: evenly spread when there are more than the recipe wants."""
    num_rows, num_pictures = len(parts.validation_set), parts.recipe.watch.num_pictures
    return torch.linspace(0, num_rows - 1, min(num_rows, num_pictures)).round().long()


def _plain(b: int) -> Tensor:
    """The uniform numbers that mean: not flipped, first caption."""
    return torch.tensor([0.5, 0.0]).expand(b, 2)
