"""scripts/bundled_card.py: the bundled card, README.md and docs/results.md say what the result files hold."""

import json
import shutil

import pytest

from palindiff.evaluation.results import read_results
from palindiff.experiments.measured import MEASURED_FILE, read_measured
from palindiff.pretrained.bundled import CHECKPOINTS
from toys.by_path import ROOT, load_by_path

cards = load_by_path("scripts/bundled_card.py")
EMOJI, VAE = CHECKPOINTS / "emoji", CHECKPOINTS / "vae-emoji"
CHAIN = read_results(ROOT / "results" / "chain_use.json").rows
DEMO = [row for row in read_results(ROOT / "results" / "demo.json").rows if row["model"] == "bundled"]
(CALIBRATION,) = read_results(ROOT / "results" / "calibration.json").rows

GENERATED = {"direction": "caption_to_generated", "k": 1, "split": "seen"}


def words(path):
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


@pytest.fixture
def results(tmp_path):
    """The result files, to be changed."""
    return shutil.copytree(ROOT / "results", tmp_path / "results")


def change(path, **changes):
    """Write new values into every row that has such keys."""
    tree = json.loads(path.read_text())
    tree["rows"] = [row | {key: value for key, value in changes.items() if key in row} for row in tree["rows"]]
    path.write_text(json.dumps(tree))


def changed(rows, key, value, **where):
    """Rows with another value where others are as given."""
    return [row | {key: value} if where.items() <= row.items() else row for row in rows]


def test_the_bundled_card_is_what_the_script_writes():
    expected = cards.card(EMOJI, VAE)
    assert (EMOJI / "README.md").read_text(encoding="utf-8") == expected, "run python scripts/bundled_card.py"
    assert max(map(len, expected.splitlines())) <= cards.WIDTH


def test_readme_and_docs_quote_the_sentences_of_the_card():
    _, *found = cards.measured_sentences(EMOJI)
    further = [cards.composition_sentence(DEMO), cards.vendor_sentence(DEMO)]
    assert len(found) == 5 + sum(sentence is not None for sentence in further)
    assert [sentence for sentence in found if sentence not in words("docs/results.md")] == []
    for page in ("README.md", "docs/results.md"):
        assert cards.text_diffusion_conclusion(CHAIN) in words(page), page


def test_an_evaluation_of_other_weights_is_left_out(results):
    evaluated = read_results(results / "bundled.json").rows
    assert cards.is_same_evaluation(DEMO, evaluated)
    others = [row | {"value": 0.9} for row in evaluated]
    assert not cards.is_same_evaluation(DEMO, others)
    one = changed(evaluated, "value", 0.5, subset="composition", measure="text_retrieval_recall@10", control="none")
    assert "50.0% on concepts known in another style" in cards.evaluation_sentence(one)


def test_what_decisions_say_of_the_bundled_model_s_query_is_measured():
    for claim in ("The bundled model ignores its query", "the bundled model, trained so, ignores the query"):
        assert (claim in words("docs/decisions.md")) is cards.ignores_query(CHAIN), claim
    depends = "An answer of the bundled model depends on its query"
    assert (depends in words("docs/decisions.md")) is not cards.ignores_query(CHAIN)


def test_the_card_names_machine_and_command_of_its_own_rows(results):
    file = json.loads((results / "demo.json").read_text())
    own = file["settings"].get("rows_measured_before", {}).get("bundled", file)
    origin = cards.measured_sentences(EMOJI)[0]
    assert f"`{own['command']}`" in origin
    assert f"on {own['machine']['cores']} cores of {own['machine']['cpu']}" in origin
    text = (results / "demo.json").read_text()
    (results / "demo.json").write_text(text.replace('"cores": 2', '"cores": 3'))
    assert "on 3 cores of" in cards.measured_sentences(EMOJI, results)[0]
    (results / "demo.json").write_text(text.replace('"accelerator": null', '"accelerator": "a GPU"'))
    assert cards.measured_sentences(EMOJI, results)[0].endswith("on a GPU.")


def test_results_of_other_weights_are_not_quoted(results):
    change(results / "calibration.json", temperature=1.5)
    assert not [each for each in cards.measured_sentences(EMOJI, results) if "calibration" in each]
    change(results / "chain_use.json", value=0.9)
    assert not [each for each in cards.measured_sentences(EMOJI, results) if "Text diffusion" in each]
    change(results / "bundled.json", value=0.9)
    assert not [each for each in cards.measured_sentences(EMOJI, results) if "Controls" in each]
    further = [each for each in (cards.composition_sentence(DEMO), cards.vendor_sentence(DEMO)) if each]
    assert len(cards.measured_sentences(EMOJI, results)) == 3 + len(further)
    change(results / "demo.json", steps=7)
    assert cards.measured_sentences(EMOJI, results) == []
    assert "**Results.** Not measured." in cards.card(EMOJI, VAE, results)


@pytest.mark.parametrize(
    ("recalls", "verdict"), [((0.1, 0.2), "wrong"), ((0.6, 0.7), "right"), ((0.1, 0.7), "right or wrong, by style,")]
)
def test_the_verdict_on_the_first_answer_follows_the_recall(recalls, verdict):
    rows = DEMO
    for style, recall in zip(("flat", "outlined"), recalls, strict=True):
        rows = changed(rows, "recall", recall, direction="image_to_text", split="unseen", k=1, style=style)
    sentence = cards.naming_sentence(rows)
    assert f"first for {recalls[0]:.1%} to {recalls[1]:.1%} of the images" in sentence
    assert sentence.endswith(f"The first answer is {verdict} for most of them.")


