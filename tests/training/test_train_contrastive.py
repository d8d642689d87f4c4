"""The contrastive trainer: a run that stops and resumes, what it logs and writes, and what it refuses."""

import pytest
import torch
from transformers import CLIPModel

from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import ContrastiveEvaluationConfig, EvaluationImages, classification, retrieval
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.model_kinds import model_kind
from palindiff.pretrained.text_encoders import load_text_encoder
from palindiff.training.features import pixels
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.run_log import RunLog, read_log
from palindiff.training.train_contrastive import ContrastiveTrainer
from palindiff.training.trainer import describe
from toys.contrastive import contrastive_recipe, train_contrastive
from toys.run import cpu_accelerator, one_thread

KINDS = {  # text encoder, whether it is trained, kind of the result
    "frozen sentence encoder": ("sentence", False, "contrastive"),
    "frozen CLIP": ("clip", False, "clip"),
    "trained CLIP": ("clip", True, "clip"),
}
pytestmark = pytest.mark.filterwarnings("ignore:A micro-batch has")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def recipe_of(kind, toy_parts, encoder_folder, **sections):
    encoder, is_trained, _ = KINDS[kind]
    sections = {"text": {"is_trained": is_trained}} | sections
    sections["text"] = {"source": str(encoder_folder / encoder)} | sections["text"]
    return contrastive_recipe(toy_parts, encoder_folder / encoder, **sections)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, toy_parts, encoder_folder):
    """A finished run of each kind: its folder, and the model it returned."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    with one_thread():
        for number, kind in enumerate(KINDS):
            output = root / str(number)
            found[kind] = output, train_contrastive(recipe_of(kind, toy_parts, encoder_folder), output)
    return found


def bytes_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_loaded_as_it_was_trained(runs, kind):
    output, trained = runs[kind]
    found, folder = model_kind(output)
    assert (found, folder) == (KINDS[kind][2], output / "clip")
    again = ClipModel.from_pretrained(folder)
    assert again.fingerprint == trained.fingerprint
    assert again.logit_scale == trained.logit_scale
    if found == "clip":
        _, loading = CLIPModel.from_pretrained(folder, output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]


def test_a_frozen_text_encoder_stays_as_it_was_and_a_trained_one_does_not(runs, encoder_folder):
    for kind, (encoder, is_trained, _) in KINDS.items():
        before = load_text_encoder(str(encoder_folder / encoder))
        trained = runs[kind][1].text_encoder
        assert (trained.fingerprint == before.fingerprint) is not is_trained, kind
    before, after = load_text_encoder(str(encoder_folder / "clip")), runs["trained CLIP"][1].text_encoder
    assert not torch.equal(after.projection.weight, before.projection.weight)
    moved = [not torch.equal(a, b) for a, b in zip(after.model.parameters(), before.model.parameters(), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_with_the_bytes_of_an_unstopped_one(
    runs, kind, toy_parts, encoder_folder, tmp_path, monkeypatch
):
    log_step, recipe = RunLog.step, recipe_of(kind, toy_parts, encoder_folder)

    def interrupt_at_3(run_log, step, numbers):
        log_step(run_log, step, numbers)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", interrupt_at_3)  # Ctrl-C after step 3, of which only 2 are saved
        with pytest.raises(KeyboardInterrupt):
            train_contrastive(recipe, tmp_path)
    assert [state.name for state in saved_states(tmp_path / "state")] == ["step-00000002"]
    assert not (tmp_path / "clip").exists()
    monkeypatch.setattr(pixels, "IN_MEMORY_BYTES", 0)
    train_contrastive(recipe, tmp_path)  # the rest decodes at each reading
    output, _ = runs[kind]
    assert bytes_below(tmp_path / "clip") == bytes_below(output / "clip")
    states = [saved_states(folder / "state")[-1] for folder in (tmp_path, output)]
    assert bytes_below(states[0]) == bytes_below(states[1])


def test_the_log_has_losses_and_metrics_of_the_validation_images(runs, toy_parts):
    output, trained = runs["trained CLIP"]
    last = read_log(output / "log.jsonl")[-1]
    rows = list(open_images(DataConfig(path=str(toy_parts / "images"), split="validation")))
    data = EvaluationImages(
        [row.source for row in rows], [row.captions[0] for row in rows], [row.label for row in rows]
    )
    options = ContrastiveEvaluationConfig()
    expected = [*retrieval(trained, data, options), *classification(trained, data, options)]
    assert {row["metric"] for row in expected} >= {
        "image_to_text_recall_1",
        "text_to_image_recall_5",
        "zero_shot_top_1",
    }
    assert {row["metric"]: last[row["metric"]] for row in expected} == pytest.approx(
        {row["metric"]: row["value"] for row in expected},
        abs=1e-6,  # the log keeps six decimals
    )
    assert {"validation_loss", "validation_contrastive"} <= last.keys()
    assert (output / "best.json").exists()
    assert model_kind(output / "best")[0] == model_kind(output / "latest")[0] == "clip"


def test_a_run_learns_to_match_its_images(toy_parts, encoder_folder, tmp_path):
    loop = {"num_steps": 60, "batch_size": 12, "ema_decay": 0, "evaluate_every": 0, "save_every": 0}
    recipe = recipe_of("frozen CLIP", toy_parts, encoder_folder, loop=loop, views={"flip": "none", "crops": 0})
    train_contrastive(recipe, tmp_path)
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_size_is_counted_without_weights(runs, toy_parts, encoder_folder):
    for kind, (_, trained) in runs.items():
        recipe = recipe_of(kind, toy_parts, encoder_folder)
        counts, is_trained = describe(recipe), KINDS[kind][1]
        image, text = (
            sum(w.numel() for w in part.model.parameters()) for part in (trained.image_encoder, trained.text_encoder)
        )
        projection = trained.text_encoder.projection.weight.numel() if is_trained else 0
        assert (counts["image_encoder"], counts["text_encoder"]) == (image, text)
        assert counts["trained"] == image + 1 + (text + projection if is_trained else 0)


def test_views_are_the_recipe_s_in_training_and_whole_in_validation(toy_parts, encoder_folder, tmp_path):
    trainer = ContrastiveTrainer(recipe_of("frozen CLIP", toy_parts, encoder_folder), tmp_path, cpu_accelerator())
    trainer.prepare()
    assert trainer.training_set.num_views == 2
    assert (trainer.validation_set.num_views, trainer.validation_set.views.flip) == (1, "none")
    assert trainer.objective.text_encoder is None


def test_checkpointing_changes_no_gradient(toy_parts, encoder_folder, tmp_path):
    gradients = []
    for is_on in (False, True):
        recipe = recipe_of("trained CLIP", toy_parts, encoder_folder, machine={"gradient_checkpointing": is_on})
        trainer = ContrastiveTrainer(recipe, tmp_path, cpu_accelerator()).prepare()
        objective = trainer.objective.train()
        objective(trainer.training_set.read(torch.arange(4), torch.full((4, 2), 0.7)), {})["loss"].backward()
        gradients.append([weight.grad for weight in objective.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"text": {"source": None}}, "`text.source` missing. Expected a text encoder. Set"),
        ({"loop": {"batch_size": 4, "accumulation": 4}}, "a micro-batch of one row.*Change one of the two"),
        ({"image_encoder": {"patch_size_px": 5}}, "`image_size_px` is 16 with `patch_size_px` 5"),
        ({"evaluation": {"evaluators": ["chain_use"]}}, "evaluators"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(toy_parts, encoder_folder, sections, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe_of("frozen CLIP", toy_parts, encoder_folder, **sections)


def test_another_text_encoder_does_not_resume_a_run(runs, toy_parts, encoder_folder, tmp_path):
    output, _ = runs["frozen CLIP"]
    (tmp_path / "state").mkdir()
    newest = saved_states(output / "state")[-1]
    (tmp_path / "state" / newest.name).symlink_to(newest)
    recipe = recipe_of("frozen CLIP", toy_parts, encoder_folder, text={"source": str(encoder_folder / "clip_2")})
    with pytest.raises(ValueError, match="text encoder"):
        train_contrastive(recipe, tmp_path)
