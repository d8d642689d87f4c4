"""What is counted for each trained weight, against the tensors that a run really holds."""

from palindiff.training.cost.memory import training_bytes
from palindiff.training.recipes.schema import VaeRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.train_vae import VaeTrainer
from toys.run import make_run, train_toy


def test_training_bytes_count_what_a_run_holds(tmp_path):
    run, state = train_toy(tmp_path, num_steps=1)
    weights = list(run.objective.parameters())
    held = weights + weights + list(state.ema.shadow_params)  # the gradients are as large as the weights
    held += [state.distributed.optimizer.state[weight][key] for weight in weights for key in ("exp_avg", "exp_avg_sq")]
    num_trained = sum(weight.numel() for weight in weights)
    counted = training_bytes(num_trained, load_recipe(VaeRecipe, "vae-emoji"))
    assert counted == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_a_vae_s_parameters_are_counted_without_building_it(tmp_path):
    toy = make_run(tmp_path).objective.vae
    overrides = ["vae={widths: [8, 8], latent_channels: 2, norm_groups: 4, image_size_px: 8}"]
    told = VaeTrainer.count_parameters(load_recipe(VaeRecipe, "vae-emoji", overrides))
    assert told["vae"] == told["trained"] == sum(weight.numel() for weight in toy.parameters())
