"""report.py: the page holds what the result files hold, and nothing where there is none."""

import json
import re
from xml.etree import ElementTree

import pytest

from palindiff.experiments.reproduction import report, report_controls
from palindiff.experiments.reproduction.plan import load_plan
from toys.by_path import ROOT


@pytest.fixture
def results(tmp_path):
    """Write a result file of a target at the scale emoji."""

    def write(target, rows, unfinished=()):
        tree = json.loads((ROOT / "results" / "ranks.json").read_text())
        tree |= {"rows": rows, "settings": {"unfinished": list(unfinished)}}
        (tmp_path / f"{target}-emoji.json").write_text(json.dumps(tree))
        return tmp_path

    return write


def mean(label, column, value, **row):
    return {"row": label, "seed": None, "column": column, "value": value, "ci_low": None, "ci_high": None,
            "lowest": value - 0.01, "highest": value + 0.01, "num_seeds": 3, "chance": None, **row}  # fmt: skip


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(f"| {start}")]


def test_a_table_shows_the_paper_s_numbers_and_ours_with_intervals(results):
    rows = [
        mean("both", "recall@10", 0.321, ci_low=0.3, ci_high=0.34, chance=0.0055),
        mean("both", "KD-EffLite0", 0.0123),
        mean("discriminate only", "recall@10", 0.25),
        mean("generate only", "KD-EffLite0", 0.5, lowest=0.5, highest=0.5, num_seeds=1),
        {**mean("both", "recall@10", 0.99), "seed": 0},  # of one seed: not shown
    ]
    text = report.page(results("table4", rows, ["both-seed2"]))
    (both,) = lines(text, "both")
    assert "12.96" in both
    assert "32.1 (30.0 to 34.0)" in both
    assert "0.0123 (0.0023 to 0.0223)" in both
    assert both.endswith("| 3 |")
    (one,) = lines(text, "discriminate only |")
    assert "25.0 (24.0 to 26.0)" in one
    (of_one_seed,) = lines(text, "generate only |")
    assert "| 0.5000† |" in of_one_seed
    assert "Not measured for this table, as these runs were not finished or not at hand: both-seed2." in text
    assert "In the paper: Random weights in place of Stable Diffusion's." in text
    assert "Chance: recall@10 0.55." in text
    assert "99.0" not in text


def test_generated_images_are_counted_by_what_was_measured(results):
    measured = {"row": "both", "seed": 0, "data": "unseen 1024", "value": 0.1}
    rows = [
        mean("both", "KD-EffLite0", 0.1), {**measured, "metric": "kd_efflite0", "n": 1024},
        mean("both", "recall@10 of generated", 0.1),
        {**measured, "metric": "caption_to_generated_recall_10", "n": 1000},
    ]  # fmt: skip
    (header,) = (line for line in report.page(results("table4", rows)).splitlines() if "KD-EffLite0, " in line)
    assert "| KD-EffLite0, 1,024 images | recall@10 of generated, 1,000 images |" in header


def test_controls_of_the_other_scales_have_the_metrics_of_their_data():
    for scale, name, expected in [
        ("photos", "flickr8k", ["recall@10", "recall@1"]), ("photos", "clothing", ["accuracy"]),
        ("paper", load_plan("paper").primary, ["recall@1"]),
    ]:  # fmt: skip
        assert list(report_controls._metrics(load_plan(scale), name)) == expected


JUDGED = {
    "claim": "P1", "text": "alignment gains from generation", "budget": "steps", "a": "both", "b": "alignment",
    "metric": "recall", "margin": None, "difference": 1.234, "judged_low": 0.5, "judged_high": 2.0, "low_by_8": 0.5,
    "level": 0.99375, "num_seeds": 3, "n": 1609, "verdict": "holds here", "commits": "1234567 89abcde",
    "a_train_tflop": 3.0, "b_train_tflop": 2.0,
}  # fmt: skip


