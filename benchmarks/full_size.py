"""Run DiffDis and UniDiff once through every stage, with random weights of Stable Diffusion v1 and CLIP ViT-L/14.

Each stage runs in its own process, so that its peak memory is its own. The images and names mean nothing; sizes, times
and memory do.

Run: python benchmarks/full_size.py WORK [--results results/full_size.json] [--set KEY=VALUE ...]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palindiff.evaluation.results import Row, write_results

RECIPE = "diffdis-cc3m"
NUM_IMAGES, BATCH_SIZE = 4, 2
CAPTION = "an image of number {}"
GENERATION_STEPS = 2
ADAPT_SETTINGS = (
    "data.validation_fraction=0", "evaluation.validation_split=null", "evaluation.evaluators=[]",
    "evaluation.patience=0", "machine.gradient_checkpointing=true", "machine.precision=bf16",
    "optimizer.kind=adamw_8bit", f"loop.batch_size={BATCH_SIZE}", "loop.grad_cache_size=1", "loop.num_steps=1",
)  # fmt: skip
GIB = 2**30

FULL_SIZES: dict[str, dict[str, Any]] = {
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "image": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "patch_size": 14},
    "clip": {"projection_dim": 768},
    "unet": {},
    "vae": {},
}  # fmt: skip
TOY_SIZES: dict[str, dict[str, Any]] = {
    "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "image": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "patch_size": 16, "image_size": 32},
    "clip": {"projection_dim": 32},
    "unet": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "cross_attention_dim": 32},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
}  # fmt: skip
TOY_RECIPE = ("query_stream.num_head_layers=1", "query_stream.head_width=64")


@dataclass(frozen=True)
class Trial:
    """Where everything is written, overrides of the recipe, and whether to use toy shapes."""

    work: Path  # gets weights and states of the full-size model; not removed
    overrides: Sequence[str] = ()
    is_toy: bool = False  # shows that every stage runs


def write_layouts(trial: Trial) -> dict[str, Any]:
    """Write Stable Diffusion and CLIP with the libraries' own `save_pretrained`, and a few captioned images."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from palindiff.pretrained.hub import STABLE_DIFFUSION_1
    from palindiff.pretrained.single_file import scheduler_of

    torch.manual_seed(0)
    work, sizes = trial.work, TOY_SIZES if trial.is_toy else FULL_SIZES
    text = {"hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407, **sizes["text"]}
    config = CLIPConfig(text_config=text, vision_config={"hidden_act": "quick_gelu"} | sizes["image"], **sizes["clip"])
    clip, tokenizer = CLIPModel(config), write_tokenizer(work / "clip")
    clip.save_pretrained(work / "clip")
    side = config.vision_config.image_size
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        work / "clip"
    )
    settings = {}
    for part in ("unet", "vae"):
        given = json.loads((STABLE_DIFFUSION_1 / part / "config.json").read_text())
        settings[part] = {name: value for name, value in given.items() if name[0] != "_"} | sizes[part]
    StableDiffusionPipeline(
        vae=AutoencoderKL(**settings["vae"]),
        text_encoder=clip.text_model,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**settings["unet"]),
        scheduler=scheduler_of(STABLE_DIFFUSION_1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(work / "stable-diffusion")
    for split in ("train", "validation"):
        (work / "data" / split).mkdir(parents=True, exist_ok=True)
        rows = [{"file_name": f"{number}.png", "text": CAPTION.format(number)} for number in range(NUM_IMAGES)]
        for number, row in enumerate(rows):
            Image.effect_noise((256, 256), 40 + 20 * number).convert("RGB").save(
                work / "data" / split / row["file_name"]
            )
        (work / "data" / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {}


def write_tokenizer(folder: Path) -> Any:
    """Write a CLIP tokenizer of single letters; its first and last token have CLIP's ids."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) + end for code in range(33, 127) for end in ("", "</w>")]
    ids = {letter: number for number, letter in enumerate(letters)}
    ids |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def init(trial: Trial) -> dict[str, Any]:
    """Do what `palindiff init` does, with the paper's query stream; count the new parameters by place."""
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.training.recipes.schema import DiffDisRecipe
    from palindiff.training.recipes.yaml_files import load_recipe

    work = trial.work
    query_stream = load_recipe(DiffDisRecipe, RECIPE, _changes(trial)).query_stream
    pipeline = PalindiffPipeline.from_stable_diffusion(work / "stable-diffusion", work / "clip", query_stream)
    pipeline.save_pretrained(work / "start")
    new = Counter[str]()
    for name, weight in pipeline.query_stream.named_parameters():
        new[place_of(name)] += weight.numel()
    return {"parameters": {"U-Net": pipeline.unet.num_parameters(), **new}}


def place_of(name: str) -> str:
    """Name the place of a weight in the query stream."""
    first, _, rest = name.partition(".")
    names = {"head": "query head", "time_embedding": "time embedding", "predictor": "query head"}
    return (
        f"site {int(rest.partition('.')[0]) + 1}" if first == "sites" else names.get(first, "into and out of the head")
    )


def train(trial: Trial) -> dict[str, Any]:
    """Do what `palindiff train` does: features, one step of both tasks, the saved state, the checkpoint."""
    from palindiff.training.loop.run_log import read_log
    from palindiff.training.recipes.schema import DiffDisRecipe
    from palindiff.training.recipes.yaml_files import load_recipe
    from palindiff.training.trainer import train_recipe

    work = trial.work
    own = [
        f"base.source={work / 'start'}", f"data.path={work / 'data'}", f"machine.cache_dir={work / 'cache'}",
        f"loop.batch_size={BATCH_SIZE}", "loop.num_steps=1", "loop.log_every=1", "machine.num_workers=0",
        "evaluation.evaluators=[]", "evaluation.num_images=1",
    ]  # fmt: skip
    recipe = load_recipe(DiffDisRecipe, RECIPE, [*own, *_changes(trial)])
    train_recipe(recipe, work / "run", show_progress=False)
    return {"step_s": max(line.get("elapsed_s", 0.0) for line in read_log(work / "run" / "log.jsonl"))}


def name(trial: Trial, fusion: str) -> dict[str, Any]:
    """Load the trained checkpoint and name one image."""
    pipeline, loading_s = load(trial.work, fusion)
    image = trial.work / "data" / "validation" / "0.png"
    began = time.perf_counter()
    scores = pipeline.rank([image], [CAPTION.format(number) for number in range(NUM_IMAGES)])
    assert scores.isfinite().all(), "a trained checkpoint names with finite numbers"
    return {"loading_s": loading_s, "own_s": time.perf_counter() - began}


def generate(trial: Trial) -> dict[str, Any]:
    """Load the trained checkpoint and generate one image."""
    import torch

    pipeline, loading_s = load(trial.work, "joint")
    pipeline.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    generated = pipeline(
        "a dog", num_inference_steps=GENERATION_STEPS, guidance_scale=4.0, generator=generator
    ).images[0]
    assert generated.size == (256, 256), f"generated {generated.size} where 256 px were trained"
    return {"loading_s": loading_s, "own_s": time.perf_counter() - began}


def load(work: Path, fusion: str) -> tuple[Any, float]:
    """Load the trained checkpoint as a fusion; both have the same weights."""
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.models.query_stream import QueryStream

    began = time.perf_counter()
    pipeline = PalindiffPipeline.from_pretrained(work / "run" / "checkpoint")
    loading_s = time.perf_counter() - began
    if fusion != pipeline.query_stream.config.fusion:
        other = QueryStream.from_config({**pipeline.query_stream.config, "fusion": fusion}).eval()
        other.load_state_dict(pipeline.query_stream.state_dict())
        pipeline.register_modules(query_stream=other)
    return pipeline, loading_s


def adapt(trial: Trial, trained: str) -> dict[str, Any]:
    """Do one step of UniDiff with all three losses, rows encoded one by one, and write both models."""
    from palindiff.training.loop.run_log import read_log
    from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
    from palindiff.training.recipes.yaml_files import load_recipe
    from palindiff.training.trainer import train_recipe

    work, output = trial.work, trial.work / f"unidiff-{trained}"
    recipe = load_recipe(UniDiffRecipe, "adapt", [
        *ADAPT_SETTINGS, *(["machine.precision=fp32"] if trial.is_toy else []), f"trained={trained}",
        f"clip.source={work / 'clip'}", f"stable_diffusion.source={work / 'stable-diffusion'}",
        f"data.path={work / 'data'}", f"machine.cache_dir={work / 'cache'}", "machine.num_workers=0",
        "loop.log_every=1",
    ])  # fmt: skip
    train_recipe(recipe, output, show_progress=False)
    return {"step_s": max(line.get("elapsed_s", 0.0) for line in read_log(output / "log.jsonl"))}


STAGES: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "write the layouts": write_layouts,
    "init": init,
    "train one step": train,
    "name one image, joint": lambda trial: name(trial, "joint"),
    "name one image, one_way": lambda trial: name(trial, "one_way"),
    "generate one image": generate,
    "adapt one step, LoRA": lambda trial: adapt(trial, "lora"),
    "adapt one step, all weights": lambda trial: adapt(trial, "all"),
}


def run_stage(stage: str, trial: Trial) -> dict[str, Any]:
    """Run a stage in this process.

    Returns: stage, seconds, peak_gib of the process, and the stage's own numbers.
    """
    began = time.perf_counter()
    own = STAGES[stage](trial)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # kibibytes on Linux
    return {"stage": stage, "seconds": time.perf_counter() - began, "peak_gib": peak_gib} | own


def _changes(trial: Trial) -> list[str]:
    return [*(TOY_RECIPE if trial.is_toy else ()), *trial.overrides]


def measure(trial: Trial) -> list[Row]:
    """Run every stage in a process of its own.

    Returns: rows of a stage (seconds, peak_gib) and rows of parameters (place, parameters).
    """
    rows: list[Row] = []
    for stage in STAGES:
        arguments = [sys.executable, __file__, str(trial.work), "--stage", stage]
        arguments += [*(f"--set={each}" for each in trial.overrides), *(["--toy"] if trial.is_toy else [])]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        parameters = found.pop("parameters", {})
        rows.append({"kind": "stage"} | {key: round(v, 2) if isinstance(v, float) else v for key, v in found.items()})
        rows += [{"kind": "parameters", "place": place, "parameters": n} for place, n in parameters.items()]
        print(json.dumps(rows[-1 - len(parameters)]), file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all stages and write the results, or run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for weights and states of the full-size model; not removed")
    parser.add_argument("--results", type=Path, help="file to write [default: none]")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="change one value of the recipe; repeatable"
    )
    parser.add_argument(
        "--stage", choices=STAGES, help="run only this stage, in this process, and print its numbers as JSON"
    )
    parser.add_argument("--toy", action="store_true", help="use small shapes, to check that every stage runs")
    args = parser.parse_args(arguments)
    trial = Trial(args.work, args.overrides, args.toy)
    if args.stage:
        print(json.dumps(run_stage(args.stage, trial)))
        return
    began = time.perf_counter()
    rows = measure(trial)
    if args.results:
        settings = {"recipe": RECIPE, "batch_size": BATCH_SIZE, "overrides": list(args.overrides), "toy": args.toy}
        command = " ".join(["python benchmarks/full_size.py WORK", *(f"--set {o}" for o in args.overrides)])
        write_results(args.results, rows, command, settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
