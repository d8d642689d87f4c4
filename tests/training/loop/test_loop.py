"""loop.py on the VAE's objective at toy size: resuming, killing, splitting a batch, and what stops a run."""

import math
import multiprocessing
import os
import random
import signal
import time
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import psutil
import pytest
import torch
from accelerate import debug_launcher
from safetensors.torch import load_file

from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.loop import backward_step, read_ahead, train
from palindiff.training.loop.loop_config import LoopConfig, check_shares
from palindiff.training.loop.optimizer import OptimizerConfig
from palindiff.training.loop.run_log import read_log
from toys.run import cpu_accelerator, make_run, one_thread, train_toy


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def newest_state(run_dir):
    """The bytes of every file of the newest saved state: weights, average, optimizer, step."""
    return {path.name: path.read_bytes() for path in sorted(saved_states(run_dir / "state")[-1].iterdir())}


def weights(run):
    return list(run.objective.parameters())


@pytest.mark.parametrize("ema_every", [1, 3])  # 3: the average moves after the state was saved, and not before
def test_two_steps_saved_and_loaded_and_two_more_equal_four(tmp_path, ema_every):
    whole, _ = train_toy(tmp_path / "whole", ema_every=ema_every)
    part = make_run(tmp_path / "parts", ema_every=ema_every)
    part.evaluate = stop_at(3)  # step 2 is saved, step 3 is lost
    part.loop = part.loop.model_copy(update={"evaluate_every": 1})
    with pytest.raises(InterruptedError):
        train(part, cpu_accelerator())
    assert [state.name for state in saved_states(tmp_path / "parts" / "state")] == ["step-00000002"]
    resumed, state = train_toy(tmp_path / "parts", ema_every=ema_every)
    assert state.step == 4
    assert newest_state(tmp_path / "whole") == newest_state(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def stop_at(last_step):
    """An evaluator that ends the run after a step, before that step is saved."""

    def evaluator(step):
        if step == last_step:
            raise InterruptedError
        return {}

    return evaluator


def train_slowly(run_dir, ema_every):
    """Forty steps, slow enough to be killed among them."""
    run = make_run(run_dir, num_steps=40, save_every=3, evaluate_every=1, ema_every=ema_every)
    run.evaluate = lambda step: time.sleep(0.01) or {}
    train(run, cpu_accelerator())


@pytest.mark.parametrize("ema_every", [1, 4])
def test_a_killed_run_ends_as_if_never_killed(tmp_path, ema_every):
    """SIGKILL at a random moment, twice, and the same call again each time."""
    fork = multiprocessing.get_context("fork")
    moment = random.Random()  # another moment in every run of this test
    for last in (moment.randint(1, 15), moment.randint(16, 30)):
        child = fork.Process(target=train_slowly, args=(tmp_path / "killed", ema_every))
        child.start()
        log = tmp_path / "killed" / "log.jsonl"
        while child.is_alive() and max((line["step"] for line in read_log(log)), default=0) < last:
            time.sleep(moment.random() * 0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    train_slowly(tmp_path / "killed", ema_every)
    train_slowly(tmp_path / "whole", ema_every)
    assert newest_state(tmp_path / "killed") == newest_state(tmp_path / "whole")
    assert [path.name for path in sorted((tmp_path / "killed" / "state").iterdir())] == [
        "step-00000039",
        "step-00000040",
    ]
    steps = [line["step"] for line in read_log(tmp_path / "killed" / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, 41))


def test_a_finished_run_is_not_trained_again(tmp_path):
    train_toy(tmp_path)
    before = newest_state(tmp_path)
    run, state = train_toy(tmp_path)
    assert state.step == 4
    assert newest_state(tmp_path) == before
    assert all(torch.equal(a, b) for a, b in zip(weights(run), state.ema.shadow_params, strict=True))


def train_as_one_of_two(run_dir):
    """Runs in each of two forked processes."""
    accelerator = cpu_accelerator()
    assert accelerator.num_processes == 2
    train(make_run(run_dir, num_steps=3), accelerator)


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    debug_launcher(train_as_one_of_two, (tmp_path / "two",), num_processes=2)
    train_toy(tmp_path / "one", num_steps=3)
    logs = [[line for line in read_log(tmp_path / name / "log.jsonl") if "loss" in line] for name in ("one", "two")]
    assert [line["step"] for line in logs[1]] == [1, 2, 3]
    for there, here in zip(*logs, strict=True):
        for key in ("loss", "gradient_norm", "kl_nats"):
            assert here[key] == pytest.approx(there[key], rel=1e-5, abs=2e-6)  # the log keeps six decimals


def test_accumulating_two_halves_equals_one_whole(tmp_path):
    """This objective is a mean over images; what is drawn differs with the parts, so the draws are fixed here."""
    fixed = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    gradients, losses = {}, {}
    for accumulation in (1, 2):
        run = make_run(tmp_path, accumulation=accumulation)
        halves = iter(fixed.split(4 // accumulation))
        run.objective.draw = lambda b, generator, halves=halves: {"eps": next(halves)}
        run.training_set.read = never_flipped(run.training_set.read)
        losses[accumulation] = backward_step(run, run.objective, cpu_accelerator(), step=1)
        gradients[accumulation] = [weight.grad for weight in weights(run)]
    assert losses[2]["loss"].item() == pytest.approx(losses[1]["loss"].item(), rel=1e-6)
    for whole, halved in zip(gradients[1], gradients[2], strict=True):
        torch.testing.assert_close(halved, whole, rtol=1e-4, atol=1e-6)  # sums of float32 in another order


def never_flipped(read):
    return lambda rows, uniform: read(rows, torch.ones_like(uniform))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_state(tmp_path):
    run = make_run(tmp_path)
    sound = run.training_set.read
    num_reads = iter(range(100))
    run.training_set.read = lambda rows, uniform: {
        "x": sound(rows, uniform)["x"] * (math.nan if next(num_reads) == 3 else 1)
    }
    sentence = r"Step 3: loss nan.*gradient norm nan\. Expected finite numbers\. The last saved state is sound"
    with pytest.raises(FloatingPointError, match=sentence):
        train(run, cpu_accelerator())
    assert [state.name for state in saved_states(tmp_path / "state")] == ["step-00000002"]
    assert str(tmp_path / "log.jsonl") not in [file.path for file in psutil.Process().open_files()]
    train_toy(tmp_path)  # the same run on sound images
    train_toy(tmp_path / "whole")
    assert newest_state(tmp_path) == newest_state(tmp_path / "whole")


def test_a_state_of_another_recipe_is_refused(tmp_path):
    train_toy(tmp_path)
    other = make_run(tmp_path)
    other.objective.vae.decoder.conv_out = torch.nn.Conv2d(8, 3, 1)
    with pytest.raises(ValueError, match=r"differ in 1 trained tensors, first `vae\.decoder\.conv_out\.weight`"):
        train(other, cpu_accelerator())


def test_evaluators_see_the_average_and_their_numbers_are_logged(tmp_path):
    seen = []
    run = make_run(tmp_path, evaluate_every=2)

    def evaluator(step):
        seen.append([weight.clone() for weight in weights(run)])
        return {"told": float(step)}

    run.evaluate = evaluator
    state = train(run, cpu_accelerator())
    told = [(line["step"], line["told"]) for line in read_log(tmp_path / "log.jsonl") if "told" in line]
    assert told == [(2, 2.0), (4, 4.0)]
    assert all(torch.equal(a, b) for a, b in zip(seen[-1], state.ema.shadow_params, strict=True))
    assert not torch.equal(seen[0][0], seen[1][0])


def test_learning_rate_warms_up_stays_and_falls():
    config = OptimizerConfig(warmup_steps=4, decay="linear", decay_steps=5)
    factors = [config.rate_factor(step, num_steps=20) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[5:16] == [1.0] * 11
    assert factors[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_cosine_end_follows_half_a_cosine():
    config = OptimizerConfig(warmup_steps=0, decay="cosine", decay_steps=4)
    factors = [config.rate_factor(step, num_steps=10) for step in range(10)]
    assert factors[:7] == [1.0] * 7
    expected = [0.5 * (1 + math.cos(math.pi * past / 4)) for past in (1, 2, 3)]
    assert factors[7:] == pytest.approx(expected)


def test_without_warm_up_and_decay_the_rate_is_constant():
    config = OptimizerConfig(warmup_steps=0)
    assert {config.rate_factor(step, 10) for step in range(10)} == {1.0}


def test_a_decay_longer_than_the_run_spans_the_run():
    config = OptimizerConfig(warmup_steps=0, decay="linear", decay_steps=1000)
    assert [config.rate_factor(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_cycles_repeat_warm_up_and_decay():
    whole = OptimizerConfig(warmup_steps=2, decay="cosine", decay_steps=3)
    repeated = whole.model_copy(update={"cycles": 3})
    one = [whole.rate_factor(step, 8) for step in range(8)]
    assert [repeated.rate_factor(step, 24) for step in range(24)] == one * 3
    last = [whole.rate_factor(step, 10) for step in range(10)]  # what does not divide evenly lengthens the last
    assert [repeated.rate_factor(step, 26) for step in range(26)] == one * 2 + last
    assert repeated.rate_factor(0, 2) == whole.rate_factor(0, 1)  # more cycles than steps


def test_each_group_keeps_its_own_learning_rate(tmp_path):
    """With a rate of nothing in one group, its weights stay; a factor applied twice would freeze the other, too."""
    run = make_run(tmp_path)
    encoder, decoder = list(run.objective.vae.encoder.parameters()), list(run.objective.vae.decoder.parameters())
    groups = [{"params": encoder, "lr": 0.0}, {"params": decoder, "lr": 1e-2}]
    run.parameter_groups = lambda: groups
    run.objective.vae.quant_conv.requires_grad_(False)
    run.objective.vae.post_quant_conv.requires_grad_(False)
    before = [weight.detach().clone() for weight in weights(run)]
    train(run, cpu_accelerator())
    changed = {name for (name, weight), own in zip(run.objective.named_parameters(), before, strict=True)
               if not torch.equal(weight, own)}  # fmt: skip
    assert changed
    assert all(name.startswith("vae.decoder.") for name in changed)
    assert [group["lr"] for group in groups] == [0.0, 1e-2]


def test_clipping_bounds_the_gradient_and_can_be_off(tmp_path):
    for clip_norm, name in ((0.0, "off"), (1e-3, "on")):
        run = make_run(tmp_path / name, num_steps=1)
        run.optimizer = run.optimizer.model_copy(update={"clip_norm": clip_norm})
        train(run, cpu_accelerator())
    norms = [read_log(tmp_path / name / "log.jsonl")[0]["gradient_norm"] for name in ("off", "on")]
    assert norms[0] == norms[1] > 1e-3  # what is told is the norm before clipping
    moments = [newest_moments(tmp_path / name) for name in ("off", "on")]
    assert moments[1] == pytest.approx(moments[0] * 1e-3 / norms[0], rel=1e-3)


def newest_moments(run_dir):
    """Length of the first moments, which after one step are a tenth of the gradient."""
    moments = load_file(saved_states(run_dir / "state")[-1] / "optimizer.safetensors")
    return float(torch.cat([value.flatten() for key, value in moments.items() if key.endswith("/exp_avg")]).norm())


@pytest.mark.parametrize(("batch_size", "accumulation", "num_processes"), [(4, 3, 1), (4, 1, 3), (4, 2, 4)])
def test_a_batch_that_does_not_divide_evenly_is_refused(batch_size, accumulation, num_processes):
    loop = LoopConfig(num_steps=1, batch_size=batch_size, accumulation=accumulation)
    with pytest.raises(ValueError, match=f"Expected a multiple of {accumulation * num_processes}"):
        check_shares(loop, num_processes)


def test_the_loop_refuses_an_uneven_batch_itself(tmp_path):
    with pytest.raises(ValueError, match="Expected a multiple of 3"):
        train_toy(tmp_path, accumulation=3)


def test_a_full_disk_stops_the_run_with_a_sentence(tmp_path):
    """The saved state of step 2 survives and the same call goes on from it once there is room."""
    run, limits = make_run(tmp_path, evaluate_every=3), getrlimit(RLIMIT_FSIZE)
    run.evaluate = lambda step: setrlimit(RLIMIT_FSIZE, (30_000, limits[1])) or {}  # weights take 56 kB
    try:
        with pytest.raises(OSError, match="Step 4 could not be saved"):
            train(run, cpu_accelerator())
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
    train_toy(tmp_path, evaluate_every=3)
    train_toy(tmp_path / "whole")
    assert newest_state(tmp_path) == newest_state(tmp_path / "whole")


def test_the_next_step_is_read_while_a_step_is_computed_and_no_further(tmp_path):
    run, reads = make_run(tmp_path), []
    sound = run.training_set.read
    run.training_set.read = lambda rows, uniform: reads.append(rows.tolist()) or sound(rows, uniform)
    accelerator = cpu_accelerator()
    with read_ahead(run, accelerator, 1) as following:
        (batch, draws), *rest = following.result()
    assert not rest
    gradients = torch.autograd.grad(run.objective(batch, draws)["loss"], weights(run))
    backward_step(run, run.objective, accelerator, 1)
    assert reads[0] == reads[1]
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, weights(run), strict=True))
    with read_ahead(run, accelerator, run.loop.num_steps) as following:
        assert following is None
    assert len(reads) == 2


def test_what_cannot_be_read_stops_the_run_at_its_step_after_the_states_before(tmp_path):
    run = make_run(tmp_path, save_every=1)
    sound, num_reads = run.training_set.read, iter(range(100))

    def read(rows, uniform):
        if next(num_reads) == 2:
            raise OSError("no such image")
        return sound(rows, uniform)

    run.training_set.read = read
    with pytest.raises(OSError, match="no such image"):
        train(run, cpu_accelerator())
    assert saved_states(tmp_path / "state")[-1].name == "step-00000002"


def test_nothing_is_read_beside_evaluation(tmp_path):
    """A tokenizer serves one thread at a time; what is read ahead may need the one that evaluation uses."""
    run, is_reading = make_run(tmp_path, evaluate_every=1), []
    sound = run.training_set.read

    def read(rows, uniform):
        is_reading.append(True)
        time.sleep(0.1)
        is_reading.pop()
        return sound(rows, uniform)

    run.training_set.read = read
    run.evaluate = lambda step: {"reading": float(len(is_reading))}
    train(run, cpu_accelerator())
    assert [line["reading"] for line in read_log(tmp_path / "log.jsonl") if "reading" in line] == [0.0] * 4
