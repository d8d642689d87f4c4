"""dataset.py, latent_cache.py: cached equals computed anew, keys, mirror images, reading by number, no half files."""

import hashlib
import math
from collections import Counter
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps

from palindiff.data.images import ImageFileError, decode_image, to_tensor
from palindiff.data.sources import DataConfig, open_images
from palindiff.pretrained.text_encoders import load_text_encoder
from palindiff.seeds import hash_63_bits as caption_id
from palindiff.training.features import latent_cache, views
from palindiff.training.features.dataset import (
    ENCODE_BATCH,
    CaptionFeatures,
    FeatureSet,
    ImageFeatures,
    LiveCaptions,
    caption_features,
    default_cache_dir,
)
from palindiff.training.features.latent_cache import LatentCache, encode_moments
from palindiff.training.features.views import ViewConfig
from toys.recipe import SIDE_PX, toy_vae, write_drawings
from toys.run import write_images

PLAIN = ViewConfig()
CAPTIONS = ["a red a", "a red b", "a red a", "", "red"]
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def silent(what, done, total):
    """Report nothing."""


@pytest.fixture
def rows(toy_parts):
    return open_images(DataConfig(path=str(toy_parts / "images")))


@pytest.fixture
def encoder(toy_parts):
    return load_text_encoder(str(toy_parts / "encoder"))


def encode_images(rows, cache_dir, vae=None, size_px=SIDE_PX, fit="crop", views=PLAIN, num_workers=0, progress=silent):
    store = LatentCache(rows, vae or toy_vae(), size_px, fit, views, cache_dir, num_workers)
    store.encode(progress)
    return store.read()


def folders(cache_dir):
    return sorted(path.name for path in cache_dir.iterdir() if path.name != "locks") if cache_dir.exists() else []


