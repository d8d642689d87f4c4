"""A new objective is a module, a recipe and a trainer of a few lines: verb, loop, resuming and saving are there."""

import pytest
import torch
from accelerate.state import AcceleratorState
from pydantic import BaseModel
from safetensors.torch import save_file

from palindiff.cli.main import main
from palindiff.training.base_trainer import Trainer
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.run_log import RunLog, read_log
from palindiff.training.recipes.schema import Recipe
from palindiff.training.trainer import TRAINERS

RECIPE = """
{data: {path: .}, objective: {name: toy}, optimizer: {new_learning_rate: 0.2, warmup_steps: 0},
loop: {num_steps: 60, batch_size: 8, save_every: 20, evaluate_every: 30, ema_decay: 0.5, log_every: 1}}
"""


class ToyConfig(BaseModel, frozen=True, extra="forbid"):
    name: str = "toy"


class ToyRecipe(Recipe, frozen=True, extra="forbid"):
    objective: ToyConfig = ToyConfig()


class ToyObjective(torch.nn.Linear):
    def draw(self, b, generator):
        return {"eps": torch.randn(b, 1, generator=generator)}

    def forward(self, batch, draws):
        return {"loss": (super().forward(batch["x"]) - batch["y"] - 0.1 * draws["eps"]).square().mean()}


class ToyTrainer(Trainer):
    recipe_class, result_name, fingerprints = ToyRecipe, "line", {}
    count_parameters = staticmethod(lambda recipe: {"trained": 2})
    build_models = load_features = trained_model = lambda self: None
    make_objective = staticmethod(lambda: ToyObjective(1, 1))
    training_set = property(lambda self: self)
    __len__ = staticmethod(lambda: 16)

    def read(self, rows, uniform):
        return {"x": rows[:, None] / 8 - 1, "y": 3 * (rows[:, None] / 8 - 1)}

    def parameter_groups(self):
        return [{"params": list(self.objective.parameters()), "lr": self.recipe.optimizer.new_learning_rate}]

    def evaluation_rows(self, step):
        return [{"metric": "slope", "value": self.objective.weight.item(), "n": 16}]

    def save(self, folder):
        save_file(self.objective.state_dict(), folder / "line.safetensors")


def test_a_toy_objective_trains_resumes_and_is_evaluated_through_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(TRAINERS, "toy", ToyTrainer)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    log_step, (whole, parts) = RunLog.step, (tmp_path / "whole", tmp_path / "parts")

    def train_until(last_step, output):
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = ["train", "--recipe", f"{tmp_path}/toy.yaml", "--output", str(output)]
        monkeypatch.setattr("sys.argv", ["palindiff", *arguments])
        monkeypatch.setattr(RunLog, "step", lambda log, step, n: log_step(log, step, n if step < last_step else None))
        with pytest.raises((SystemExit, AttributeError)) as stopped:
            main()
        return stopped.type is SystemExit and not stopped.value.code

    assert train_until(99, whole)
    assert not train_until(50, parts)
    assert saved_states(parts / "state")[-1].name == "step-00000040"
    assert train_until(99, parts)
    assert len({(run / "line" / "line.safetensors").read_bytes() for run in (whole, parts)}) == 1
    numbers = [line for line in read_log(parts / "log.jsonl") if "slope" in line]
    assert [line["step"] for line in numbers] == [30, 60]
    assert abs(numbers[-1]["slope"] - 3) < 0.5
