"""embeddings.py: shards as a stream, killed and resumed, shared by processes; what is damaged."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from palindiff.data.images import ImageFileError, to_pixels
from palindiff.data.sources import DataConfig, open_any_images
from palindiff.data.squares import SquareImages
from palindiff.inference.embeddings import EmbeddingFolder, EmbeddingIndex, embed_images, read_all

SIZE_PX = 8


def write_images(folder, num_images):
    """Write captioned images, each of its own colour."""
    folder.mkdir(exist_ok=True)
    for i in range(num_images):
        Image.new("RGB", (8, 8), (20 * i, 90, 200 - 15 * i)).save(folder / f"{i:02d}.png")
    lines = [json.dumps({"file_name": f"{i:02d}.png", "captions": [f"a {i}", f"b {i}"]}) for i in range(num_images)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


class Means:
    """An embedder whose vectors are an image's mean colours times `scale`; counts the images it reads."""

    def __init__(self):
        self.seen = 0

    def embed_pixels(self, x, options):
        self.seen += len(x)
        return [x.mean((2, 3)) * each.get("scale", 1) for each in options]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return open_any_images(DataConfig(path=str(write_images(tmp_path_factory.mktemp("images"), num_images=11))))


def _keep(counts, _what, done, total):
    counts.append((done, total))


def folder(path, rows, **options):
    index = {"model": "m", "model_fingerprint": "f", "source": "s", "split": "train"}
    index["source_fingerprint"] = rows.fingerprint
    sizes = {"fit": "crop", "size_px": SIZE_PX, "num_rows": len(rows), "shard_rows": 4}
    return EmbeddingFolder(path, EmbeddingIndex(**index, **sizes, options=options))


def expected(rows):
    images, faults = zip(*SquareImages(rows, SIZE_PX, "crop"), strict=True)
    assert not any(faults)
    return to_pixels(torch.stack(images)).mean((2, 3))


def test_every_row_is_embedded_once_whatever_the_batch_and_the_workers(rows, tmp_path):
    for number, (batch_size, workers) in enumerate([(64, 0), (3, 0), (2, 1)]):
        model, place = Means(), folder(tmp_path / str(number), rows)
        counts = []
        count = partial(_keep, counts)
        embed_images(model, rows, [place], "refuse", batch_size, workers, count)
        vectors, columns = read_all(place.path)
        assert torch.equal(vectors, expected(rows))
        assert columns["row"] == list(range(11))
        assert columns["captions"] == [list(captions) for captions, _ in rows.texts()]
        assert model.seen == 11
        assert counts[-1] == (11, 11)


def test_several_options_read_each_image_once(rows, tmp_path):
    model, places = Means(), [folder(tmp_path / f"{scale}", rows, scale=scale) for scale in (1, 2)]
    embed_images(model, rows, places)
    assert model.seen == 11
    one, two = (read_all(place.path)[0] for place in places)
    assert torch.equal(2 * one, two)


def test_a_stopped_run_resumes_with_the_shards_that_are_missing(rows, tmp_path):
    class Killed(Means):
        def embed_pixels(self, x, options):
            if self.seen >= 6:
                raise KeyboardInterrupt
            return super().embed_pixels(x, options)

    place = folder(tmp_path / "kept", rows)
    with pytest.raises(KeyboardInterrupt):
        embed_images(Killed(), rows, [place], batch_size=2)
    with pytest.raises(ValueError, match=r"has 1 of 3 shards.*Rerun"):
        read_all(place.path)
    (place.path / "img_emb" / ".img_emb_00001.npy.1").touch()  # what a kill may leave
    model = Means()
    embed_images(model, rows, [place], batch_size=2)
    assert model.seen == 7
    assert torch.equal(read_all(place.path)[0], expected(rows))
    assert len(list((place.path / "img_emb").iterdir())) == 3


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_the_shards(num_processes, rows, tmp_path):
    models = [Means() for _ in range(num_processes)]
    for process, model in enumerate(models):
        embed_images(model, rows, [folder(tmp_path / "kept", rows)], process=process, num_processes=num_processes)
    assert sum(model.seen for model in models) == 11
    assert torch.equal(read_all(tmp_path / "kept")[0], expected(rows))


def test_images_that_cannot_be_read_are_left_out_or_refused(tmp_path):
    source = write_images(tmp_path / "images", num_images=6)
    files = sorted(source.rglob("*.png"))
    for file in files[:5]:
        file.write_bytes(file.read_bytes()[:50])
    rows = open_any_images(DataConfig(path=str(source)))
    place = folder(tmp_path / "kept", rows)
    with pytest.raises(ImageFileError, match="Finished shards stay"):
        embed_images(Means(), rows, [place])
    left_out = embed_images(Means(), rows, [place], on_bad="skip")
    vectors, columns = read_all(place.path)
    assert len(vectors) == 1
    assert sorted([*left_out, *columns["row"]]) == list(range(6))


def test_damaged_folders_are_refused(rows, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no embeddings\.json"):
        EmbeddingFolder.open(tmp_path)
    place = folder(tmp_path / "kept", rows)
    embed_images(Means(), rows, [place])
    (file,) = [each for each in (place.path / "img_emb").iterdir() if each.name == "img_emb_00001.npy"]
    np.save(file, np.full((4, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        read_all(place.path)
    (place.path / "embeddings.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match="cannot be read"):
        read_all(place.path)


def test_a_setting_that_is_finished_is_not_computed_again(rows, tmp_path):
    class Options(Means):
        def embed_pixels(self, x, options):
            asked.append(list(options))
            return super().embed_pixels(x, options)

    asked = []
    first, second = folder(tmp_path / "first", rows, scale=1), folder(tmp_path / "second", rows, scale=2)
    embed_images(Means(), rows, [first])
    embed_images(Options(), rows, [first, second])
    assert {json.dumps(each) for each in asked} == {json.dumps([{"scale": 2}])}
    assert torch.equal(read_all(second.path)[0], 2 * read_all(first.path)[0])