def test_the_verdict_on_unseen_concepts_follows_the_recall():
    assert cards.generation_sentence(DEMO).endswith("resemble theirs less often.")
    as_good = changed(DEMO, "recall", 0.86, **GENERATED | {"split": "unseen"})
    sentence = cards.generation_sentence(as_good)
    seen = [row["recall"] for row in DEMO if GENERATED.items() <= row.items()]
    assert f"{cards.span(seen)} of the captions from training and 86.0% of others" in sentence
    assert sentence.endswith("resemble theirs as often.")


def naming_row(**given):
    return {"direction": "image_to_text", "k": 1, "recall": 0.5, "chance": 1 / 60, "n": 60, "split": "composition",
            "style": "flat"} | given  # fmt: skip


def test_compositions_and_a_vendor_have_sentences_where_they_were_measured():
    rows = [
        naming_row(recall=0.4),
        naming_row(recall=0.5, style="outlined"),
        naming_row(k=10, recall=0.8, chance=1 / 6),
    ]
    assert cards.composition_sentence(rows) == (
        "Classification among 60 concepts that training sees in other styles only: the right caption is first for "
        "40.0% to 50.0% of the images of a style and among the first 10 for 80.0%; chance is 1.7% and 16.7%."
    )
    vendor = [
        naming_row(style="emojione", vendor="emojione", split="seen", n=810, chance=0.01, k=10, control=control,
                   recall=recall)
        for control, recall in (("none", 0.5), ("nearest_thumbnail", 0.25), ("nearest_efflite0", 0.75))
    ]  # fmt: skip
    sentence = (
        "Unseen vendor: among 810 concepts in the style of emojione, which training never sees, the right caption is "
        "among the first 10 for 50.0% of the images; chance is 1.0%."
    )
    assert cards.vendor_sentence(vendor[:1]) == sentence
    assert cards.vendor_sentence(vendor) == (
        f"{sentence} The concepts of similar training images reach 25.0% by thumbnails and 75.0% by "
        "EfficientNet-Lite0 features."
    )
    assert cards.composition_sentence(vendor) is cards.vendor_sentence(rows) is None


def test_rows_of_other_concepts_do_not_change_what_is_said_of_unseen_ones():
    more = [*DEMO, naming_row(recall=0.99), naming_row(vendor="emojione", split="seen", control="none", recall=0.99)]
    assert cards.naming_sentence(more) == cards.naming_sentence(DEMO)
    assert cards.is_same_model(more, CHAIN)


def test_the_rows_beside_the_weights_are_those_of_the_result_file():
    rows = cards.measured_rows(EMOJI)
    assert rows == DEMO
    found = read_measured(EMOJI, rows[0]["steps"], rows[0]["seconds"])
    assert found == rows, f"run python scripts/bundled_card.py, which writes {MEASURED_FILE}"


def test_the_errors_of_the_probabilities_are_those_of_the_row():
    sentence = cards.calibration_sentence(CALIBRATION | {"calibration_error_after": 0.5, "labels": "7 classes"})
    before = f"{CALIBRATION['calibration_error_before']:.1%}"
    assert f"among 7 classes of the validation split is 50.0%, without the temperature {before}" in sentence


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (0.9, {"metric": "chain_cosine_noise_t50", "style": "flat"}),
        (0.45, {"metric": "image_to_text_recall_10", "style": "flat", "naming_steps": 50}),
        (0.25, {"metric": "text_to_image_recall_10", "style": "outlined", "naming_guidance_scale": 4.0}),
    ],
)
def test_text_diffusion_matters_if_a_prediction_or_a_recall_depends_on_it(value, where):
    ignoring = CHAIN
    for metric in cards.RECALLS:
        ignoring = changed(ignoring, "value", 0.35, metric=metric)
    ignoring = [row | {"value": 0.999} if row["metric"].startswith("chain_cosine_") else row for row in ignoring]
    assert cards.ignores_query(ignoring)
    assert "so 1 step is as good as 50, guided or not." in cards.text_diffusion_sentence(ignoring)
    rows = changed(ignoring, "value", value, **where)
    assert not cards.ignores_query(rows)
    assert "an answer depends on the query; " in cards.text_diffusion_sentence(rows)
    assert f"{value:.1%}" in cards.text_diffusion_sentence(rows) or f"{value:.4f}" in cards.text_diffusion_sentence(
        rows
    )


def test_the_recall_by_steps_and_guidance_is_said_where_the_query_matters():
    settings = {(1, 1.0): 0.1, (8, 1.0): 0.2, (50, 1.0): 0.3, (1, 4.0): 0.4, (8, 4.0): 0.5, (50, 4.0): 0.6}
    rows = CHAIN
    for (steps, scale), recall in settings.items():
        where = {"naming_steps": steps, "naming_guidance_scale": scale, "seed": 0}
        for metric in cards.RECALLS:
            rows = changed(rows, "value", recall, metric=metric, **where)
    rows = changed(rows, "value", 0.3, metric="image_to_text_recall_10", naming_steps=1, style="flat", seed=0)
    rows = changed(rows, "value", 0.2, metric="text_to_image_recall_10", naming_steps=50, style="flat", seed=0)
    expected = (
        "recall@10 is 15.0% with 1 step and 27.5% with 50, 37.5% and 50.0% with guidance (mean of both directions and "
        "styles)"
    )
    assert cards.text_diffusion_conclusion(rows) == f"an answer depends on the query; {expected}"


def test_a_changed_log_changes_the_card(tmp_path):
    folder = shutil.copytree(EMOJI, tmp_path / "emoji")
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 12000, "elapsed_s": 72000.0}\n')
    card = cards.card(folder, VAE)
    assert "12,000 steps in 20.0 hours" in card
    assert "Not measured." in card
