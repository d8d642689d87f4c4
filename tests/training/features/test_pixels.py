"""pixels.py: a set in memory, decoded at each reading, and in threads reads the same; views, captions, bad images."""

from unittest import mock

import pytest
import torch

from palindiff.data.images import ImageFileError, decode_image, to_tensor
from palindiff.data.sources import DataConfig, open_images
from palindiff.training.features import pixels
from palindiff.training.features.dataset import CaptionsOfRows
from palindiff.training.features.pixels import PixelSet
from palindiff.training.features.views import Squares, ViewConfig, draw_views
from toys.recipe import SIDE_PX, write_drawings

VIEWS = ViewConfig(flip="naming", crops=2, min_crop_area=0.3)
NEVER = {"limit_bytes": 0}  # never in memory


class Numbers:
    """Captions of rows by their number in the order of all different ones."""

    def __init__(self, captions):
        self.row = {caption: i for i, caption in enumerate(dict.fromkeys(c for of_one in captions for c in of_one))}

    def read(self, rows):
        return {"number": torch.from_numpy(rows)}


@pytest.fixture
def rows(toy_parts):
    return open_images(DataConfig(path=str(toy_parts / "images")))


def pixel_set(rows, views=VIEWS, limit_bytes=pixels.IN_MEMORY_BYTES, **options):
    captions = [of_one for of_one, _ in rows.texts()]
    with mock.patch.object(pixels, "IN_MEMORY_BYTES", limit_bytes):
        return PixelSet(rows, CaptionsOfRows(captions, Numbers(captions)), SIDE_PX, "crop", views, **options)


def test_memory_disk_and_threads_read_the_same(rows):
    generator = torch.Generator().manual_seed(0)
    number, uniform = torch.randint(12, (40,), generator=generator), torch.rand(40, 2, generator=generator)
    sets = [
        pixel_set(rows),
        pixel_set(rows, **NEVER),
        pixel_set(rows, num_threads=2),
        pixel_set(rows, num_threads=2, **NEVER),
    ]
    assert [each.decoded is None for each in sets] == [False, True, False, True]
    first, *others = (each.read(number, uniform) for each in sets)
    assert first["x"].dtype == torch.uint8
    for other in others:
        assert first.keys() == other.keys() == {"x", "number", "caption_id"}
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_row_does_not_depend_on_its_batch(rows):
    images, uniform = pixel_set(rows), torch.rand(12, 2, generator=torch.Generator().manual_seed(1))
    whole = images.read(torch.arange(12), uniform)
    alone = images.read(torch.tensor([7]), uniform[7:8])
    assert all(torch.equal(alone[name][0], whole[name][7]) for name in whole)


@pytest.mark.parametrize("options", [{}, NEVER])
def test_the_uniform_number_chooses_view_and_mirror_image(rows, options):
    """Six equal stretches: three views mirrored, then the same three as they are."""
    images = pixel_set(rows, **options)
    views, _ = Squares(rows, SIDE_PX, "crop", VIEWS)[5]
    assert torch.equal(views[0], to_tensor(decode_image(rows[5].source)))
    for place in range(6):
        uniform = torch.tensor([[(place + 0.5) / 6, 0.0]])
        expected = views[place % 3]
        assert torch.equal(
            images.read(torch.tensor([5]), uniform)["x"][0], expected.flip(-1) if place < 3 else expected
        )


def test_no_augmentation_is_the_whole_image(rows):
    x = pixel_set(rows).read(torch.arange(12), torch.tensor([[0.5, 0.0]]).expand(12, 2))["x"]
    assert torch.equal(x, torch.stack([to_tensor(decode_image(row.source)) for row in rows]))
    _, is_flipped = draw_views(torch.rand(50), 3, "none")
    assert not is_flipped.any()


def test_one_view_equals_that_of_all_views(rows):
    squares = Squares(rows, SIDE_PX, "crop", VIEWS)
    for number in range(3):
        assert torch.equal(squares.view(4, number), squares[4][0][number])


@pytest.mark.parametrize("options", [{}, NEVER, {"num_threads": 2} | NEVER])
def test_an_image_that_cannot_be_read_is_named_with_a_remedy(tmp_path, options):
    rows = open_images(DataConfig(path=str(write_drawings(tmp_path))))
    (tmp_path / "train" / "3.png").write_bytes(b"no image")
    with pytest.raises(
        ImageFileError, match=r"3\.png.*Expected.*set `data.check_images: true` and `data.on_bad: skip`"
    ):
        pixel_set(rows, **options).read(torch.tensor([2, 3]), torch.full((2, 2), 0.5))


def test_progress_counts_what_is_decoded(rows):
    counts = []
    pixel_set(rows, progress=lambda *count: counts.append(count))
    assert counts == [("decoding images", 12, 12)]
    pixel_set(rows, progress=lambda *count: counts.append(count), **NEVER)
    assert len(counts) == 1
