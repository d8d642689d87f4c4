"""The VAE's trainer and its images in memory: augmentation, a run that stops and resumes, and the folder it writes."""

import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from palindiff.data.images import to_pixels
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import reconstruction
from palindiff.pretrained.bundled import bundled_vae
from palindiff.training.features.images_in_memory import (
    COLOUR_ORDERS,
    MAX_SHIFT_PX,
    Augmentation,
    ImagesInMemory,
    augment,
    decode_images,
)
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.run_log import RunLog, read_log
from palindiff.training.recipes.schema import VaeRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.train_vae import VaeTrainer, latent_moments
from palindiff.training.trainer import train_recipe
from toys.run import TOY_VAE, one_thread, write_images

SIDE = 8
SHIFTS = 2 * MAX_SHIFT_PX + 1
NUM_FIRST = 4 * 2 * 12  # turn, mirror, colours: what the first uniform number chooses
NUM_SECOND = SHIFTS**2  # down, right: what the second one chooses


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def numbered_image():
    """Every number of the image is another, and none is white."""
    return torch.arange(3 * SIDE * SIDE).reshape(3, SIDE, SIDE) / 200 - 1


def middle(place, number):
    """The middle of one of `number` equal stretches of [0, 1)."""
    return (place + 0.5) / number


def every_change(x):
    """All that augmentation may make of an image, by numpy: image -> (orientation, colour order, shift)."""
    found = {}
    for turn in range(4):
        for mirror in (False, True):
            turned = np.rot90(x.numpy(), turn, (1, 2))
            turned = turned[:, :, ::-1] if mirror else turned
            for order in COLOUR_ORDERS:
                canvas = np.ones((3, 3 * SIDE, 3 * SIDE), np.float32)
                canvas[:, SIDE : 2 * SIDE, SIDE : 2 * SIDE] = turned[list(order)]
                for down in range(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1):
                    for right in range(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1):
                        seen = canvas[:, SIDE - down :, SIDE - right :][:, :SIDE, :SIDE]
                        found[seen.tobytes()] = (turn, mirror), order, (down, right)
    return found


def test_augmentation_turns_mirrors_recolours_and_shifts_and_nothing_else():
    x = numbered_image()
    known = every_change(x)
    assert len(known) == 8 * 6 * NUM_SECOND  # the changes all differ, so each image tells its own
    uniform = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    assert all(augment(x, u, Augmentation()).numpy().tobytes() in known for u in uniform)


def test_every_orientation_and_colour_order_comes_equally_often():
    """One uniform number from each of the 96 equal stretches: 12 of each orientation, and half keep their colours."""
    x = numbered_image()
    known = every_change(x)
    unshifted = middle(MAX_SHIFT_PX * SHIFTS + MAX_SHIFT_PX, NUM_SECOND)
    changes = [
        known[augment(x, torch.tensor([middle(i, NUM_FIRST), unshifted]), Augmentation()).numpy().tobytes()]
        for i in range(NUM_FIRST)
    ]
    orientations, orders, shifts = (Counter(each) for each in zip(*changes, strict=True))
    assert len(orientations) == 8
    assert set(orientations.values()) == {12}
    assert orders == dict.fromkeys(COLOUR_ORDERS, 8) | {(0, 1, 2): 48 + 8}  # half stay, and one order in six is theirs
    assert set(shifts) == {(0, 0)}
    by_orientation = Counter((orientation, order) for orientation, order, _ in changes)
    assert {count for (_, order), count in by_orientation.items() if order != (0, 1, 2)} == {1}


def test_every_shift_comes_equally_often():
    x = numbered_image()
    known = every_change(x)
    changes = [
        known[augment(x, torch.tensor([0.0, middle(i, NUM_SECOND)]), Augmentation()).numpy().tobytes()]
        for i in range(NUM_SECOND)
    ]
    assert len({shift for _, _, shift in changes}) == NUM_SECOND
    assert {orientation for orientation, _, _ in changes} == {(0, False)}


def test_an_image_may_stay_as_it_is():
    x = numbered_image()
    stay = torch.tensor([middle(6, NUM_FIRST), middle(MAX_SHIFT_PX * SHIFTS + MAX_SHIFT_PX, NUM_SECOND)])
    assert torch.equal(augment(x, stay, Augmentation()), x)


