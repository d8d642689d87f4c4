"""Peak memory of training, measured, and compared with what `palindiff estimate` predicts.

Run: python benchmarks/training_memory.py --recipe NAME|FILE.yaml [--set KEY=VALUE ...] [--results FILE.json]

The training loop trains the recipe's models for some steps, with random weights and random features, in a separate
process: it needs neither data nor weights, only the configs of frozen models. On CUDA the result is the peak of the
allocator of torch. On a CPU (Linux) it is the peak resident set minus the resident set after a warm-up, once with
glibc set to return freed memory at once, and once with glibc's defaults.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

MEGABYTE = 1e6
HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; glibc maps and unmaps larger blocks separately
BF16, CHECKPOINTING = "machine.precision=bf16", "machine.gradient_checkpointing=true"
COMPARED = (
    (),
    (CHECKPOINTING,),
    (BF16,),
    (BF16, CHECKPOINTING),
    ("query_stream.fusion=joint",),
    ("loop.accumulation=2",),
    ("loop.batch_size=16",),
    ("loop.batch_size=16", "unet.widths=[256,512]"),
)  # changes of a recipe, with --compare


def measure(recipe_name: str, overrides: list[str], num_steps: int) -> dict[str, float | str]:
    """Train in this process and measure the peak of memory, in bytes."""
    import torch

    recipe = read(recipe_name, overrides)
    train_on_random_numbers(warm_up_of(recipe), num_steps)  # imports, thread pools, kernels' caches
    gc.collect()
    has_cuda = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if has_cuda else resident_bytes("VmRSS")
    if has_cuda:
        torch.cuda.reset_peak_memory_stats()
    train_on_random_numbers(recipe, num_steps)
    most = torch.cuda.max_memory_allocated() if has_cuda else resident_bytes("VmHWM")
    return {"device": "gpu" if has_cuda else "cpu", "bytes": most - before}


def read(recipe_name: str, overrides: list[str]):
    """Read a recipe of DiffDis or UniDiff."""
    from palindiff.training.recipes.yaml_files import load_recipe
    from palindiff.training.trainer import recipe_classes

    return load_recipe({name: recipe_classes()[name] for name in ("diffdis", "unidiff")}, recipe_name, overrides)


def is_unidiff(recipe) -> bool:
    """Whether it is of UniDiff, which always starts from models."""
    return recipe.objective_name == "unidiff"


def warm_up_of(recipe):
    """Shrink a recipe: its models, or its batch if a base model determines the models."""
    from palindiff.training.recipes.build_models import UNetConfig

    if is_unidiff(recipe) or recipe.base is not None:
        rows = 4 if is_unidiff(recipe) else 1  # relations of images need three
        few = rows * recipe.loop.accumulation * int(os.environ.get("WORLD_SIZE", "1"))
        return recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"batch_size": few})})
    stream = recipe.query_stream
    stream = stream.model_copy(update={"num_head_layers": 1, "head_width": stream.head_dim})
    return recipe.model_copy(update={"unet": UNetConfig(widths=(32, 32)), "query_stream": stream})


def train_on_random_numbers(recipe, num_steps: int) -> None:
    """Run the training loop of a recipe with random weights and features, without evaluation."""
    import torch

    from palindiff.training.cost.weight_free import weight_free_run, weight_free_unidiff
    from palindiff.training.loop.device import make_accelerator
    from palindiff.training.loop.loop import train
    from palindiff.training.loop.run_log import RunLog

    accelerator = make_accelerator(recipe.machine)
    torch.manual_seed(recipe.loop.seed)
    models = weight_free_unidiff(recipe) if is_unidiff(recipe) else weight_free_run(recipe)
    frozen = [part.to(accelerator.device) for part in models.parts.values()]
    with tempfile.TemporaryDirectory() as folder:
        run = SimpleNamespace(
            objective=models.objective,
            parameter_groups=lambda: models.objective.parameter_groups(1e-5, 1e-5),
            training_set=models.features,
            loop=recipe.loop.model_copy(update={"num_steps": num_steps, "evaluate_every": 0, "save_every": 0}),
            optimizer=recipe.optimizer,
            machine=recipe.machine,
            run_log=RunLog(Path(folder), show_progress=False),
            output=Path(folder),
            fingerprints={},
            evaluate=lambda step: {},
            evaluates_start=False,
            stops_early=lambda step: False,
        )
        train(run, accelerator)
    del frozen


def resident_bytes(name: str) -> int:
    """Read the resident set of this process from Linux: VmRSS now, VmHWM at most so far.

    `getrusage` cannot be used: its maximum is inherited from the parent process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def measure_apart(recipe: str, overrides: list[str], num_steps: int, environment: dict[str, str]) -> dict:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--here", "--recipe", recipe, "--steps", str(num_steps)]
    command += [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(recipe_name: str, overrides: list[str], num_steps: int) -> dict[str, object]:
    """Return one row: the estimate and the measurement."""
    from palindiff.training.cost.estimate import Hardware, estimate

    measured = measure_apart(recipe_name, overrides, num_steps, HAND_BACK)
    recipe = read(recipe_name, overrides)
    estimated = estimate(recipe, Hardware(device=measured["device"])).memory_bytes
    row = {
        "setting": " ".join(overrides) or "as it is",
        "precision": recipe.machine.precision,
        "batch_size": recipe.loop.batch_size,
        "estimated_mb": round(estimated.peak / MEGABYTE, 1),
        "measured_mb": round(measured["bytes"] / MEGABYTE, 1),
        "estimated_over_measured": round(estimated.peak / measured["bytes"], 3),
    }
    if measured["device"] == "cpu":
        as_usual = measure_apart(recipe_name, overrides, num_steps, {})["bytes"]
        row["with_glibc_as_usual_mb"] = round(as_usual / MEGABYTE, 1)
    return row


def main() -> None:
    """Measure the recipe and, with --compare, variants of it; print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="bundled recipe or a file")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE of it; repeatable")
    parser.add_argument(
        "--steps", type=int, default=2, help="training steps; the first allocates the optimizer's moments (default: 2)"
    )
    parser.add_argument(
        "--compare", action="store_true", help="also measure changes of the recipe that cost or save memory"
    )
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process that trains
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.recipe, args.overrides, args.steps)))
        return
    began, rows = time.perf_counter(), []
    for changes in COMPARED if args.compare else ((),):
        rows.append(compare(args.recipe, [*args.overrides, *changes], args.steps))
        print(json.dumps(rows[-1]), flush=True)
    if args.results:
        from palindiff.evaluation.results import script_command, write_results

        settings = {"recipe": args.recipe, "overrides": args.overrides, "steps": args.steps, "malloc": HAND_BACK}
        command = script_command(__file__)
        write_results(args.results, rows, command, settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
