"""alignment.py against the plainest statement of eq. 7 and 8, its invariances, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from palindiff.objectives.alignment import alignment_loss, global_batch, same_caption


def make_queries(b=6, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    e_0_hat, e_0 = (F.normalize(torch.randn(b, d, generator=generator), dim=-1) for _ in range(2))
    return e_0_hat, e_0, torch.tensor(5.0)


def loss_by_hand(e_0_hat, e_0, logit_scale):
    """Eq. 7 and 8 term by term: one caption is right for each image, and one image for each caption."""
    b, total = len(e_0), 0.0
    for i in range(b):
        s_row = [float(logit_scale * e_0_hat[i] @ e_0[j]) for j in range(b)]
        s_column = [float(logit_scale * e_0_hat[j] @ e_0[i]) for j in range(b)]
        for s in (s_row, s_column):
            total -= s[i] - math.log(sum(math.exp(s_j) for s_j in s))
    return total / (2 * b)


def test_loss_equals_eq_8_by_hand():
    queries = make_queries()
    loss = alignment_loss(*queries, positives=torch.eye(6, dtype=torch.bool))
    assert loss.item() == pytest.approx(loss_by_hand(*queries), abs=1e-6)  # float32 sums of 6 terms


def test_loss_is_log_b_when_the_query_tells_nothing():
    e_0 = make_queries()[1]
    same_for_all = e_0[:1].expand_as(e_0)
    loss = alignment_loss(same_for_all, same_for_all, torch.tensor(5.0), torch.eye(6, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(6), abs=1e-6)


def test_loss_ignores_the_order_of_the_batch():
    e_0_hat, e_0, scale = make_queries()
    positives, order = same_caption(torch.tensor([1, 2, 3, 1, 2, 4])), torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = alignment_loss(e_0_hat[order], e_0[order], scale, positives[order][:, order])
    assert shuffled.item() == pytest.approx(alignment_loss(e_0_hat, e_0, scale, positives).item(), abs=1e-6)


def test_equal_captions_are_no_negatives():
    """Each of two equal captions predicts the other's embedding, which is right: as a negative it would cost twice."""
    e_0, scale = torch.eye(4), torch.tensor(50.0)
    shared = alignment_loss(e_0[[1, 0, 2, 3]], e_0, scale, same_caption(torch.tensor([7, 7, 8, 9])))
    assert shared.item() == pytest.approx(12.5, abs=1e-5)  # half the rows pay half of 50
    apart = alignment_loss(e_0[[1, 0, 2, 3]], e_0, scale, torch.eye(4, dtype=torch.bool))
    assert apart.item() == pytest.approx(25, abs=1e-5)


def test_equal_captions_of_one_embedding_cost_as_much_as_different_ones():
    """Two images of one caption, predicted perfectly."""
    e_0 = F.normalize(torch.eye(4)[[0, 0, 1, 2]], dim=-1)
    shared = alignment_loss(e_0, e_0, torch.tensor(50.0), same_caption(torch.tensor([7, 7, 8, 9])))
    assert shared.item() == pytest.approx(math.log(2) / 2, abs=1e-6)  # the best there is: half the rows split in two


def test_global_batch_of_one_process_is_the_batch_itself():
    e_0 = make_queries()[1]
    assert global_batch(e_0) is e_0


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda e_0_hat, e_0: (e_0_hat[:3], e_0), r"`e_0_hat` has shape \(3, 8\)"),
        (lambda e_0_hat, e_0: (e_0_hat[:3], e_0[:3]), r"`positives` \(6, 6\).*Expected .* \(3, 3\)"),
    ],
)
def test_loss_refuses_wrong_queries(broken, sentence):
    e_0_hat, e_0, scale = make_queries()
    with pytest.raises(ValueError, match=sentence):
        alignment_loss(*broken(e_0_hat, e_0), scale, torch.eye(6, dtype=torch.bool))
