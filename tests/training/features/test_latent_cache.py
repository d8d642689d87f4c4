"""latent_cache.py: large sets in parts that a kill does not undo, shared by processes; what cannot be read."""

import multiprocessing
import os
import signal
import threading
import time

import datasets
import numpy as np
import pytest
import torch

from palindiff.data.images import ImageFileError
from palindiff.data.sources import DataConfig, open_images
from palindiff.training.features import latent_cache, views
from palindiff.training.features.latent_cache import LatentCache, encode_moments
from palindiff.training.features.views import ViewConfig
from toys.cc3m import write_downloads
from toys.recipe import SIDE_PX, toy_vae

VIEWS = ViewConfig(flip="none")


@pytest.fixture(autouse=True)
def small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(latent_cache, "ENCODE_BATCH", 2)
    monkeypatch.setattr(latent_cache, "PART_ROWS", 4)


@pytest.fixture
def rows(tmp_path):
    """Fourteen images: four parts, the last one of two."""
    folder = write_downloads(tmp_path / "cc3m", 2, size_px=SIDE_PX)
    return open_images(DataConfig(path=str(folder)))


@pytest.fixture
def damaged(tmp_path):
    """The same, of which the second cannot be decoded."""
    folder = write_downloads(tmp_path / "damaged", 2, size_px=SIDE_PX, faults=("damaged",))
    return open_images(DataConfig(path=str(folder)))


def store_of(rows, cache_dir, vae=None, views=VIEWS, **settings):
    return LatentCache(rows, vae or toy_vae(), SIDE_PX, "crop", views, cache_dir, **settings)


def silent(what, done, total):
    """Progress nobody."""


def encoded(store, tell=silent):
    store.encode(tell)
    return store.read()


def content(features):
    return features.moments[np.arange(len(features.moments)),]


def part_names(store):
    return sorted(path.name for path in store.path.glob("*"))


class Killed(BaseException):
    """What ends an encoding from outside."""


def killed_at(last):
    def tell(what, done, total):
        if done >= last:
            raise Killed

    return tell


@pytest.mark.parametrize("views", [VIEWS, ViewConfig(crops=1)])
def test_parts_hold_what_one_part_holds_to_the_bit(rows, views, tmp_path, monkeypatch):
    told = []
    parted = encoded(store_of(rows, tmp_path / "parts", views=views), lambda *progress: told.append(progress))
    assert [progress[1] for progress in told] == [2, 4, 6, 8, 10, 12, 14]
    assert {progress[::2] for progress in told} == {("encoding images", 14)}
    monkeypatch.setattr(latent_cache, "PART_ROWS", 100)
    store = store_of(rows, tmp_path / "one", views=views)
    whole = encoded(store)
    assert part_names(store) == ["moments.npy"]
    assert isinstance(whole.moments, np.memmap)
    assert np.array_equal(content(parted), whole.moments)
    some = torch.tensor([13, 0, 4, 4, 3, 9])
    for one, other in zip(
        *(each.read(some, torch.zeros(6, dtype=torch.bool)) for each in (parted, whole)), strict=True
    ):
        assert torch.equal(one, other)


def test_an_encoding_stopped_between_and_within_parts_resumes(rows, tmp_path):
    store = store_of(rows, tmp_path / "cache")
    expected = content(encoded(store_of(rows, tmp_path / "whole")))
    for last, kept in ((6, 1), (8, 1), (10, 2)):  # a part counts when it is whole and told
        with pytest.raises(Killed):
            store.encode(killed_at(last))
        assert len(part_names(store)) == kept
    told = []
    found = encoded(store, lambda what, done, total: told.append(done))
    assert told == [10, 12, 14]
    assert np.array_equal(content(found), expected)


