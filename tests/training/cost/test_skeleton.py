"""skeleton.py: what is estimated on is what is trained, tensor by tensor, shape by shape."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from palindiff.training.cost.skeleton import build_skeleton
from toys.recipe import prepare_toy, toy_recipe
from toys.text_encoders import write_clip

VARIANTS = {
    "as it is": {},
    "joint": {"query_stream": {"fusion": "joint"}},
    "no chain": {"query_stream": {"text_chain": "none"}},
    "naming alone": {"objective": {"task": "alignment"}},
    "other views": {"views": {"crops": 2, "flip": "naming"}},
    "checkpointing": {"machine": {"gradient_checkpointing": True}},
}


def kinds(tensors):
    return {name: (tuple(each.shape[1:]), each.dtype) for name, each in tensors.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tower", ["tower", "clip"])
def test_skeleton_is_what_training_prepares(variant, tower, toy_parts, tmp_path):
    source = write_clip(tmp_path / "clip") if tower == "clip" else toy_parts / tower
    recipe = toy_recipe(toy_parts, text={"source": str(source)}, **VARIANTS[variant])
    parts = prepare_toy(recipe, tmp_path)
    skeleton = build_skeleton(recipe)
    for built, trained in ((skeleton.objective, parts.objective), (skeleton.vae, parts.pipeline.vae)):
        assert [(name, weight.shape, weight.requires_grad) for name, weight in built.named_parameters()] == [
            (name, weight.shape, weight.requires_grad) for name, weight in trained.named_parameters()
        ]
    assert {name: each.shape for name, each in skeleton.objective.named_buffers()} == {
        name: each.shape for name, each in parts.objective.named_buffers()
    }
    assert skeleton.objective.unet.is_gradient_checkpointing == parts.pipeline.unet.is_gradient_checkpointing
    assert skeleton.objective.scheduler.config == parts.objective.scheduler.config
    assert skeleton.image_size_px == 16
    rows, uniform = torch.arange(3), torch.rand(3, 2)
    assert kinds(skeleton.features.read(rows, uniform)) == kinds(parts.training_set.read(rows, uniform))


def test_skeleton_is_found_without_data_and_takes_no_memory(toy_parts):
    recipe = toy_recipe(toy_parts, data={"path": "nowhere"})
    with FakeTensorMode(allow_non_fake_inputs=True):
        skeleton = build_skeleton(recipe)
    modules = (skeleton.objective, skeleton.vae, skeleton.text_encoder)
    assert all(isinstance(weight, FakeTensor) for module in modules for weight in module.parameters())


def test_the_bundled_vae_is_found():
    from palindiff.inference.bundled import bundled_vae
    from palindiff.training.cost.skeleton import vae_without_weights

    assert vae_without_weights("bundled").config.block_out_channels == bundled_vae().config.block_out_channels
