"""run_log.py: means over an interval, a log that survives being cut off, and the stop at the first NaN."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from palindiff.training.loop.device import MachineConfig, check_trackers, make_accelerator
from palindiff.training.loop.loop_config import LoopConfig
from palindiff.training.loop.run_log import RunLog, read_log, training_cost
from toys.run import cpu_accelerator

LOOP = LoopConfig(num_steps=5, batch_size=4, log_every=2)


def started(run_dir, step=0, show_progress=False, accelerator=None):
    run_log = RunLog(run_dir, show_progress)
    run_log.start(step, LOOP, accelerator or cpu_accelerator())
    return run_log


def with_trackers(run_dir, *names):
    """An accelerator with these trackers, whatever an earlier test left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return make_accelerator(MachineConfig(log_with=names), run_dir)


def take_steps(run_log, first, last):
    for step in range(first, last + 1):
        run_log.step(step, {"loss": torch.tensor(float(step))})


def test_lines_are_means_over_their_interval_and_the_last_is_shorter(tmp_path):
    run_log = started(tmp_path)
    take_steps(run_log, 1, 5)
    run_log.finish()
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert all(line["images_per_s"] > 0 for line in lines)


def test_a_resumed_log_drops_what_the_cut_off_run_wrote_too_much(tmp_path):
    run_log = started(tmp_path)
    take_steps(run_log, 1, 4)
    run_log.finish()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # killed while writing
    run_log = started(tmp_path, step=2)
    take_steps(run_log, 3, 5)
    run_log.finish()
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert lines[1]["elapsed_s"] >= lines[0]["elapsed_s"]


def test_elapsed_time_resumes_where_it_stopped(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 2, "loss": 1.0, "elapsed_s": 500.0}) + "\n")
    run_log = started(tmp_path, step=2)
    take_steps(run_log, 3, 4)
    run_log.finish()
    assert read_log(tmp_path / "log.jsonl")[-1]["elapsed_s"] >= 500.0


def test_the_time_until_a_last_evaluation_counts(tmp_path):
    run_log = started(tmp_path)
    take_steps(run_log, 1, 1)  # of which no line is written yet
    run_log._since -= 500.0
    run_log.evaluation(1, {"recall": 0.5}, elapsed_s=0.0)
    run_log.finish()
    assert training_cost(read_log(tmp_path / "log.jsonl")) == (1, pytest.approx(500, abs=5))


def test_evaluations_have_lines_of_their_own_and_cost_no_training_time(tmp_path):
    run_log = started(tmp_path)
    take_steps(run_log, 1, 2)
    run_log.evaluation(2, {"recall": 0.1234567}, elapsed_s=1000.0)
    take_steps(run_log, 3, 4)
    run_log.finish()
    evaluation = read_log(tmp_path / "log.jsonl")[1]
    assert evaluation.pop("elapsed_s") < -900
    assert evaluation == {"step": 2, "recall": 0.123457, "evaluation_s": 1000.0}
    assert read_log(tmp_path / "log.jsonl")[2]["elapsed_s"] < -900  # 1,000 s that never passed are taken off


def tensorboard_losses(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard" / "palindiff"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    run_log = started(tmp_path, accelerator=with_trackers(tmp_path, "tensorboard"))
    take_steps(run_log, 1, 2)
    run_log.finish()
    assert tensorboard_losses(tmp_path) == [(2, 1.5)]


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path):
    for first, last in ((1, 5), (3, 5)):  # killed after step 5, of which 2 are saved
        run_log = started(tmp_path, first - 1, accelerator=with_trackers(tmp_path, "tensorboard"))
        take_steps(run_log, first, last)
        run_log.finish()
    assert tensorboard_losses(tmp_path) == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert len(list((tmp_path / "tensorboard" / "palindiff").iterdir())) == 2


def test_wandb_gets_the_run_s_name_and_folder(tmp_path, monkeypatch):
    accelerator, passed = cpu_accelerator(), []
    monkeypatch.setattr(accelerator, "init_trackers", lambda name, init_kwargs: passed.append((name, init_kwargs)))
    started(tmp_path / "run", accelerator=accelerator).finish()
    ((name, init_kwargs),) = passed
    assert (name, init_kwargs["wandb"]) == ("palindiff", {"name": "run", "dir": str(tmp_path / "run")})


def test_without_trackers_only_the_log_is_written(tmp_path):
    run_log = started(tmp_path, accelerator=with_trackers(tmp_path))
    take_steps(run_log, 1, 5)
    run_log.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_an_unknown_tracker_or_a_missing_package_is_reported(monkeypatch):
    monkeypatch.setattr("palindiff.training.loop.device.get_available_trackers", lambda: ["tensorboard"])
    check_trackers(("tensorboard",))
    with pytest.raises(ValueError, match=r"names 'wandbb'\. Expected trackers of accelerate: aim, .*tensorboard"):
        check_trackers(("wandbb",))
    with pytest.raises(ModuleNotFoundError, match=r"names 'wandb', whose package is not installed.*pip install wandb"):
        check_trackers(("tensorboard", "wandb"))


def test_progress_is_shown_on_stderr_or_not_at_all(tmp_path, capsys):
    for show_progress in (True, False):
        run_log = started(tmp_path / str(show_progress), show_progress=show_progress)
        take_steps(run_log, 1, 2)
        run_log.evaluation(2, {"recall": 0.5}, elapsed_s=0.0)
        run_log.finish()
        told = capsys.readouterr()
        assert told.out == ""
        assert ("recall 0.500" in told.err) == show_progress


@pytest.mark.parametrize("broken", ["loss", "norm"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, broken, number):
    run_log = RunLog(tmp_path)
    numbers = {"loss": torch.tensor(1.0), "norm": torch.tensor(2.0)} | {broken: torch.tensor(number)}
    with pytest.raises(FloatingPointError, match=r"Step 7: loss .*gradient norm .*Expected finite numbers.*lower the"):
        run_log.check_finite(7, {"loss": numbers["loss"]}, numbers["norm"])


def test_finite_numbers_pass(tmp_path):
    RunLog(tmp_path).check_finite(7, {"loss": torch.tensor(1.0)}, torch.tensor(2.0))


def test_a_log_that_does_not_exist_is_empty(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def test_lines_that_no_run_wrote_are_left_out_of_a_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[1]\n{"told": 2}\n\n{"step": 2}\n{"step": 3')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]
