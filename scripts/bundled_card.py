"""Write the model card of the bundled emoji model: its size, data and training log, and what result files say of it.

Every figure and every conclusion is computed: from the weights, `log.jsonl`, `recipe.yaml`, and the result files
`demo.json`, `calibration.json`, `bundled.json` and `chain_use.json`. Results of other weights are left out. README.md
and docs/ quote the same sentences, which tests compare.

The rows of `demo.json` that are of these weights are kept beside them, as `measured.json`: the demo page quotes them.

Run: `python scripts/bundled_card.py`, after the result files were measured again.
"""

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from safetensors import safe_open

from palindiff.data.emoji_styles import ATTRIBUTION
from palindiff.evaluation.results import Results, Row, read_results
from palindiff.experiments.measured import write_measured
from palindiff.pretrained.bundled import BUNDLED_VAE, CHECKPOINTS
from palindiff.training.loop.run_log import read_log, training_cost

RESULTS = Path(__file__).parents[1] / "results"
TEMPLATE = Path(__file__).with_suffix(".md")  # with fields in braces
WIDTH = 119
RECALLS = ("image_to_text_recall_10", "text_to_image_recall_10")
ATTRIBUTION_FILE = "ATTRIBUTION.txt"  # of a checkpoint's folder: the lines of the styles that it was trained on
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
UNSEEN = {"direction": "image_to_text", "split": "unseen"}  # rows of naming concepts that training never sees
CONTROL_NAMES = {"nearest_thumbnail": "thumbnails", "nearest_efflite0": "EfficientNet-Lite0 features"}
SAME_RECALL = 0.01  # of one model, measured twice
OTHER_CAPTIONS = 0.1  # of one model, among one caption of each image or all
SAME_PREDICTION = 0.99  # cosine above which two predictions count as the same


def card(folder: Path, vae: Path, results: Path = RESULTS) -> str:
    """Fill in the card of a checkpoint folder, for images of the VAE's size."""
    parts = {part: num_parameters(folder / part) / 1e6 for part in ("unet", "query_stream")}
    steps, seconds = training_cost(read_log(folder / "log.jsonl"))
    found, credits = measured_sentences(folder, results), credits_of(folder)
    text = TEMPLATE.read_text(encoding="utf-8").format(
        **parts,
        total=sum(parts.values()),
        side=image_side(folder, vae),
        num_styles=NUMBER_WORDS.get(len(credits), len(credits)),
        attribution="; ".join(f"{style}: {credit}" for style, credit in credits.items()),
        licenses=licenses(credits),
        recipe=recipes_of(folder),
        steps=steps,
        hours=seconds / 3600,
        results=" ".join(found) or "Not measured.",
    )
    return "\n".join(_wrapped(line) for line in text.split("\n"))


def recipes_of(folder: Path) -> str:
    """Name the recipes of a checkpoint in the order of training, each with its file in the folder."""
    files = [*sorted(folder.glob("recipe-part*.yaml")), folder / "recipe.yaml"]
    heads = [path.read_text(encoding="utf-8").partition(";")[0].lstrip("# ") for path in files]
    first, *later = [f"{head} (`{path.name}`)" for head, path in zip(heads, files, strict=True)]
    return ", then ".join([first, *(each[0].lower() + each[1:] for each in later)]) + " in this folder"


def credits_of(folder: Path) -> dict[str, str]:
    """Return the credit of each style that a checkpoint was trained on; without a file, those of two styles."""
    path = folder / ATTRIBUTION_FILE
    if not path.exists():
        return ATTRIBUTION
    return dict(line.split(": ", 1) for line in path.read_text(encoding="utf-8").splitlines())


def licenses(credits: Mapping[str, str]) -> str:
    """List the licences that credits end with, each once: "CC BY 4.0, MIT and Apache-2.0"."""
    found = [credit.partition(" (package ")[0].rpartition(", ")[2] for credit in credits.values()]
    *first, last = dict.fromkeys(re.sub(r"^CC-(BY(?:-SA)?)-", r"CC \1 ", each) for each in found)
    return f"{', '.join(first)} and {last}" if first else last


def image_side(folder: Path, vae: Path) -> int:
    """Pixels of a side of the images that a checkpoint generates."""
    blocks = json.loads((vae / "config.json").read_text())["block_out_channels"]
    latents: int = json.loads((folder / "unet" / "config.json").read_text())["sample_size"]
    return latents * 2 ** (len(blocks) - 1)


