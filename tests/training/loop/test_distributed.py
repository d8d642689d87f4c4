"""distributed.py: weights sharded over two processes train, save, resume and are evaluated as those of one process."""

import importlib.resources
import json
import shutil
import subprocess
import sys

import pytest
import torch
from accelerate import debug_launcher
from accelerate.commands.config.config_args import load_config_from_file
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.device import MachineConfig, check_launch
from palindiff.training.loop.distributed import is_sharded
from palindiff.training.loop.loop import train
from palindiff.training.loop.optimizer import OptimizerConfig
from palindiff.training.loop.run_log import read_log
from palindiff.training.recipes.yaml_files import dump_recipe
from palindiff.training.train_diffdis import DiffDisTrainer
from palindiff.training.trainer import TRAINERS
from toys.recipe import toy_recipe, train_toy_recipe
from toys.run import cpu_accelerator, make_run, one_thread, train_toy

SHARDED = MachineConfig(sharding="fsdp")
STEADY = OptimizerConfig(new_learning_rate=1e-3, warmup_steps=2)  # a longer run makes the same first steps
FILES = ("weights", "ema", "optimizer")
RECIPES = {
    "joint": {
        "query_stream": {"fusion": "joint"},
        "loop": {"accumulation": 2, "ema_every": 2},
        "machine": {"gradient_checkpointing": True, "ema_device": "cpu"},
    },
    "one_way": {"objective": {"task": "alignment"}, "optimizer": {"clip_norm": 0.5}},  # half the U-Net frozen
}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def newest_state(run_dir):
    """Every tensor of the newest saved state, by file and name."""
    folder = saved_states(run_dir / "state")[-1]
    files = ((file, load_file(folder / f"{file}.safetensors")) for file in FILES)
    return {(file, name): tensor for file, tensors in files for name, tensor in tensors.items()}


def assert_same_state(one, two):
    """Names alike, and numbers up to sums in another order; moments are sums of gradients, and show their errors."""
    names = [[state.name for state in saved_states(folder / "state")] for folder in (one, two)]
    assert names[0] == names[1]
    expected, found = newest_state(one), newest_state(two)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
        if key[1].endswith("exp_avg"):
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-7)


def losses(run_dir):
    return [line for line in read_log(run_dir / "log.jsonl") if "loss" in line]


# --- the VAE's objective


def train_vaes_as_one_of_two(root):
    """Runs in each of two forked processes."""
    torch.set_num_threads(1)
    for name, num_steps in (("two_first", 2), ("one_first", 4)):
        run = make_run(root / name, optimizer=STEADY, machine=SHARDED, num_steps=num_steps)
        state = train(run, cpu_accelerator())
    kept = state.distributed.optimizer.state.values()
    told = {
        "weights": sum(weight.to_local().numel() for weight in state.distributed.sharded_model.parameters()),
        "average": sum(tensor.numel() for tensor in state.ema.shadow_params),
        "first moments": sum(each["exp_avg"].to_local().numel() for each in kept),
        "second moments": sum(each["exp_avg_sq"].to_local().numel() for each in kept),
    }
    shown = [type(run.objective).__name__, sum(weight.numel() for weight in run.objective.parameters())]
    path = root / f"held-{cpu_accelerator().process_index}.json"
    path.write_text(json.dumps({"own": told, "shown": shown}))


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    """Four steps on one process; two on one and two on two, and the other way round."""
    root = tmp_path_factory.mktemp("vaes")
    with one_thread():
        train_toy(root / "whole", optimizer=STEADY)
        train_toy(root / "one_first", optimizer=STEADY, num_steps=2)
        debug_launcher(train_vaes_as_one_of_two, (root,), num_processes=2)
        train_toy(root / "two_first", optimizer=STEADY)
    return root


@pytest.mark.parametrize("name", ["two_first", "one_first"])
def test_a_run_resumes_with_another_number_of_processes(vaes, name):
    assert [line["step"] for line in losses(vaes / name)] == [1, 2, 3, 4]
    for there, here in zip(losses(vaes / "whole"), losses(vaes / name), strict=True):
        for key in ("loss", "gradient_norm"):
            assert here[key] == pytest.approx(there[key], rel=1e-5, abs=2e-6)  # the log keeps six decimals
    assert_same_state(vaes / "whole", vaes / name)