def encode_until_killed(store):
    """Runs in a forked process."""
    store.encode(lambda what, done, total: done >= 10 and os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_process_loses_no_finished_part_and_its_rest_is_removed(rows, tmp_path):
    """SIGKILL while the third part is written, which leaves a hidden folder."""
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=encode_until_killed, args=(store_of(rows, tmp_path / "cache"),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    store, vae = store_of(rows, tmp_path / "cache"), toy_vae()
    names = part_names(store)
    assert [name for name in names if not name.startswith(".")] == [
        "rows-000000000-000000004",
        "rows-000000004-000000008",
    ]
    assert len(names) == 3
    calls = []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = encoded(store_of(rows, tmp_path / "cache", vae))
    assert len(calls) == 3, "the third part's two batches and the fourth's"
    assert np.array_equal(content(found), content(encoded(store_of(rows, tmp_path / "whole"))))
    assert len(part_names(store)) == 4


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_the_parts(num_processes, rows, tmp_path):
    expected = content(encoded(store_of(rows, tmp_path / "alone")))
    store, told = store_of(rows, tmp_path / "cache"), []
    for process in reversed(range(num_processes)):
        before = set(part_names(store))
        store.encode(lambda *progress: told.append(progress), process, num_processes)
        fresh = set(part_names(store)) - before
        assert fresh == {folder.name for folder, _ in store.parts[process::num_processes]}
    assert sum(total for what, done, total in told if done == total) == 14
    assert f"encoding images, process 1 of {num_processes}" in {what for what, _, _ in told}
    assert np.array_equal(content(store.read()), expected)


def test_of_two_runs_one_waits_for_the_part_that_the_other_encodes(rows, tmp_path):
    """Each part is encoded once, by either; what was decoded ahead is not mixed up."""
    expected = content(encoded(store_of(rows, tmp_path / "alone")))
    others, calls, vae = [], [], toy_vae()
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    second = threading.Thread(target=lambda: others.append(content(encoded(store_of(rows, tmp_path / "cache", vae)))))

    def tell(what, done, total):
        if done == 6:  # within the second part
            second.start()
            time.sleep(0.2)
            assert not others

    first = encoded(store_of(rows, tmp_path / "cache", vae), tell)
    second.join(timeout=60)
    assert np.array_equal(content(first), expected)
    assert np.array_equal(others[0], expected)
    assert len(calls) == 7, "batches of two of fourteen images"
    assert len(part_names(store_of(rows, tmp_path / "cache"))) == 4


def test_no_more_than_a_batch_is_held(rows, tmp_path, monkeypatch):
    """Images are decoded as they are encoded, and features are mapped, not read."""
    decoded, most = [], []
    read = views.decode_image
    monkeypatch.setattr(views, "decode_image", lambda source: decoded.append(1) or read(source))
    found = encoded(store_of(rows, tmp_path), lambda what, done, total: most.append(len(decoded) - done))
    assert max(most) <= latent_cache.ENCODE_BATCH
    assert all(isinstance(array, np.memmap) for array in found.moments.arrays)


def test_batches_hold_no_more_pixels_than_the_device_is_given(monkeypatch):
    """Each view and each orientation of five images is encoded in batches of two."""
    images = torch.randint(0, 256, (5, 2, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8)
    vae, batches = toy_vae(), []
    whole = encode_moments(vae, images)
    hook = vae.encoder.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    monkeypatch.setattr(latent_cache, "CPU_PIXELS", 2 * SIDE_PX**2 + 1)
    parted = encode_moments(vae, images)
    monkeypatch.setattr(latent_cache, "CPU_PIXELS", 1)  # larger images go one by one
    single = encode_moments(vae, images)
    hook.remove()
    assert batches == 4 * [2, 2, 1] + 20 * [1]
    assert whole.shape[:4] == (5, 2, 2, 2)
    assert whole.dtype == torch.float32
    for found in (parted, single):
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_large_images_are_decoded_in_smaller_batches(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "ENCODE_BATCH", 64)
    monkeypatch.setattr(latent_cache, "LOADED_PIXELS", 6 * SIDE_PX**2)  # three images with a crop each
    monkeypatch.setattr(latent_cache, "PART_ROWS", 100)
    told = []
    encoded(store_of(rows, tmp_path, views=ViewConfig(crops=1)), lambda _, done, total: told.append(done))
    assert told == [3, 6, 9, 12, 14]


def test_workers_by_default_are_one_per_core_for_large_sets_on_a_gpu(monkeypatch):
    def workers(num_rows=1_000, device_type="cuda"):
        return latent_cache.default_workers(num_rows, device_type)

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(latent_cache, "num_cores", lambda: 6)
    assert [workers(num_rows) for num_rows in (1, 999, 1_000, 10**6)] == [0, 0, 6, 6]
    assert workers(10**6, "cpu") == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # processes that a launcher started on this machine
    assert workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(latent_cache, "num_cores", lambda: 64)
    assert workers() == latent_cache.MAX_WORKERS


def test_a_large_set_is_decoded_in_workers_by_default(rows, tmp_path, monkeypatch):
    """Nothing is decoded in this process, and the latents are the same."""
    alone = encoded(store_of(rows, tmp_path / "alone", num_workers=0))
    asked = []
    monkeypatch.setattr(latent_cache, "default_workers", lambda *given: asked.append(given) or 1)
    monkeypatch.setattr(latent_cache, "PART_ROWS", 100)
    monkeypatch.setattr(views, "decode_image", None)
    found = encoded(store_of(rows, tmp_path / "cache", num_workers=None))
    assert asked == [(14, "cpu")]
    assert np.array_equal(content(found), content(alone))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_skipped_and_reported_and_the_others_are_unchanged(
    num_workers, rows, damaged, tmp_path, monkeypatch
):
    monkeypatch.setattr(latent_cache, "PART_ROWS", 8 if num_workers else 4)  # workers are started for each part
    found = encoded(store_of(damaged, tmp_path / "cache", on_bad="skip", num_workers=num_workers))
    assert list(found.unreadable) == [1]
    assert "`00000.tar/000000001.jpg`" in found.unreadable[1]
    whole = encoded(store_of(rows, tmp_path / "whole"))
    others = torch.tensor([0, *range(2, 14)])
    plain = torch.zeros(13, dtype=torch.bool)
    for one, other in zip(found.read(torch.arange(13), plain), whole.read(others, plain), strict=True):
        assert torch.equal(one, other)
    assert len(damaged.without(found.unreadable)) == 13


def test_an_unreadable_image_is_refused_and_finished_parts_stay(tmp_path):
    folder = write_downloads(tmp_path / "cc3m", 2, size_px=SIDE_PX)
    tar = folder / "00001.tar"
    rows = open_images(DataConfig(path=str(folder)))
    data, source = bytearray(tar.read_bytes()), rows[9].source
    data[source.offset : source.offset + source.size] = bytes(source.size)
    tar.write_bytes(data)
    rows = open_images(DataConfig(path=str(folder)))
    store = store_of(rows, tmp_path / "cache")
    with pytest.raises(ImageFileError, match=r"`00001.tar/000010002.jpg` is not .*With `data\.on_bad: skip` such"):
        store.encode(silent)
    assert part_names(store) == ["rows-000000000-000000004", "rows-000000004-000000008"]


def test_what_was_skipped_before_is_refused_later(damaged, tmp_path):
    encoded(store_of(damaged, tmp_path, on_bad="skip"))
    with pytest.raises(ImageFileError, match=r"000000001\.jpg"):
        encoded(store_of(damaged, tmp_path))
