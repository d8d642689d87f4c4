"""linear_probe.py: classes that a line divides, a strength that is chosen on training images alone, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from palindiff.evaluation import linear_probe as module
from palindiff.evaluation.linear_probe import STRENGTHS, linear_probe


def clusters(n, spread, seed=0, d=6, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(num_classes, d, generator=torch.Generator().manual_seed(9)), dim=-1)
    classes = torch.arange(n) % num_classes
    noise = spread * torch.randn(n, d, generator=generator)
    return F.normalize(centres[classes] + noise, dim=-1), classes


def test_separable_classes_are_all_named_and_shuffled_ones_are_not():
    train, classes = clusters(60, 0.05)
    test, truth = clusters(30, 0.05, seed=1)
    hits, _ = linear_probe(train, classes, test, truth)
    assert hits.all()
    shuffled = classes[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(train, shuffled, test, truth)[0].float().mean() < 0.8


def test_the_strength_is_chosen_on_training_images_alone(monkeypatch):
    """Whatever the test images are, the same strength comes out; all training images are used in the end."""
    train, classes = clusters(60, 0.6)
    test, truth = clusters(30, 0.6, seed=1)
    fits = []
    fit = module._hits
    monkeypatch.setattr(module, "_hits", lambda *given: fits.append((len(given[0]), given[-1])) or fit(*given))
    _, strength = linear_probe(train, classes, test, truth)
    assert fits == [(48, each) for each in STRENGTHS] + [(60, strength)]
    assert linear_probe(train, classes, test, (truth + 1) % 3)[1] == strength


def test_it_is_scikit_learn_s_regression():
    from sklearn.linear_model import LogisticRegression

    train, classes = clusters(60, 0.6)
    test, truth = clusters(30, 0.6, seed=1)
    hits, strength = linear_probe(train, classes, test, truth)
    model = LogisticRegression(C=strength, max_iter=1000).fit(train.double().numpy(), classes.numpy())
    assert hits.double().mean() == pytest.approx(model.score(test.double().numpy(), truth.numpy()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "test": t["test"] * math.nan}, "test images are not finite"),
        (lambda t: {**t, "test_classes": t["test_classes"] + 1}, "no training image, the first is number 3"),
        (lambda t: {**t, "train_classes": 0 * t["train_classes"], "test_classes": 0 * t["test_classes"]}, "one class"),
    ],
)
def test_bad_input_is_refused(change, message):
    train, classes = clusters(12, 0.1)
    test, truth = clusters(6, 0.1, seed=1)
    given = {"train": train, "train_classes": classes, "test": test, "test_classes": truth}
    with pytest.raises(ValueError, match=message):
        linear_probe(**change(given))
