"""memmap.py: several maps read like one array, in any order of rows, without being joined."""

import numpy as np
import pytest

from palindiff.training.features.memmap import StackedArrays, map_arrays, write_arrays

WHOLE = np.random.default_rng(0).standard_normal((23, 3, 2, 4, 5)).astype(np.float16)


def stacked(*lengths):
    assert sum(lengths) == len(WHOLE)
    return StackedArrays(np.split(WHOLE, np.cumsum(lengths)[:-1]))


@pytest.mark.parametrize("lengths", [(23,), (10, 13), (8, 8, 7), (1,) * 23])
def test_rows_in_any_order_are_those_of_the_whole(lengths):
    found, random = stacked(*lengths), np.random.default_rng(1)
    assert (found.shape, found.dtype, len(found)) == (WHOLE.shape, WHOLE.dtype, 23)
    for size in (1, 5, 64):
        rows, view, flip = (random.integers(0, end, size) for end in (23, 3, 2))
        assert np.array_equal(found[rows, view, flip], WHOLE[rows, view, flip])
        assert np.array_equal(found[rows,], WHOLE[rows,])
    assert found[np.array([], dtype=np.int64), np.array([], dtype=np.int64)].shape == (0, 2, 4, 5)


@pytest.mark.parametrize("rows", [[23], [-1], [0, 24]])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(IndexError, match="Expected 0 to 22"):
        stacked(10, 13)[np.array(rows),]


def test_arrays_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="of 2 kinds"):
        StackedArrays([WHOLE, WHOLE[:, :1]])


def test_a_single_file_stays_a_map_of_numpy_and_several_are_not_loaded(tmp_path):
    for number, part in enumerate(np.split(WHOLE, [9])):
        write_arrays(
            tmp_path / str(number), len(part), [{"moments": part[:4]}, {"moments": part[4:]}], lambda done: None
        )
    files = [tmp_path / str(number) / "moments.npy" for number in range(2)]
    one, both = map_arrays(files[:1]), map_arrays(files)
    assert isinstance(one, np.memmap)
    assert all(isinstance(array, np.memmap) for array in both.arrays)
    assert np.array_equal(both[np.arange(23),], WHOLE)