@pytest.mark.parametrize("edge", [0.0, math.nextafter(1, 0), float(np.nextafter(np.float32(1), np.float32(0)))])
def test_the_edges_of_the_uniform_numbers_are_changes_like_any_other(edge):
    x = numbered_image()
    changed = augment(x, torch.tensor([edge, edge], dtype=torch.float64), Augmentation())
    assert changed.numpy().tobytes() in every_change(x)


@pytest.mark.parametrize(("rotate", "recolour"), [(False, False), (True, False), (False, True)])
def test_photographs_need_not_be_rotated_or_recoloured(rotate, recolour):
    x = numbered_image()
    known = every_change(x)
    uniform = torch.rand(200, 2, generator=torch.Generator().manual_seed(5))
    changes = [known[augment(x, u, Augmentation(rotate=rotate, recolour=recolour)).numpy().tobytes()] for u in uniform]
    assert len({turn for (turn, _), _, _ in changes}) == (4 if rotate else 1)
    assert len({order for _, order, _ in changes}) == (len(COLOUR_ORDERS) if recolour else 1)
    assert len({mirror for (_, mirror), _, _ in changes}) == 2


def test_reading_depends_on_rows_and_uniform_numbers_alone():
    images = torch.randint(256, (5, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    training_set = ImagesInMemory(images)
    uniform = torch.rand(3, 2, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    x = training_set.read(torch.tensor([4, 0, 4]), uniform)["x"]
    torch.manual_seed(4)
    assert torch.equal(x[1:], training_set.read(torch.tensor([0, 4]), uniform[1:])["x"])
    assert torch.equal(x[0], augment(to_pixels(images[4]), uniform[0], Augmentation()))
    assert len(training_set) == 5


@pytest.fixture(scope="module")
def images_dir(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def toy_vae_recipe(images_dir, **changes):
    return VaeRecipe.model_validate(
        {
            "data": {"path": str(images_dir)},
            "vae": TOY_VAE.model_dump(),
            "objective": {"name": "vae"},
            "optimizer": {"new_learning_rate": 1e-2, "warmup_steps": 2},
            "loop": {"num_steps": 6, "batch_size": 4, "ema_decay": 0.5, "save_every": 2, "log_every": 1},
            **changes,
        }
    )


def train_toy_vae(images_dir, output, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_recipe(toy_vae_recipe(images_dir, **changes), output, show_progress=False)


@pytest.fixture(scope="module")
def finished(images_dir, tmp_path_factory):
    """A whole run: its folder, and the VAE it returned."""
    output = tmp_path_factory.mktemp("vae") / "run"
    with one_thread():
        return output, train_toy_vae(images_dir, output)


def same_weights(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def vae_bytes(output):
    return (output / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_run_writes_a_stock_vae_in_fp16(finished):
    output, _ = finished
    weights = load_file(output / "vae" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert AutoencoderKL.from_pretrained(output / "vae").config.latent_channels == 2


def psnr_db(vae, images):
    return [row["value"] for row in reconstruction(vae, images)]


def test_a_run_returns_what_it_wrote_and_logs_its_error_on_validation_images(finished, images_dir):
    output, trained = finished
    written = AutoencoderKL.from_pretrained(output / "vae")
    assert same_weights(written, trained)
    validation = decode_images(open_images(DataConfig(path=str(images_dir), split="validation")), SIDE)
    training = decode_images(open_images(DataConfig(path=str(images_dir))), SIDE)
    last = read_log(output / "log.jsonl")[-1]
    assert last["step"] == 6
    logged = [last["validation_psnr_db"], last["validation_pooled_psnr_db"]]
    assert psnr_db(written, validation) == pytest.approx(logged, abs=0.1)  # fp16 is all that differs
    assert psnr_db(written, validation) != psnr_db(written, training)


def test_what_a_run_wrote_has_latents_of_unit_variance(finished, images_dir):
    output, _ = finished
    training = decode_images(open_images(DataConfig(path=str(images_dir))), SIDE)
    mean, deviation = latent_moments(AutoencoderKL.from_pretrained(output / "vae"), training)
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=0.01)  # weights rounded to 11 bits
    torch.testing.assert_close(deviation, torch.ones(2), rtol=0, atol=0.01)


def test_a_run_learns(finished):
    log = [line["validation_psnr_db"] for line in read_log(finished[0] / "log.jsonl") if "validation_psnr_db" in line]
    assert len(log) == 1
    losses = [line["loss"] for line in read_log(finished[0] / "log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_training_may_start_from_another_vae(finished, images_dir, tmp_path):
    still = {"new_learning_rate": 1e-9, "warmup_steps": 2}
    trained = train_toy_vae(images_dir, tmp_path / "from", source=str(finished[0]), optimizer=still)
    x = to_pixels(decode_images(open_images(DataConfig(path=str(images_dir))), SIDE))
    for vae in (trained, finished[1]):
        vae.requires_grad_(False).eval()
    expected, found = (vae.decode(vae.encode(x).latent_dist.mean).sample for vae in (finished[1], trained))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)  # their weights are rounded to 11 bits


@pytest.mark.parametrize(
    ("change", "said"),
    [({"latent_channels": 3}, "`latent_channels` 2"), ({"norm_groups": 2}, "`norm_num_groups` 4"),
     ({"widths": (4, 8)}, r"`block_out_channels` \[")],
)  # fmt: skip
def test_a_vae_of_another_shape_is_refused(finished, images_dir, tmp_path, change, said):
    with pytest.raises(ValueError, match=f"has {said}.* Expected one shape"):
        train_toy_vae(images_dir, tmp_path / "other", source=str(finished[0]), vae=TOY_VAE.model_dump() | change)


def test_a_moved_source_resumes_a_run_and_other_weights_are_refused(finished, images_dir, tmp_path):
    shutil.copytree(finished[0] / "vae", tmp_path / "one")
    train_toy_vae(images_dir, tmp_path / "run", source=str(tmp_path / "one"))
    shutil.rmtree(tmp_path / "run" / "vae")  # as if it was stopped before it wrote its result
    (tmp_path / "one").rename(tmp_path / "moved")
    train_toy_vae(images_dir, tmp_path / "run", source=str(tmp_path / "moved"))
    shutil.rmtree(tmp_path / "run" / "vae")
    with pytest.raises(ValueError, match="was trained with another source than is found now"):
        train_toy_vae(images_dir, tmp_path / "run", source=str(other_weights(tmp_path)))


def other_weights(tmp_path):
    """A VAE of the same shape with other weights."""
    vae = AutoencoderKL.from_pretrained(tmp_path / "moved")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    vae.save_pretrained(tmp_path / "changed")
    return tmp_path / "changed"


def test_images_are_augmented_as_the_recipe_says(images_dir, tmp_path):
    trainer = VaeTrainer(
        toy_vae_recipe(images_dir, augmentation={"rotate": False, "recolour": False}), tmp_path, accelerator=None
    )
    trainer.build_models()
    trainer.load_features()
    assert trainer.training_set.augmentation == Augmentation(rotate=False, recolour=False)


def test_the_recipe_for_photographs_starts_from_the_bundled_vae(tmp_path):
    trainer = VaeTrainer(load_recipe(VaeRecipe, "vae-photos"), tmp_path, accelerator=None)
    trainer.build_models()
    assert same_weights(trainer.vae, bundled_vae())


def test_a_stopped_run_ends_with_the_weights_of_an_unstopped_one(finished, images_dir, tmp_path, monkeypatch):
    log_step = RunLog.step

    def interrupt_at_3(run_log, step, numbers):
        log_step(run_log, step, numbers)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", interrupt_at_3)  # Ctrl-C after step 3, of which only 2 are saved
        with pytest.raises(KeyboardInterrupt):
            train_toy_vae(images_dir, tmp_path)
    assert [state.name for state in saved_states(tmp_path / "state")] == ["step-00000002"]
    assert not (tmp_path / "vae").exists()
    trained = train_toy_vae(images_dir, tmp_path)
    assert vae_bytes(tmp_path) == vae_bytes(finished[0])
    assert same_weights(trained, finished[1])


def test_a_run_stopped_before_it_wrote_its_vae_writes_it(finished, images_dir, tmp_path):
    output = tmp_path / "run"
    (output / "state").mkdir(parents=True)
    newest = saved_states(finished[0] / "state")[-1]
    (output / "state" / newest.name).symlink_to(newest)
    trained = train_toy_vae(images_dir, output)
    assert vae_bytes(output) == vae_bytes(finished[0])
    assert same_weights(trained, finished[1])


def test_a_finished_run_is_read_and_not_written_again(finished, images_dir):
    output, trained = finished
    before = (output / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert same_weights(train_toy_vae(images_dir, output), trained)
    assert (output / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
