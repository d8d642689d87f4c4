"""A real run at toy size: the VAE's objective on 8 px images, in fp32 on the CPU."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from palindiff.models.vae import VaeConfig, build_vae
from palindiff.objectives.vae import VaeObjective, VaeObjectiveConfig
from palindiff.training.features.images_in_memory import ImagesInMemory
from palindiff.training.loop.device import MachineConfig
from palindiff.training.loop.loop import train
from palindiff.training.loop.loop_config import LoopConfig
from palindiff.training.loop.optimizer import OptimizerConfig
from palindiff.training.loop.run_log import RunLog

TOY_VAE = VaeConfig(widths=(8, 8), latent_channels=2, norm_groups=4, image_size_px=8)
OPTIMIZER = OptimizerConfig(new_learning_rate=1e-2, warmup_steps=2, decay="cosine", decay_steps=2)


@dataclass
class ToyRun:
    """A `Run` of the VAE's objective without a recipe; tests may replace its evaluation and its groups."""

    objective: VaeObjective
    training_set: ImagesInMemory
    loop: LoopConfig
    optimizer: OptimizerConfig
    machine: MachineConfig
    run_log: RunLog
    output: Path
    evaluate: Callable = lambda step: {}
    evaluates_start: bool = False
    stops_early: Callable = lambda step: False
    fingerprints: dict = field(default_factory=dict)

    def parameter_groups(self):
        return [{"params": list(self.objective.vae.parameters()), "lr": self.optimizer.new_learning_rate}]


def make_run(run_dir, vae=TOY_VAE, optimizer=OPTIMIZER, machine=MachineConfig(), **loop):  # noqa: B008  (frozen)
    """Build a run from the same random weights and 10 random images each time."""
    torch.manual_seed(0)
    vae = build_vae(vae)
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return ToyRun(
        objective=VaeObjective(vae, VaeObjectiveConfig()),
        training_set=ImagesInMemory(images),
        loop=LoopConfig(**{"num_steps": 4, "batch_size": 4, "log_every": 1, "ema_decay": 0.9, "save_every": 2} | loop),
        optimizer=optimizer,
        machine=machine,
        run_log=RunLog(run_dir, show_progress=False),
        output=run_dir,
    )


def cpu_accelerator():
    """Build an accelerator on the CPU, whatever an earlier test or a parent process left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


@contextlib.contextmanager
def one_thread():
    """Let sums run in one order only, and forked processes share no thread pool."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def train_toy(run_dir, **settings):
    """Train a toy run until its last step, resuming from what `run_dir` holds."""
    run = make_run(run_dir, **settings)
    return run, train(run, cpu_accelerator())


def write_images(folder):
    """Write four captioned images of 8 px to train on and two to validate on, and return where."""
    for split, num_images in (("train", 4), ("validation", 2)):
        (folder / split).mkdir(parents=True)
        rows = [{"file_name": f"{i}.png", "captions": [f"colour {split} {i}"]} for i in range(num_images)]
        for i, row in enumerate(rows):
            Image.new("RGB", (8, 8), (60 * i, 90, 200 - 40 * i)).save(folder / split / row["file_name"])
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