def test_a_claim_that_was_not_judged_is_listed_as_not_run(results):
    text = report.page(results("claims", [JUDGED]))
    first, second = lines(text, "P1")
    assert first.endswith("| equal steps | 1.23 points | 0.50 to 2.00 | 99.4 % | 3 | 1,609 | 1.50 | holds here |")
    assert "Commits that trained the runs: `1234567`, `89abcde`." in text
    assert second.endswith("| not run |")


@pytest.mark.parametrize(
    "change",
    [{"text": "another claim"}, {"b": "alignment-long"}, {"metric": "kd"}, {"margin": 1.0}, {"low_by_8": None}],
)
def test_a_verdict_on_what_the_plan_no_longer_says_is_not_shown(results, change):
    """`low_by_8`: there are eight claims, for as many of which an interval must be known."""
    row = {key: value for key, value in (JUDGED | change).items() if key != "low_by_8" or value is not None}
    first, _ = lines(report.page(results("claims", [row])), "P1")
    assert "holds here" not in first
    assert first.endswith("| to be judged again: the claim or its family was changed |")


def test_without_results_every_target_of_a_scale_is_named_as_not_run(tmp_path):
    text = " ".join(report.page(tmp_path).split())
    of_scales = dict(zip(["", "emoji", "paper", "photos"], text.split("## Scale "), strict=True))
    assert "Not run: claims P1 to P8, claims U1 to U4, claims E1 to E12, controls, Table 1," in of_scales["emoji"]
    for scale in ("emoji", "paper", "photos"):
        listed = of_scales[scale].partition("Not run: ")[2].partition(".")[0].split(", ")
        plan = load_plan(scale)
        assert len(listed) == len(plan.targets)
    assert "###" not in text


def of_seeds(label, values, **row):
    """Recall@10 of each seed, both ways."""
    return [
        {"row": label, "seed": seed, "data": "unseen", "metric": f"{way}_retrieval_recall@10", "value": value, **row}
        for seed, value in enumerate(values) for way in ("text", "image")
    ]  # fmt: skip


def test_controls_are_shown_beside_the_model_and_the_best_of_all(results):
    rows = [
        {"variant": variant, "metric": metric, "value": value, "data": "unseen", "n": 500}
        for variant, metric, value in [
            ("both", "nearest_thumbnail_text_retrieval_recall@10", 0.2), ("both", "nearest_thumbnail_acc1", 0.0),
            ("both", "nearest_thumbnail_image_retrieval_recall@10", 0.3), ("both", "shuffled_images_acc5", 0.9),
            ("both", "nearest_thumbnail_text_retrieval_recall@1", 0.1), ("unit", "chain_cosine_noise_t50", 0.99),
        ]
    ]  # fmt: skip
    results("controls", rows)
    results("table2", [*of_seeds("DiffDis", [0.1, 0.2]), *of_seeds("contrastive, equal FLOP", [0.3, 0.342])])
    results("table7", of_seeds("both, w = 3", [0.9] * 5))  # with guidance
    folder = results("diffusing", of_seeds("text diffusion, length √d, γ = 0.5", [0.111] * 3))
    text = " ".join(report.page(folder).split("\n"))
    section = text.partition("### Controls")[2].partition("###")[0]
    assert "| nearest training image, by thumbnail: recall@10 | 25.0 |  |" in section
    assert "| this model: recall@10 | 11.1 |  |" in section  # of the most seeds
    assert "recall@1 |" not in section  # of one way alone
    assert "| nearest training image, by thumbnail: accuracy | 0.0 |  |" in section
    assert "from the tables Diffusing." in section
    assert "of all models in the tables below: recall@10 32.1 (contrastive, equal FLOP, Table 2)." in section
    assert "on 500 images" in section
    assert "| chain_cosine_noise_t50 |  | 0.990 |" in section
    assert "90.0" not in section


def test_the_page_in_the_repository_is_what_the_results_say():
    page = (ROOT / report.PAGE).read_text(encoding="utf-8")
    assert page == report.page(ROOT / "results"), "run python -m palindiff.experiments.reproduction.report"


