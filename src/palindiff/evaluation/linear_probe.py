"""Linear probe: how well a linear classifier on frozen embeddings names images, trained on labelled ones.

Here: the classifier and the choice of its regularisation. Not here: embeddings (`inference/embeddings.py`).
"""

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from palindiff.seeds import seeded_generator

STRENGTHS = tuple(10.0**power for power in range(-2, 5))  # C of scikit-learn: the inverse of the L2 penalty
HELD_OUT = 5  # one in so many training images chooses the strength
MAX_ITERATIONS = 1000


def linear_probe(
    train: Tensor, train_classes: Tensor, test: Tensor, test_classes: Tensor, seed: int = 0
) -> tuple[Tensor, float]:
    """Train multinomial logistic regression on embeddings, and say which test images it names right.

    The strength of the L2 penalty is chosen on a fifth of each class's training images, then all of them are used.
    Among strengths that are equally good, the strongest penalty is taken.

    Source: CLIP (Radford et al., 2021), section 3.2: logistic regression by L-BFGS, its penalty chosen on a
            validation split.
    Shapes: train (n, d), train_classes (n,) int64; test (m, d), test_classes (m,) int64 -> hits (m,) bool, and C.
    Raises: ValueError if an embedding is not finite, a class of the test images has no training image, or no class
            has two of them; ModuleNotFoundError without scikit-learn.
    """
    check_installed()
    _check(train, train_classes, test, test_classes)
    chooses = _held_out(train_classes, seed)
    part = train[~chooses], train_classes[~chooses], train[chooses], train_classes[chooses]
    shares = [float(_hits(*part, strength).double().mean()) for strength in STRENGTHS]
    best = STRENGTHS[int(np.argmax(shares))]
    return _hits(train, train_classes, test, test_classes, best), best


def check_installed() -> None:
    """Check that there is what trains the classifier.

    Raises: ModuleNotFoundError.
    """
    if find_spec("sklearn") is None:
        raise ModuleNotFoundError(
            "The linear probe needs scikit-learn, which is not installed. Run `pip install -e '.[evaluation]'`."
        )


def _held_out(classes: Tensor, seed: int) -> Tensor:
    """Draw one in HELD_OUT images of each class, one at least, but never its only image. Shapes: -> (n,) bool."""
    order = torch.randperm(len(classes), generator=seeded_generator(seed, "linear probe"))
    chooses = torch.zeros(len(classes), dtype=torch.bool)
    for number in classes.unique():
        members = order[classes[order] == number]
        if len(members) > 1:
            chooses[members[: max(1, len(members) // HELD_OUT)]] = True
    return chooses


def _hits(train: Tensor, train_classes: Tensor, test: Tensor, test_classes: Tensor, strength: float) -> Tensor:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    model.fit(train.double().numpy(), train_classes.numpy())
    return torch.from_numpy(model.predict(test.double().numpy())) == test_classes


def _check(train: Tensor, train_classes: Tensor, test: Tensor, test_classes: Tensor) -> None:
    for name, embeddings in (("training", train), ("test", test)):
        if not embeddings.isfinite().all():
            raise ValueError(
                f"The embeddings of the {name} images are not finite. Expected numbers. Use float32 if the model "
                "overflows in half precision."
            )
    if missing := sorted(set(test_classes.tolist()) - set(train_classes.tolist())):
        raise ValueError(
            f"{len(missing)} classes of the test images have no training image, the first is number {missing[0]}. "
            "Expected every class in both. Use a training split that has them."
        )
    if len(train_classes.unique()) == len(train_classes):
        raise ValueError(
            f"The {len(train_classes)} training images have one of each class. Expected a class with two or more, to "
            "choose the penalty by. Use a training split with more images."
        )
    if len(set(train_classes.tolist())) < 2:
        raise ValueError("The training images have one class. Expected two or more. Use a set with more classes.")
