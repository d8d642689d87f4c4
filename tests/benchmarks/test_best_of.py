"""benchmarks/best_of.py: three choices from the same images, differences by hand, and what cannot be judged."""

from argparse import Namespace

import pytest
import torch

from palindiff.data.images import decode_image, to_tensor
from palindiff.experiments.emoji_subsets import concept_images, evenly
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.generation import generate_images
from toys.by_path import load_by_path
from toys.emoji import write_emoji_set
from toys.models import toy_pipeline

best_of = load_by_path("benchmarks/best_of.py")


class Judge:
    """Embeds images by their pixels and the captions of a set by the pixels of their images: it knows all of them."""

    def __init__(self, rows):
        self.pixels = {row.captions[0]: self.flat(row.source) for row in rows}

    @staticmethod
    def flat(image):
        centred = to_tensor(decode_image(image).resize((16, 16))).float().flatten() - 128
        return torch.nn.functional.normalize(centred, dim=0)

    def encode_image(self, images):
        return torch.stack([self.flat(image) for image in images])

    def encode_text(self, captions):
        return torch.stack([self.pixels[caption] for caption in captions])

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_emoji_set(tmp_path_factory.mktemp("best_of") / "set")


@pytest.fixture(scope="module")
def pipeline(encoder_folder):
    return toy_pipeline(encoder_folder)


@pytest.fixture
def judge(data):
    return Judge([row for style in ("flat", "outlined") for row in concept_images(data, "test", style)])


def found(ranks, scores, more, real=(0, 50)):
    return best_of.Candidates(torch.tensor(ranks), torch.tensor(scores), torch.tensor(more), torch.tensor(real), 100)


def test_the_rows_of_a_style_are_those_by_hand():
    candidates = found(
        [[0, 50, 50, 50], [50, 9, 50, 50], [50, 50, 10, 50], [0, 1, 2, 3]],
        [[0.1, 0.2, 0.9, 0.3], [0.1, 0.9, 0.2, 0.3], [0.9, 0.1, 0.2, 0.3], [0.4, 0.1, 0.2, 0.3]],
        [0, 50, 50, 9],
    )
    rows = {row["choice"]: row for row in best_of.rows_of("flat", [candidates])}
    recalls = {
        "random": (0.25 + 0.25 + 0 + 1) / 4,
        "own": 2 / 4,
        "judge": 3 / 4,
        "more_steps": 2 / 4,
        "real_images": 1 / 2,
    }
    assert {choice: row["recall"] for choice, row in rows.items()} == pytest.approx(recalls)
    assert [row["chance"] for row in rows.values()] == pytest.approx([0.1] * 5)
    assert [rows[choice]["n"] for choice in ("random", "own", "real_images")] == [4, 4, 2]
    assert rows["own"]["difference"] == pytest.approx(2 / 4 - 1.5 / 4)
    # paired differences of `judge`: 0.75, 0.75, 0, 0, so no resample is below 0 or above 0.75
    assert 0 <= rows["judge"]["ci_low"] <= rows["judge"]["difference"] <= rows["judge"]["ci_high"] <= 0.75
    assert rows["random"]["difference"] is rows["random"]["ci_low"] is None


def test_no_choice_is_better_than_the_judge_s_own():
    ranks, scores = torch.randint(0, 40, (50, 4)), torch.rand(50, 4)
    hits = best_of.hits_of(best_of.Candidates(ranks, scores, ranks[:, 0], ranks[:, 0], 100))
    assert (hits["judge"] >= hits["own"]).all()
    assert (hits["judge"] >= hits["random"]).all()


def test_a_contrastive_model_ranks_captions_by_their_cosine_with_the_image(encoder_folder, data):
    judge = ClipModel.from_pretrained(encoder_folder / "clip")
    rows = concept_images(data, "test", "flat")[:5]
    images, captions = [decode_image(row.source) for row in rows], ["a", "b", "a red a", "c", "d"]
    cosines = judge.encode_image(images) @ judge.encode_text(captions).T
    expected = [sum(bool(cosines[i, j] >= cosines[i, i]) for j in range(5) if j != i) for i in range(5)]
    assert best_of.judge_ranks(judge, images, captions, captions).tolist() == expected


def test_styles_together_are_all_captions():
    one, two = found([[0] * 4], [[0.0] * 4], [0]), found([[50] * 4] * 3, [[0.0] * 4] * 3, [50] * 3)
    rows = {row["choice"]: row for row in best_of.rows_of("all", [one, two])}
    assert (rows["own"]["recall"], rows["own"]["n"]) == (pytest.approx(1 / 4), 4)
    assert rows["own"]["ci_low"] == rows["own"]["ci_high"] == 0


def test_candidates_are_the_pipeline_s_images_of_fixed_seeds(pipeline, judge, data):
    candidates = best_of.measure_style(pipeline, judge, data, "flat", 3, 2)
    captions = [row.captions[0] for row in concept_images(data, "test", "flat")]
    chosen = evenly(captions, 3)
    assert candidates.num_captions == 12
    assert candidates.ranks_of_real.tolist() == [0] * 12  # this judge knows the real images
    for number, caption in enumerate(chosen):
        seeds = range(4 * number, 4 * number + 4)
        images = generate_images(pipeline, [caption] * 4, seeds, 4.0, 2)
        ranks = best_of.judge_ranks(judge, images, [caption] * 4, captions)
        assert candidates.ranks[number].tolist() == ranks.tolist()
        (best,) = pipeline.best_of([caption], 4, [4 * number], guidance_scale=4.0, num_inference_steps=2)
        assert int(candidates.own_scores[number].argmax()) == best.seed - 4 * number
        (longer,) = generate_images(pipeline, [caption], seeds[:1], 4.0, 8)
        assert candidates.ranks_of_more_steps[number] == best_of.judge_ranks(judge, [longer], [caption], captions)[0]


def test_all_styles_are_measured_from_the_options(pipeline, judge, data, monkeypatch, tmp_path):
    monkeypatch.setattr(best_of, "open_model", lambda name: pipeline)
    monkeypatch.setattr(best_of.ClipModel, "from_pretrained", lambda folder: judge)
    args = Namespace(model="toy", judge=tmp_path, data=data, styles=["flat", "outlined"], num_captions=2, steps=1)
    rows = best_of.measure(args)
    choices = ["random", "own", "judge", "more_steps", "real_images"]
    assert [(row["style"], row["choice"]) for row in rows] == [
        (style, choice) for style in ("flat", "outlined", "all") for choice in choices
    ]
    args.styles = ["noto"]
    with pytest.raises(ValueError, match="no image of the style `noto`"):
        best_of.measure(args)


def test_a_judge_that_finds_nothing_is_refused(pipeline, judge, data, monkeypatch):
    monkeypatch.setattr(judge, "encode_text", lambda captions: torch.ones(len(captions), 768))  # all captions equal
    with pytest.raises(ValueError, match=r"finds 0.0% of the real images of the style `flat`.*Use a judge that was"):
        best_of.measure_style(pipeline, judge, data, "flat", 2, 1)
    monkeypatch.setattr(judge, "encode_text", lambda captions: torch.full((len(captions), 768), torch.nan))
    with pytest.raises(ValueError, match="are not finite"):
        best_of.measure_style(pipeline, judge, data, "flat", 2, 1)
