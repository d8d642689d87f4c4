"""controls.py: neighbours by hand, controls whose result is known beforehand, on a real pipeline and real metrics."""

import math

import pytest
import torch
import torch.nn.functional as F

from palindiff.evaluation import controls
from palindiff.evaluation.controls import (
    NO_IMAGE,
    concept_similarities,
    image_features,
    nearest_training_images,
    neighbour_hits,
    shuffled_images,
    thumbnail_features,
    zeroed_images,
)
from palindiff.evaluation.naming_tasks import classification
from palindiff.inference.embedder import PipelineEmbedder
from toys.models import toy_pipeline


def unit(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pixels(n, size_px=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def accuracy(e_0_hat, e, truth):
    return classification(e_0_hat, e, truth)[0].value


def test_shuffled_images_name_by_chance_what_the_images_name_right():
    e, truth = unit(10, 64), torch.arange(1000) % 10
    assert accuracy(e[truth], e, truth) == 1
    shuffled = shuffled_images(e[truth])
    assert accuracy(shuffled, e, truth) == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 1000))
    assert torch.equal(shuffled, shuffled_images(e[truth]))
    assert not torch.equal(shuffled, shuffled_images(e[truth], seed=1))


def test_zeroed_images_have_one_answer(encoder_folder):
    pipeline, options = toy_pipeline(encoder_folder), {"num_inference_steps": 2, "guidance_scale": 2.0, "seed": 1}
    e_0_hat = zeroed_images(PipelineEmbedder(pipeline), 6, options)
    assert e_0_hat.shape == (6, pipeline.query_stream.config.d_e)
    grey = pipeline.encode_pixels(torch.zeros(6, 3, 8, 8))
    torch.testing.assert_close(e_0_hat, pipeline.encode_image(grey, **options), atol=1e-5, rtol=0)  # batch of 1, of 6
    assert accuracy(e_0_hat, unit(3, e_0_hat.shape[1]), torch.tensor([0, 0, 1, 1, 2, 2])) == pytest.approx(1 / 3)


def test_the_nearest_training_image_is_that_of_a_loop(monkeypatch):
    test, train = 5 + unit(20, 6), 5 + unit(31, 6, seed=1)
    mean = train.mean(dim=0)
    expected = [
        max(range(31), key=lambda j, x=x: float(F.cosine_similarity(x - mean, train[j] - mean, dim=0))) for x in test
    ]
    assert nearest_training_images(test, train).tolist() == expected
    monkeypatch.setattr(controls, "SCORES_AT_ONCE", 100)  # 3 test images at once
    assert nearest_training_images(test, train).tolist() == expected


def test_a_concept_is_as_similar_as_its_most_similar_image(monkeypatch):
    test, train = unit(5, 4), unit(7, 4, seed=1) + 3
    concepts = torch.tensor([2, 0, 0, 2, 3, 3, 3])  # concept 1 has no image
    mean = train.mean(dim=0)
    cosines = F.normalize(test - mean, dim=1) @ F.normalize(train - mean, dim=1).T
    found = concept_similarities(test, train, concepts, 4)
    for i in range(5):
        for concept in (0, 2, 3):
            expected = max(float(cosines[i, j]) for j in range(7) if concepts[j] == concept)
            assert float(found[i, concept]) == pytest.approx(expected, abs=1e-5)
    assert (found[:, 1] == NO_IMAGE).all()
    assert (found[:, 1] < found[:, [0, 2, 3]].min(dim=1).values).all()  # it ranks last
    monkeypatch.setattr(controls, "SCORES_AT_ONCE", 7)
    torch.testing.assert_close(concept_similarities(test, train, concepts, 4), found)  # an image at a time
    assert torch.equal(concepts[nearest_training_images(test, train)], found.argmax(dim=1))


@pytest.mark.parametrize("concepts", [[0, 1], [0, 1, 4], [-1, 0, 1]])
def test_concepts_that_do_not_fit_are_refused(concepts):
    with pytest.raises(ValueError, match=r"`concepts` has shape \(\d,\) with 3 training images and 4 concepts"):
        concept_similarities(unit(2, 4), unit(3, 4), torch.tensor(concepts), 4)


def test_thumbnails_find_an_image_through_noise():
    train = pixels(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    noisy = (0.7 * train[order].float() + 0.3 * pixels(30, seed=1).float()).to(torch.uint8)
    found = [image_features(images.split(7), thumbnail_features) for images in (noisy, train)]
    assert found[0].shape == (30, 3 * 16 * 16)
    nearest = nearest_training_images(*found)
    assert torch.equal(nearest, order)
    classes = torch.arange(30) // 3
    assert neighbour_hits(nearest, classes, classes[order]).all()
    assert neighbour_hits(nearest, classes, classes[order] + 1).sum() == 0


def test_the_caption_of_the_nearest_image_is_a_query():
    """Two training images a class, each a little off its own: their captions' embeddings name every test image."""
    e, classes = unit(5, 16), torch.arange(10) % 5
    train = unit(5, 32, seed=1)[classes] + 0.01 * unit(10, 32, seed=2)
    test, truth = unit(5, 32, seed=1)[classes[:7]] + 0.01 * unit(7, 32, seed=3), classes[:7]
    assert accuracy(e[classes][nearest_training_images(test, train)], e, truth) == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nearest_training_images(unit(3, 4), unit(3, 5)), r"shapes \(3, 4\) and \(3, 5\)"),
        (lambda: nearest_training_images(unit(3, 4), unit(1, 4)), "m from 2 on"),
        (lambda: nearest_training_images(unit(0, 4), unit(3, 4)), r"shapes \(0, 4\)"),
        (lambda: nearest_training_images(unit(3, 4) * math.nan, unit(3, 4)), "Features are not finite"),
        (lambda: neighbour_hits(torch.tensor([0, 3]), torch.arange(3), torch.arange(2)), "with 3 training"),
        (lambda: neighbour_hits(torch.tensor([0]), torch.arange(3), torch.arange(2)), r"and \(2,\) test classes"),
        (lambda: image_features([], thumbnail_features), "Features have no images"),
        (lambda: image_features([pixels(1)], lambda x: x.float() * math.nan), "Features are not finite"),
    ],
)
def test_what_has_no_neighbour_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