def count_calls(module):
    """Count a module's forwards from now on."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_moments_are_the_posterior_of_each_image_and_of_its_mirror_image(rows, tmp_path):
    vae = toy_vae()
    vae.register_to_config(scaling_factor=0.5)
    moments = encode_images(rows, tmp_path, vae).moments
    assert moments.shape == (12, 1, 2, 2, 3, 8, 8)
    assert moments.dtype == np.float16
    for row, found in zip(rows, moments, strict=True):
        image = decode_image(row.source)
        for oriented, of_one in zip((image, ImageOps.mirror(image)), found[0], strict=True):
            with torch.no_grad():
                posterior = vae.encode(to_tensor(oriented)[None].float() / 127.5 - 1).latent_dist
            expected = 0.5 * torch.cat([posterior.mean, posterior.std])
            torch.testing.assert_close(
                torch.from_numpy(of_one.astype(np.float32)), expected, rtol=1e-3, atol=1e-3
            )  # float16


def test_the_second_orientation_is_the_mirrored_image_to_the_bit(rows):
    images = [decode_image(row.source) for row in rows]
    plain, mirrored = (
        encode_moments(toy_vae(), torch.stack([to_tensor(image) for image in each])[:, None])[:, 0]
        for each in (images, [ImageOps.mirror(image) for image in images])
    )
    assert torch.equal(plain[:, 1], mirrored[:, 0])
    assert torch.equal(plain[:, 0], mirrored[:, 1])
    assert not torch.equal(plain[:, 0], plain[:, 1])


def test_images_are_encoded_once_and_then_read(rows, tmp_path):
    vae, told = toy_vae(), []
    first = encode_images(rows, tmp_path / "one", vae, progress=lambda *progress: told.append(progress))
    anew = encode_images(rows, tmp_path / "two", vae)
    calls = count_calls(vae.encoder)
    again = encode_images(rows, tmp_path / "one", vae)
    assert not calls
    assert np.array_equal(first.moments, anew.moments)
    assert np.array_equal(first.moments, again.moments)
    assert folders(tmp_path / "one") == folders(tmp_path / "two")
    assert told == [("encoding images", 12, 12)]


def test_captions_are_encoded_once_and_then_read(encoder, tmp_path):
    first = caption_features(CAPTIONS, encoder, tmp_path / "one", silent)
    anew = caption_features(CAPTIONS, encoder, tmp_path / "two", silent)
    calls = count_calls(encoder.model)
    again = caption_features(CAPTIONS, encoder, tmp_path / "one", silent)
    assert not calls
    for found in (anew, again):
        assert np.array_equal(first.c, found.c)
        assert np.array_equal(first.e, found.e)
        assert first.row == found.row == {"a red a": 0, "a red b": 1, "": 2, "red": 3}


def test_text_features_are_those_of_each_caption_alone(encoder, tmp_path):
    found = caption_features(CAPTIONS, encoder, tmp_path, silent)
    for caption, row in found.row.items():
        with torch.no_grad():
            encoded = encoder.encode([caption])
        c, e = torch.from_numpy(found.c[row].astype(np.float32)), torch.from_numpy(found.e[row].copy())
        torch.testing.assert_close(c, encoded.c[0], rtol=1e-3, atol=1e-3)  # float16
        torch.testing.assert_close(e, encoded.e[0], rtol=0, atol=1e-6)  # float32, another batch


@pytest.mark.parametrize("is_cached", [True, False])
def test_captions_of_a_training_set_that_are_cut_are_one_warning(encoder, tmp_path, caplog, is_cached):
    captions = [f"{'b ' * 20}{'a ' * place}" for place in range(2 * ENCODE_BATCH)] + ["b"]
    if is_cached:
        caption_features(captions, encoder, tmp_path, silent)
    else:
        live = LiveCaptions(captions, encoder)
        for row in range(len(captions)):
            assert live.read(np.array([row]))["ids"].shape == (1, 12)
    num_cut = sum(20 + place + 2 - 12 for place in range(2 * ENCODE_BATCH))
    assert [record.getMessage() for record in caplog.records] == [
        f"128 of 129 captions are longer than the text encoder's 12 tokens; {num_cut:,} tokens were cut."
    ]


def test_what_makes_latents_is_in_their_key(rows, toy_parts, tmp_path):
    cache = tmp_path / "cache"
    vae, scaled, images = toy_vae(), toy_vae(), write_drawings(tmp_path / "images")
    scaled.register_to_config(scaling_factor=0.5)
    Image.new("RGB", (SIDE_PX, SIDE_PX), "red").save(images / "train" / "3.png")
    encode_images(rows, cache, vae)
    for number, changed in enumerate(
        [
            {"vae": toy_vae(seed=3)},
            {"vae": scaled},
            {"size_px": 8},
            {"fit": "pad"},
            {"views": ViewConfig(crops=2)},
            {"views": ViewConfig(crops=2, min_crop_area=0.5)},
            {"views": ViewConfig(crops=3)},
            {"rows": open_images(DataConfig(path=str(images)))},
        ],
        start=2,
    ):
        encode_images(**{"rows": rows, "cache_dir": cache, "vae": vae} | changed)
        assert len(folders(cache)) == number


def test_what_makes_text_features_is_in_their_key(toy_parts, tmp_path):
    source = str(toy_parts / "encoder")
    other_weights = load_text_encoder(source)
    with torch.no_grad():
        other_weights.model.embeddings.word_embeddings.weight[7] += 1
    for number, (captions, encoder) in enumerate(
        [
            (CAPTIONS, load_text_encoder(source)),
            ([*CAPTIONS, "one more"], load_text_encoder(source)),
            (CAPTIONS[::-1], load_text_encoder(source)),
            (CAPTIONS, load_text_encoder(source, max_length=7)),
            (CAPTIONS, other_weights),
        ],
        start=1,
    ):
        c = caption_features(captions, encoder, tmp_path, silent).c
        assert c.shape == (len(set(captions)), 7 if number == 4 else 12, 32)
        assert len(folders(tmp_path)) == number


def test_where_encoders_and_images_lie_is_not_in_the_key(rows, toy_parts, tmp_path):
    images = open_images(DataConfig(path=str(write_drawings(tmp_path / "moved"))))
    toy_vae().save_pretrained(tmp_path / "vae")
    written = AutoencoderKL.from_pretrained(tmp_path / "vae")
    vae = toy_vae()
    encode_images(rows, tmp_path / "cache", vae)
    calls = count_calls(written.encoder)
    encode_images(images, tmp_path / "cache", written)
    assert not calls
    assert len(folders(tmp_path / "cache")) == 1


def test_crops_lie_behind_the_whole_image_and_are_the_same_each_time(rows, tmp_path):
    views = ViewConfig(crops=3, min_crop_area=0.25)
    whole = encode_images(rows, tmp_path / "whole").moments
    found, again = (encode_images(rows, tmp_path / name, views=views).moments for name in ("one", "two"))
    assert found.shape == (12, 4, 2, 2, 3, 8, 8)
    np.testing.assert_allclose(found[:, :1], whole, rtol=1e-2, atol=2e-3)  # another batch, kept as float16
    assert np.array_equal(found, again)
    means = found[:, :, 0, 0].reshape(12 * 4, -1)
    assert len(np.unique(means, axis=0)) == 12 * 4


def test_crops_hold_the_share_that_is_asked_for(rows, tmp_path, monkeypatch):
    boxes = []
    monkeypatch.setattr(views, "crop_square", lambda image, *box: boxes.append(box) or image)
    encode_images(rows, tmp_path, views=ViewConfig(crops=20, min_crop_area=0.5))
    areas = [side**2 for side, _, _ in boxes]
    assert len(areas) == 12 * 20
    assert 0.4999 < min(areas) < 0.55
    assert 0.95 < max(areas) <= 1
    assert all(0 <= place <= 1 for _, *places in boxes for place in places)


def test_which_task_sees_mirror_images_is_chosen_at_reading_and_keeping_none_is_kept_apart(rows, tmp_path):
    both, naming, none = (
        encode_images(rows, tmp_path, views=ViewConfig(flip=flip)).moments for flip in ("both", "naming", "none")
    )
    assert len(folders(tmp_path)) == 2
    assert np.array_equal(both, naming)
    assert np.array_equal(none, both[:, :, :1]), "what is kept without mirror images are the others, half as much"


def viewed_set(flip, num_crops=0):
    """One image whose numbers tell the view: 10 * crop, 1 more if flipped."""
    moments = np.zeros((1, 1 + num_crops, 2, 2, 1, 1, 1), dtype=np.float16)
    moments += 10 * np.arange(1 + num_crops, dtype=np.float16).reshape(1, -1, 1, 1, 1, 1, 1)
    moments[:, :, 1] += 1
    texts = CaptionFeatures(np.zeros((1, 1, 1), np.float16), np.zeros((1, 1), np.float32), {"a": 0})
    return FeatureSet([["a"]], ImageFeatures(moments), texts, flip)


@pytest.mark.parametrize(
    ("flip", "generated", "named"), [("both", {0, 1}, {0, 1}), ("naming", {0}, {0, 1}), ("none", {0}, {0})]
)
def test_each_task_sees_the_mirror_images_that_are_meant_for_it(flip, generated, named):
    uniform = torch.stack([torch.linspace(0, BELOW_ONE, 100), torch.zeros(100)], dim=1)
    batch = viewed_set(flip).read(torch.zeros(100, dtype=torch.int64), uniform)
    assert set(batch["z_mean"].flatten().tolist()) == generated
    assert ("z_named_mean" in batch) == ("z_named_std" in batch) == (flip == "naming")  # else one image for both
    assert set(batch.get("z_named_mean", batch["z_mean"]).flatten().tolist()) == named


def test_naming_sees_every_crop_equally_often_and_generation_none():
    number = 3 * 2 * 8
    uniform = torch.stack([(torch.arange(number) + 0.5) / number, torch.zeros(number)], dim=1)
    batch = viewed_set("both", num_crops=2).read(torch.zeros(number, dtype=torch.int64), uniform)
    assert set(batch["z_mean"].flatten().tolist()) == {0, 1}
    views = batch["z_named_mean"].flatten().tolist()
    assert {view: views.count(view) for view in set(views)} == dict.fromkeys((0, 1, 10, 11, 20, 21), 8)
    edges = torch.tensor([[0.5, 0.0], [BELOW_ONE, 0.0], [math.nextafter(0.5, 0), 0.0]], dtype=torch.float64)
    at_edges = viewed_set("both", num_crops=2).read(torch.zeros(3, dtype=torch.int64), edges)
    assert at_edges["z_named_mean"].flatten().tolist() == [0, 20, 21]


def numbered_set(captions, **options):
    """A feature set whose numbers tell where they come from."""
    n, texts = len(captions), list(dict.fromkeys(caption for of_one in captions for caption in of_one))
    moments = np.arange(4 * n, dtype=np.float16).reshape(n, 1, 2, 2, 1, 1, 1)
    c = np.arange(len(texts), dtype=np.float16).reshape(-1, 1, 1)
    e = np.arange(len(texts), dtype=np.float32).reshape(-1, 1)
    features = CaptionFeatures(c, e, {text: i for i, text in enumerate(texts)})
    return FeatureSet(captions, ImageFeatures(moments), features, **options)


def test_the_first_number_flips_below_one_half():
    features = numbered_set([["a"], ["b"], ["c"]])
    flips = torch.tensor(
        [[0.0, 0.0], [math.nextafter(0.5, 0), 0.0], [0.5, 0.0], [BELOW_ONE, 0.0]], dtype=torch.float64
    )
    batch = features.read(torch.tensor([1, 1, 1, 2]), flips)
    assert batch["z_mean"].flatten().tolist() == [6, 6, 4, 8]  # row 1 is 4, 5 (mean, deviation), flipped 6, 7
    assert batch["z_std"].flatten().tolist() == [7, 7, 5, 9]


@pytest.mark.parametrize("num_captions", [1, 2, 3, 5, 7, 20])
def test_the_second_number_reaches_every_caption_equally_often(num_captions):
    captions = [f"caption {i}" for i in range(num_captions)]
    features = numbered_set([["before"], captions, ["behind"]])
    second = torch.tensor([(i + 0.5) / (4 * num_captions) for i in range(4 * num_captions)])
    uniform = torch.stack([torch.full_like(second, 0.5), second], dim=1)
    batch = features.read(torch.ones(len(second), dtype=torch.int64), uniform)
    assert batch["caption_id"].tolist() == [caption_id(caption) for caption in captions for _ in range(4)]
    edges = features.read(
        torch.tensor([1, 1, 0, 2]), torch.tensor([[0.5, 0], [0.5, BELOW_ONE], [0.5, BELOW_ONE], [0.5, 0]])
    )
    assert edges["e_0"].flatten().tolist() == [1, num_captions, 0, num_captions + 1]
    assert edges["c"].flatten().tolist() == [1, num_captions, 0, num_captions + 1]


@pytest.mark.parametrize("num_captions", [1, 2, 3, 5, 20])
def test_a_second_caption_is_drawn_independently_of_the_first(num_captions):
    """A fine grid of the second number meets every pair of captions equally often."""
    captions = [f"caption {i}" for i in range(num_captions)]
    features = numbered_set([["before"], captions, ["behind"]], with_second_caption=True)
    places = 4 * num_captions**2
    uniform = torch.stack([torch.full((places,), 0.5), (torch.arange(places) + 0.5) / places], dim=1)
    batch = features.read(torch.ones(places, dtype=torch.int64), uniform)
    pairs = Counter(zip(batch["e_0"].flatten().tolist(), batch["e_query"].flatten().tolist(), strict=True))
    every = range(1, num_captions + 1)
    assert pairs == {(first, second): 4 for first in every for second in every}
    edges = features.read(torch.tensor([1, 0, 2]), torch.tensor([[0.5, BELOW_ONE]] * 3))
    assert edges["e_query"].flatten().tolist() == [num_captions, 0, num_captions + 1]
    without = numbered_set([["before"], captions, ["behind"]]).read(torch.ones(places, dtype=torch.int64), uniform)
    assert "e_query" not in without
    assert all(torch.equal(batch[name], tensor) for name, tensor in without.items())


def test_equal_captions_of_different_images_share_number_and_features():
    features = numbered_set([["a", "b"], ["b"]])
    batch = features.read(torch.tensor([0, 1]), torch.tensor([[0.5, 0.9], [0.5, 0.9]]))
    assert batch["caption_id"][0] == batch["caption_id"][1] == caption_id("b")
    assert batch["e_0"][0] == batch["e_0"][1]
    assert len(features) == 2


def test_a_caption_s_number_is_the_same_in_every_process():
    assert (
        caption_id("a red apple")
        == 6945577282711646075
        == int(hashlib.sha256(b"a red apple").hexdigest()[:16], 16) // 2
    )
    ids = [caption_id(caption) for caption in ("", "a", "b", "é")]
    assert len(set(ids)) == 4
    assert all(0 <= number < 2**63 for number in ids)


def damaged(tmp_path):
    """Images of which the third is cut short, and what an error calls it."""
    folder = write_images(tmp_path / "damaged")
    broken = folder / "train" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    return open_images(DataConfig(path=str(folder))), broken


def test_a_damaged_image_is_named_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "ENCODE_BATCH", 1)  # two batches are written before the third fails
    rows, broken = damaged(tmp_path)
    told = []
    with pytest.raises(ImageFileError, match=f"`{broken}` is not an image"):
        encode_images(rows, tmp_path / "cache", progress=lambda what, done, total: told.append(done))
    assert told == [1, 2]
    assert folders(tmp_path / "cache") == []


def test_a_full_disk_is_an_error_and_nothing_is_left_half_written(rows, tmp_path):
    limits = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (2_000, limits[1]))  # the latents take 18 kB
    try:
        with pytest.raises(OSError, match="File too large"):
            encode_images(rows, tmp_path)
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert folders(tmp_path) == []
    assert encode_images(rows, tmp_path).moments.shape[0] == 12


def test_a_worker_process_gives_the_same_images_and_the_same_error(tmp_path, monkeypatch):
    """One worker, started anew as on a machine with a GPU; it fails at the third image of four."""
    monkeypatch.setattr(latent_cache, "ENCODE_BATCH", 1)
    rows, broken = damaged(tmp_path)
    seen, vae = {0: [], 1: []}, toy_vae()
    for num_workers, inputs in seen.items():
        hook = vae.encoder.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
        with pytest.raises(
            ImageFileError, match=rf"^`{broken}` is not an image .* leave it out\. With `data\.on_bad: skip` .*$"
        ):
            encode_images(rows, tmp_path / "cache", vae, num_workers=num_workers)
        hook.remove()
    assert len(seen[0]) == 4  # two images, each with its mirror image
    assert all(torch.equal(alone, worked) for alone, worked in zip(seen[0], seen[1], strict=True))
    assert folders(tmp_path / "cache") == []


def test_features_lie_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PALINDIFF_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PALINDIFF_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "palindiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == tmp_path / ".cache" / "palindiff"


def test_kept_files_are_plain_numpy_arrays(rows, encoder, tmp_path):
    encode_images(rows, tmp_path)
    caption_features(CAPTIONS, encoder, tmp_path, silent)
    found = {path.name: np.load(path) for path in tmp_path.glob("*/*.npy")}
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "moments.npy": ((12, 1, 2, 2, 3, 8, 8), np.float16),
        "c.npy": ((4, 12, 32), np.float16),
        "e.npy": ((4, 32), np.float32),
    }
    assert [name.partition("-")[0] for name in folders(tmp_path)] == ["captions", "images"]