def num_parameters(part: Path) -> int:
    """Count the numbers in the weights of a part."""
    with safe_open(part / "diffusion_pytorch_model.safetensors", "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def measured_sentences(folder: Path, results: Path = RESULTS) -> list[str]:
    """Say what the result files hold of the weights in a folder; nothing if they are of other weights."""
    rows = measured_rows(folder, results)
    if not rows:
        return []
    found = [_origin(read_results(results / "demo.json")), naming_sentence(rows), generation_sentence(rows)]
    found += [sentence for sentence in (composition_sentence(rows), vendor_sentence(rows)) if sentence]
    (calibration,) = read_results(results / "calibration.json").rows
    config = json.loads((folder / "query_stream" / "config.json").read_text())
    if calibration["temperature"] == config.get("temperature"):
        found.append(calibration_sentence(calibration))
    evaluated = read_results(results / "bundled.json").rows if (results / "bundled.json").exists() else []
    if evaluated and is_same_evaluation(rows, evaluated):
        found.append(evaluation_sentence(evaluated))
    chain = read_results(results / "chain_use.json").rows
    if is_same_model(rows, chain):
        found.append(text_diffusion_sentence(chain))
    return found


def measured_rows(folder: Path, results: Path = RESULTS) -> list[Row]:
    """Return the rows of `demo.json` that are of the weights in a folder, by their training's steps and seconds."""
    steps, seconds = training_cost(read_log(folder / "log.jsonl"))
    of_these = {"model": "bundled", "steps": steps, "seconds": round(seconds)}
    return _where(read_results(results / "demo.json").rows, **of_these)


def naming_sentence(rows: Sequence[Row]) -> str:
    """Say how often the right caption of an unseen image is found, and what that means for the first answer."""
    first, ten = (_where(rows, **UNSEEN, k=k) for k in (1, 10))
    recalls = [row["recall"] for row in first]
    verdict = "wrong" if max(recalls) < 0.5 else "right" if min(recalls) > 0.5 else "right or wrong, by style,"
    return (
        f"Classification among {first[0]['n']} concepts that were not in training: the right caption is first for "
        f"{span(recalls)} of the images of a style and among the first 10 for {span(row['recall'] for row in ten)}; "
        f"chance is {first[0]['chance']:.1%} and {ten[0]['chance']:.1%}. "
        f"The first answer is {verdict} for most of them."
    )


def generation_sentence(rows: Sequence[Row]) -> str:
    """Say how often a generated image resembles its own concept, and whether training on the concept matters."""
    chosen = _where(rows, direction="caption_to_generated", k=1)
    seen, unseen = ([row["recall"] for row in _where(chosen, split=split)] for split in ("seen", "unseen"))
    is_worse = max(unseen) < min(seen)
    return (
        f"Generation: of {round(1 / chosen[0]['chance'])} real images, that of the caption's own concept has the most "
        f"similar thumbnail for {span(seen)} of the captions from training and {span(unseen)} of others; chance is "
        f"{chosen[0]['chance']:.1%}. Images of concepts that were not in training resemble theirs "
        f"{'less often' if is_worse else 'as often'}."
    )


def composition_sentence(rows: Sequence[Row]) -> str | None:
    """Say how often the right caption is found of a concept that training sees in other styles only."""
    first, ten = (_where(rows, direction="image_to_text", split="composition", k=k) for k in (1, 10))
    if not first or not ten:
        return None
    return (
        f"Classification among {first[0]['n']} concepts that training sees in other styles only: the right caption is "
        f"first for {span(row['recall'] for row in first)} of the images of a style and among the first 10 for "
        f"{span(row['recall'] for row in ten)}; chance is {first[0]['chance']:.1%} and {ten[0]['chance']:.1%}."
    )


def vendor_sentence(rows: Sequence[Row]) -> str | None:
    """Say how often images of an unseen vendor are named right, and what copying a training image's name reaches."""
    measured = [row for row in rows if "vendor" in row and row["k"] == 10]
    own = _where(measured, control="none")
    if not own:
        return None
    recalls = {row["control"]: row["recall"] for row in measured}
    copied = {name: recalls[control] for control, name in CONTROL_NAMES.items() if control in recalls}
    controls = " and ".join(f"{recall:.1%} by {name}" for name, recall in copied.items())
    return (
        f"Unseen vendor: among {own[0]['n']} concepts in the style of {own[0]['vendor']}, which training never sees, "
        f"the right caption is among the first 10 for {own[0]['recall']:.1%} of the images; chance is "
        f"{own[0]['chance']:.1%}." + (f" The concepts of similar training images reach {controls}." if copied else "")
    )


def calibration_sentence(row: Row) -> str:
    """Say how far probabilities are from the share of right answers."""
    return (
        f"The calibration error of the probabilities among {row['labels']} of the {row['split']} split is "
        f"{row['calibration_error_after']:.1%}, without the temperature {row['calibration_error_before']:.1%} "
        "(`results/calibration.json`)."
    )


def evaluation_sentence(rows: Sequence[Row]) -> str:
    """Say what recall of unseen images is without country flags, and what controls reach, over both styles."""

    def recall(subset: str, control: str = "none") -> float:
        chosen = _where(rows, subset=subset, control=control, measure="text_retrieval_recall@10")
        return sum(row["value"] for row in chosen) / len(chosen)

    own, copied = recall("unseen"), recall("unseen", "nearest_efflite0")
    controls = (
        f"{recall('unseen', 'shuffled_images'):.1%} with another image, "
        f"{recall('unseen', 'nearest_thumbnail'):.1%} with the caption of the training image of the most similar "
        f"thumbnail, and {copied:.1%} with that of the most similar EfficientNet-Lite0 features"
    )
    verdict = (
        "reaches more than the model does, by a difference that was not tested" if copied > own else "reaches less"
    )
    return (
        f"By `palindiff evaluate`, which ranks an image among all captions of all concepts instead of one of each, "
        f"recall@10 from images to captions, the mean of both styles, is "
        f"{own:.1%} on these concepts, {recall('unseen without flags'):.1%} without country flags, "
        f"{recall('composition'):.1%} on concepts known in another style, and {recall('training'):.1%} on training "
        f"images. Controls on these concepts: {controls} (`results/bundled.json`). "
        f"So copying a caption by features of an ImageNet classifier {verdict}."
    )


def is_same_evaluation(demo: Sequence[Row], evaluated: Sequence[Row]) -> bool:
    """Whether both files are of one model: recall@10 of unseen images, among one caption each or all of them."""
    of_demo = {row["style"]: row["recall"] for row in _where(demo, **UNSEEN, k=10)}
    chosen = _where(evaluated, subset="unseen", control="none", measure="text_retrieval_recall@10")
    return {row["style"] for row in chosen} == of_demo.keys() and all(
        abs(row["value"] - of_demo[row["style"]]) < OTHER_CAPTIONS for row in chosen
    )


def text_diffusion_sentence(rows: Sequence[Row]) -> str:
    """Say how much an answer depends on the query, with the figures of `chain_use.json`."""
    cosines = [row["value"] for row in rows if row["metric"].startswith("chain_cosine_")]
    recalls = [row["value"] for row in rows if row["metric"] in RECALLS]
    return (
        f"Text diffusion: {text_diffusion_conclusion(rows)}. "
        "The prediction from an image's own noisy query has a mean "
        f"cosine of {min(cosines):.4f} or more with those from another query and from noise, and recall@10 is "
        f"{span(recalls)} in all settings (`results/chain_use.json`)."
    )


def text_diffusion_conclusion(rows: Sequence[Row]) -> str:
    """Conclude whether steps and guidance of text diffusion matter."""
    found = [row for row in _where(rows, seed=0) if row["metric"] in RECALLS]
    steps = [row["naming_steps"] for row in found]
    few, many = min(steps), max(steps)
    if ignores_query(rows):
        return f"an answer hardly depends on the query, so {few} step is as good as {many}, guided or not"

    def recall(num_steps: int, scale: float) -> str:
        chosen = _where(found, naming_steps=num_steps, naming_guidance_scale=scale)
        return f"{sum(row['value'] for row in chosen) / len(chosen):.1%}"

    plain, guided = sorted({row["naming_guidance_scale"] for row in found})
    return (
        f"an answer depends on the query; recall@10 is {recall(few, plain)} with {few} step and {recall(many, plain)} "
        f"with {many}, {recall(few, guided)} and {recall(many, guided)} with guidance (mean of both directions and "
        "styles)"
    )


def ignores_query(rows: Sequence[Row]) -> bool:
    """Whether predictions are the same from any query, and recall@10 differs by less than its standard error."""
    cosines = [row["value"] for row in rows if row["metric"].startswith("chain_cosine_")]
    spreads = []
    for style, metric in product({row["style"] for row in rows}, RECALLS):
        of_style = _where(rows, metric=metric, style=style)
        recalls = [row["value"] for row in of_style]
        error = (recalls[0] * (1 - recalls[0]) / of_style[0]["n"]) ** 0.5
        spreads.append((max(recalls) - min(recalls)) / error)
    return min(cosines) > SAME_PREDICTION and max(spreads) < 1


def is_same_model(demo: Sequence[Row], chain: Sequence[Row]) -> bool:
    """Whether two result files agree where they measure the same: recall@10 at the default settings of naming."""
    settings = {"naming_steps": 8, "naming_guidance_scale": 1.0, "seed": 0}
    of_chain = {row["style"]: row["value"] for row in _where(chain, metric="image_to_text_recall_10", **settings)}
    of_demo = {row["style"]: row["recall"] for row in _where(demo, **UNSEEN, k=10)}
    return of_chain.keys() == of_demo.keys() and all(
        abs(of_chain[style] - of_demo[style]) < SAME_RECALL for style in of_demo
    )


def span(shares: Sequence[float]) -> str:
    """Write the lowest and the highest of some shares."""
    shares = list(shares)
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def _origin(demo: Results) -> str:
    """Say where the rows of the bundled model were measured."""
    own = demo.settings.get("rows_measured_before", {}).get("bundled", demo.model_dump())
    machine = own["machine"]
    where = machine["accelerator"] or f"{machine['cores']} cores of {machine['cpu']}"
    return f"Measured by `{own['command']}` in the repository, on {where}."


def _where(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def _wrapped(line: str) -> str:
    if not line.startswith("- **"):
        return line
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    target = CHECKPOINTS / "emoji"
    (target / "README.md").write_text(card(target, CHECKPOINTS / BUNDLED_VAE), encoding="utf-8")
    print(target / "README.md", write_measured(target, measured_rows(target)))
