"""Time, images per second, memory and share of peak FLOP/s of a training step of the full-size model on a GPU.

Random weights in the shapes of Stable Diffusion v1, latents of 256 px images, text features; both tasks, bf16,
AdamW. Every pair of batch size and compilation is timed after a warm-up; the median of its steps is reported, or that
it does not fit into memory. `--toy` uses a small model, to check on any machine that the script runs.

Run: python benchmarks/full_size_step.py [--results results/full_size_step.json] [--batch-sizes 8,32,64,128,256]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from palindiff.evaluation.results import Row, script_command, write_results
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.objectives.diffdis import DiffDisConfig, DiffDisObjective
from palindiff.pretrained.hub import STABLE_DIFFUSION_1
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40": 181.0, "4090": 165.0}  # dense bf16, by their makers
NUM_TOKENS, D_C, D_E = 77, 768, 768
TOY = {
    "block_out_channels": (32, 32, 32, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": D_C,
    "attention_head_dim": 4,
}


def build(recipe_name: str, is_toy: bool, is_checkpointed: bool, device: str) -> DiffDisObjective:
    """Build the objective of a recipe with random weights."""
    torch.manual_seed(0)
    settings = TOY if is_toy else UNet2DConditionModel.load_config(STABLE_DIFFUSION_1 / "unet")
    unet = UNet2DConditionModel.from_config({**settings, "sample_size": 32})
    if is_checkpointed:
        unet.enable_gradient_checkpointing()
    config = (
        QueryStreamConfig(num_head_layers=1, head_width=64)
        if is_toy
        else load_recipe(DiffDisRecipe, recipe_name).query_stream
    )
    stream = QueryStream.for_unet(unet, D_E, config, "mean")
    c_empty = torch.zeros(1, NUM_TOKENS, D_C)
    parts = (unet, stream, DDPMScheduler(beta_schedule="scaled_linear"), text_diffusion_scheduler(), c_empty)
    return DiffDisObjective(*parts, DiffDisConfig()).to(device).train()


def make_batch(b: int, device: str) -> dict[str, torch.Tensor]:
    """Make a batch of random features."""
    e_0 = torch.nn.functional.normalize(torch.randn(b, D_E, device=device), dim=-1)
    z = torch.randn(b, 4, 32, 32, device=device)
    c = torch.randn(b, NUM_TOKENS, D_C, device=device)
    return {
        "z_mean": z,
        "z_std": 0.1 * torch.ones_like(z),
        "c": c,
        "e_0": e_0,
        "caption_id": torch.arange(b, device=device),
    }


def time_steps(objective: DiffDisObjective, call, b: int, num_steps: int, device: str) -> tuple[float, float]:
    """Return the median seconds of a step after two warm-up steps, and the TFLOP of one."""
    optimizer = torch.optim.AdamW(
        (w for w in objective.parameters() if w.requires_grad), lr=1e-6, fused=device != "cpu"
    )
    batch, generator = make_batch(b, device), torch.Generator().manual_seed(0)
    taken = []

    def step() -> None:
        draws = {name: tensor.to(device) for name, tensor in objective.draw(b, generator).items()}
        with torch.autocast(device, torch.bfloat16):
            loss = call(batch, draws)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(num_steps + 2):
        wait(device)
        began = time.perf_counter()
        step()
        wait(device)
        taken.append(time.perf_counter() - began)
    counter = FlopCounterMode(display=False)
    with counter:
        draws = {name: tensor.to(device) for name, tensor in objective.draw(b, generator).items()}
        with torch.autocast(device, torch.bfloat16):
            objective(batch, draws)["loss"].backward()
    return statistics.median(taken[2:]), counter.get_total_flops() / 1e12


def wait(device: str) -> None:
    """Wait for an accelerator to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(args: argparse.Namespace, b: int, is_compiled: bool) -> Row:
    """Return one row: time and memory of a batch of b, or that it does not fit."""
    device = args.device
    row: Row = {"batch_size": b, "compiled": is_compiled, "checkpointing": args.gradient_checkpointing}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    objective = build(args.recipe, args.toy, args.gradient_checkpointing, device)
    try:
        call = torch.compile(objective) if is_compiled else objective
        seconds, tflop = time_steps(objective, call, b, args.steps, device)
    except torch.OutOfMemoryError:
        return row | {
            "fits": False,
            "step_s": None,
            "images_per_s": None,
            "memory_gib": None,
            "tflop": None,
            "share": None,
        }
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = args.peak_tflops or next((tflops for known, tflops in PEAK_TFLOPS.items() if known in name), None)
    share = tflop / seconds / peak if peak else None
    rate = b / seconds
    return row | {"fits": True, "step_s": seconds, "images_per_s": rate, "memory_gib": memory} | {
        "tflop": tflop, "share": share,
    }  # fmt: skip


def main() -> None:
    """Measure every pair, print the rows and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="diffdis-cc3m", help="recipe of the query stream (default: %(default)s)")
    parser.add_argument("--batch-sizes", default="8,32,64,128,256", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each pair (default: %(default)s)")
    parser.add_argument("--compile", default="off,on", help="off, on or both (default: %(default)s)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations, to save memory")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16 (default: by its name, if known)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--toy", action="store_true", help="use a small model, to check that the script runs")
    parser.add_argument("--results", type=Path, help="file to write; without it the rows are only printed")
    args = parser.parse_args()
    began = time.perf_counter()
    batch_sizes = [int(b) for b in args.batch_sizes.split(",")]
    rows = [measure(args, b, how == "on") for how in args.compile.split(",") for b in batch_sizes]
    print(json.dumps(rows, indent=2))
    if args.results:
        settings = {name: value for name, value in vars(args).items() if name != "results"}
        write_results(args.results, rows, script_command(__file__), settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
