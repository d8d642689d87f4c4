"""order.py: every row once an epoch, and randomness that depends on seed, purpose and number alone."""

import pytest
import torch

from palindiff.seeds import seeded_generator
from palindiff.training.loop.order import rows_of_step


def rows_of_steps(steps, batch_size, num_rows, seed=0):
    return torch.cat([rows_of_step(step, batch_size, num_rows, seed) for step in steps])


@pytest.mark.parametrize(("batch_size", "num_rows"), [(4, 10), (5, 10), (7, 3), (1, 4)])
def test_every_row_is_read_once_an_epoch(batch_size, num_rows):
    """Also when a batch holds the end of one epoch and the beginning of the next, or several epochs."""
    rows = rows_of_steps(range(num_rows * 3), batch_size, num_rows)
    for epoch in rows.split(num_rows):
        assert sorted(epoch.tolist()) == list(range(num_rows))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = rows_of_steps(range(2), 50, 50).split(50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))
    assert not torch.equal(first, rows_of_step(0, 50, 50, seed=1))


def test_a_step_reads_the_same_rows_whatever_was_read_before():
    alone = rows_of_step(7, 4, 10, seed=3)
    rows_of_steps(range(20), 4, 10, seed=3)
    assert torch.equal(rows_of_step(7, 4, 10, seed=3), alone)


def test_a_read_batch_may_be_changed_without_changing_the_next():
    batch = rows_of_step(0, 10, 10, seed=0)
    batch.fill_(-1)
    assert sorted(rows_of_step(0, 10, 10, seed=0).tolist()) == list(range(10))


def test_random_numbers_depend_on_seed_purpose_and_index():
    drawn = [
        torch.rand(3, generator=seeded_generator(seed, purpose, index)).tolist()
        for seed, purpose, index in [
            (0, "draws", 0),
            (0, "draws", 0),
            (1, "draws", 0),
            (0, "epoch", 0),
            (0, "draws", 1),
        ]
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(numbers) for numbers in drawn}) == 4


def test_random_numbers_are_those_that_saved_runs_were_given():
    """A run that goes on under a later version must get the numbers it would have got: these are version 0.1.0's."""
    assert torch.randint(0, 1000, (4,), generator=seeded_generator(0, "draws", 5)).tolist() == [290, 341, 834, 987]
    assert rows_of_step(3, 4, 10, seed=0).tolist() == [1, 2, 6, 8]


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="training set is empty"):
        rows_of_step(0, 4, 0, seed=0)