def test_each_process_holds_half_of_weights_average_and_moments_and_the_full_model(vaes):
    told = [json.loads((vaes / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    (kind, whole), same = told[0]["shown"], told[1]["shown"]
    assert [kind, whole] == same
    assert kind == "VaeObjective"  # what is shown is no sharded class
    for held in told:
        assert len(set(held["own"].values())) == 1
        assert 0.4 * whole < held["own"]["weights"] < 0.6 * whole
    assert sum(held["own"]["weights"] for held in told) == whole


def test_one_process_shards_nothing(tmp_path):
    assert not is_sharded(SHARDED, num_processes=1)
    assert is_sharded(SHARDED, num_processes=2)
    assert not is_sharded(MachineConfig(), num_processes=2)
    run, state = train_toy(tmp_path, machine=SHARDED, num_steps=1)
    assert state.distributed.sharded_model is run.objective


# --- several machines: each process has a disk of its own


def train_on_own_disk(root, num_steps, machine=MachineConfig()):  # noqa: B008  (frozen)
    """Runs in each of two forked processes."""
    accelerator = cpu_accelerator()
    run = make_run(root / f"disk-{accelerator.process_index}", optimizer=STEADY, machine=machine, num_steps=num_steps)
    train(run, accelerator)
    weights = {name: weight.detach().contiguous() for name, weight in run.objective.named_parameters()}
    save_file(weights, root / f"weights-{accelerator.process_index}.safetensors")


@pytest.mark.parametrize("machine", [MachineConfig(), SHARDED], ids=["replicated", "sharded"])
def test_a_run_resumes_on_every_machine_from_the_first_one_s_disk(tmp_path, machine):
    root = tmp_path / "run"
    root.mkdir()
    debug_launcher(train_on_own_disk, (root, 2, machine), num_processes=2)
    assert not (root / "disk-1" / "state").exists()
    stale = shutil.copytree(root / "disk-0" / "state" / "step-00000002", root / "disk-1" / "state" / "step-00000009")
    debug_launcher(train_on_own_disk, (root, 4, machine), num_processes=2)
    assert stale.exists(), "nobody looks at it"
    train_toy(tmp_path / "whole", optimizer=STEADY)
    assert [line["step"] for line in losses(root / "disk-0")] == [1, 2, 3, 4]
    assert_same_state(tmp_path / "whole", root / "disk-0")
    ends = [load_file(root / f"weights-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(ends[1][name], weight) for name, weight in ends[0].items())


def disagree(root, change):
    """Runs in each of two forked processes, and writes what it was told."""
    accelerator = cpu_accelerator()
    rank = accelerator.process_index
    run = make_run(root / f"disk-{rank}", optimizer=STEADY)
    if change == "data":
        run.fingerprints = {"training set": f"of machine {rank}"}
    elif change == "recipe":
        run.loop = run.loop.model_copy(update={"num_steps": 4 + rank})
    with pytest.raises(ValueError, match=r".") as told:
        train(run, accelerator)
    (root / f"told-{rank}").write_text(str(told.value))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("data", "Process 1 of 2 has another training set than process 0"),
        ("recipe", "Process 1 of 2 has another `loop` than process 0"),
        ("damage", "cannot be read"),
    ],
)
def test_processes_that_disagree_all_stop_and_none_waits(tmp_path, change, sentence):
    if change == "damage":
        state = tmp_path / "disk-0" / "state" / "step-00000002"
        state.mkdir(parents=True)
        (state / "state.json").write_text("{}")
    debug_launcher(disagree, (tmp_path, change), num_processes=2)
    for rank in (0, 1):
        assert sentence in (tmp_path / f"told-{rank}").read_text()


# --- DiffDis: checkpointing, both fusions, accumulation, frozen weights, a scalar


def recipe_of(name, root, sharding):
    sections = {section: dict(keys) for section, keys in RECIPES[name].items()}
    sections["machine"] = sections.get("machine", {}) | {"sharding": sharding, "cache_dir": str(root / "cache")}
    sections["loop"] = {"num_steps": 3, "ema_decay": 0.5, "log_every": 1, "batch_size": 4} | sections.get("loop", {})
    rates = {"learning_rate": 1e-4, "new_learning_rate": 2e-4, "warmup_steps": 2}
    sections["optimizer"] = rates | sections.get("optimizer", {})
    return toy_recipe(root, **sections)


class WeightKeeper(DiffDisTrainer):
    """Writes a weight that its evaluators see beside the run."""

    def evaluation_rows(self, step):
        weight = self.pipeline.unet.conv_in.weight
        seen = [type(weight.data).__name__, weight.flatten().tolist()]
        self.output.with_suffix(".json").write_text(json.dumps(seen))
        return []


def train_recipes(root, output, sharding):
    """Runs in one process, and in each of two forked ones."""
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRAINERS, "diffdis", WeightKeeper)
        for name in RECIPES:
            train_toy_recipe(recipe_of(name, root, sharding), output / name)


@pytest.fixture(scope="module")
def both(toy_parts, tmp_path_factory):
    """Folders of the same recipes: trained by one process, and shared out over two."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train_recipes(toy_parts, folders[0], "none")
    debug_launcher(train_recipes, (toy_parts, folders[1], "fsdp"), num_processes=2)
    return folders


@pytest.mark.slow
def test_two_processes_with_shares_equal_one_without_the_decoder(both):
    """Negatives are found among the whole batch, so nothing differs but the order of sums."""
    one, two = (folder / "one_way" for folder in both)
    assert [line["step"] for line in losses(two)] == [1, 2, 3]
    for there, here in zip(losses(one), losses(two), strict=True):
        for key in ("loss", "alignment", "gradient_norm"):
            assert here[key] == pytest.approx(there[key], rel=1e-5, abs=2e-6)
    assert_same_state(one, two)
    assert ("weights", "query_stream.log_logit_scale") in newest_state(two)


@pytest.mark.slow
def test_two_processes_with_shares_equal_one_with_all_that_saves_memory(both):
    one, two = (folder / "joint" for folder in both)
    for there, here in zip(losses(one), losses(two), strict=True):
        for key in ("loss", "generation", "alignment", "gradient_norm"):
            assert here[key] == pytest.approx(there[key], rel=1e-5, abs=2e-6)
    assert_same_state(one, two)


@pytest.mark.slow
def test_the_checkpoint_is_the_same_stock_folder(both):
    one, two = (folder / "joint" / "checkpoint" for folder in both)
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, two)]
    assert files[0] == files[1]
    for name in ("model_index.json", "unet/config.json", "query_stream/config.json"):
        assert (one / name).read_text() == (two / name).read_text()  # not a word of what training made of the classes
    stock = StableDiffusionPipeline.from_pretrained(two, safety_checker=None)
    ours = PalindiffPipeline.from_pretrained(two)
    average = load_file(saved_states(both[1] / "joint" / "state")[-1] / "ema.safetensors")
    for part, module in (("unet", stock.unet), ("unet", ours.unet), ("query_stream", ours.query_stream)):
        for name, weight in module.named_parameters():
            assert torch.equal(weight, average[f"{part}.{name}"])


@pytest.mark.slow
def test_evaluators_see_the_whole_average_as_plain_tensors(both):
    for folder in both:
        kind, shown = json.loads((folder / "joint.json").read_text())
        average = load_file(saved_states(folder / "joint" / "state")[-1] / "ema.safetensors")
        assert kind == "Tensor"
        assert torch.equal(torch.tensor(shown), average["unet.conv_in.weight"].flatten())


# --- how a launch asks for it

BUNDLED = importlib.resources.files("palindiff.training") / "launch" / "fsdp.yaml"


@pytest.mark.slow
def test_accelerate_launch_with_the_bundled_configuration_shards_the_same(both, toy_parts, tmp_path):
    """The real command, which knows of FSDP by the configuration alone; the port is any free one."""
    recipe = recipe_of("one_way", toy_parts, "none")
    (tmp_path / "toy.yaml").write_text(dump_recipe(recipe, "toy"))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(BUNDLED)]
    command = [*launcher, "--main_process_port", "0", "-m", "palindiff.cli.main", "train"]
    options = ["--recipe", str(tmp_path / "toy.yaml"), "--output", str(tmp_path / "run")]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    newest = [saved_states(folder / "state")[-1] for folder in (both[1] / "one_way", tmp_path / "run")]
    for file in FILES:
        there, here = ((folder / f"{file}.safetensors").read_bytes() for folder in newest)
        assert there == here


def test_accelerate_s_own_configuration_asks_for_sharding(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert is_sharded(MachineConfig(), num_processes=2)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: true"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: true"),
    ],
)
def test_what_accelerate_asks_and_cannot_have_is_refused(monkeypatch, variable, value, told):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    check_launch(MachineConfig())  # not launched with FSDP: none of it matters
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=f"`{told}`.*Expected FSDP version 2"):
        check_launch(MachineConfig())


def test_the_bundled_configuration_is_not_refused(monkeypatch):
    config = load_config_from_file(str(BUNDLED))
    assert config.distributed_type == "FSDP"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for key in ("fsdp_version", "fsdp_offload_params", "fsdp_cpu_ram_efficient_loading"):
        monkeypatch.setenv(key.upper(), str(config.fsdp_config[key]).lower())
    check_launch(MachineConfig())


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"`--mixed_precision bf16`.*set `machine\.precision` in the recipe"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"`--mixed_precision fp16`.*`machine\.precision` is 'fp32'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"`--gradient_accumulation_steps 4`.*`loop\.accumulation`"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "`--dynamo_backend inductor`"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "`--use_deepspeed true`"),
    ],
)
def test_an_option_of_accelerate_launch_that_would_do_nothing_is_refused(monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"accelerate was launched with {told}"):
        check_launch(MachineConfig())


def test_what_accelerate_launch_sets_by_default_is_not_refused(monkeypatch):
    defaults = {"MIXED_PRECISION": "no", "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "NO"}
    for name, value in defaults.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    for precision in ("fp32", "bf16"):
        check_launch(MachineConfig(precision=precision))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launch(MachineConfig(precision="bf16"))