def test_seeds_of_naming_have_their_mean_and_the_variance_within_a_model(results):
    rows = [
        {"row": str(noise), "variant": "frozen-larger-rate", "seed": seed, "data": "unseen", "value": value,
         "metric": f"{way}_retrieval_recall@10"}
        for noise in range(10) for seed in (0, 1) for way, value in
        (("text", 0.2 + 0.3 * seed + 0.01 * (noise % 2)), ("image", 0.2 + 0.3 * seed + 0.01 * (noise % 2)))
    ]  # fmt: skip
    rows += [mean(str(noise), "recall@10", 0.3) for noise in range(10)]
    text = " ".join(report.page(results("table9", rows)).split())
    assert "Mean, and variance of the share over the rows within a model: recall@10 35.50 (2.78e-05)." in text


def test_the_cost_of_the_diffusion_classifier_is_shown_as_run_and_as_published(results):
    row = {"row": "Diffusion Classifier, 250 images", "seed": 0, "data": "unseen"}
    cost = {"metric": "published_tflop_per_image", "value": 1234.4}
    text = report.page(
        results("table1", [row | {"metric": "acc1", "value": 0.5, "tflop_per_image": 0.1234}, row | cost])
    )
    assert (
        "TFLOP for an image: Diffusion Classifier, 250 images on unseen: 0.123, with its authors' stages 1,234."
        in " ".join(text.split())
    )


def test_a_setting_is_plotted_where_a_curve_has_two_points(results):
    rows = [mean(label, "recall@10", 0.1 * number) for number, label in enumerate(["1", "4", "50"], start=1)]
    folder = results("table8", rows)
    svg = report.figures(folder)["table8-emoji.svg"]
    drawing = ElementTree.fromstring(svg)
    texts = [each.text for each in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "num inference steps" in texts
    assert "γ = 0.01: 30" in texts  # its last value, in percent
    assert "![Denoising steps in retrieval and zero-shot classification](table8-emoji.svg)" in report.page(folder)
    assert report.figures(results("table8", rows[:1])) == {}


def test_controls_of_several_sets_are_tables_of_their_own(tmp_path, results):
    rows = [
        {"variant": "both", "metric": "largest_class_acc1", "value": value, "data": data}
        for data, value in (("flickr8k", 0.25), ("clothing", 0.5))
    ]
    (results("controls", rows) / "controls-emoji.json").rename(tmp_path / "controls-photos.json")
    text = report.page(tmp_path)
    assert lines(text, "control on") == ["| control on clothing | both |"]  # flickr8k has no classes
    assert lines(text, "the most frequent class") == ["| the most frequent class: accuracy | 50.0 |"]


@pytest.mark.parametrize(("recall", "is_shown"), [(0.0501, True), (0.0499, False)])
def test_what_is_kept_is_shown_if_there_was_something_to_lose(tmp_path, results, recall, is_shown):
    rows = [
        mean("CLIP before", "recall@10 kept on Flickr8k", recall, chance=0.01),
        mean("contrastive", "recall@10 kept on Flickr8k", 0.09, chance=0.01),
        mean("CLIP before", "effective rank", 12.0),
    ]
    (results("unidiff", rows) / "unidiff-emoji.json").rename(tmp_path / "unidiff-clothing.json")
    text = report.page(tmp_path)
    assert ("| recall@10 kept on Flickr8k |" in text) == is_shown
    assert "| effective rank |" in text


def test_the_use_of_the_noisy_query_is_plotted_along_its_steps(results):
    rows = [
        {"variant": variant, "metric": f"chain_cosine_{name}_t{t}", "value": value}
        for variant, value in (("both", 0.5), ("unit", 1.0)) for name in ("noise", "other") for t in (50, 950)
    ]  # fmt: skip
    svg = report.figures(results("controls", rows))["controls-emoji.svg"]
    assert "both: 0.5" in svg
    assert "unit: 1" in svg


def test_the_figures_in_the_repository_are_those_that_the_page_shows():
    shown = set(re.findall(r"\((\w+-\w+\.svg)\)", (ROOT / report.PAGE).read_text(encoding="utf-8")))
    assert shown == {path.name for path in (ROOT / "docs").glob("*-*.svg")} == set(report.figures(ROOT / "results"))
