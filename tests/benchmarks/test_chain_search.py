"""benchmarks/chain_search.py: rule and choice on rows by hand; a search of toy size, stopped and resumed."""

from contextlib import nullcontext

import pytest
import torch
import yaml

from palindiff.evaluation.results import read_results
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.training.loop.run_log import read_log
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from toys.by_path import load_by_path
from toys.emoji import write_emoji_set
from toys.recipe import recipe_tree

chain_search = load_by_path("benchmarks/chain_search.py")
Search, Variant = chain_search.Search, chain_search.Variant

TOY_VARIANTS = {
    "none": Variant(("query_stream.text_chain=none",)),
    "raw": Variant(("query_stream.query_scale=sqrt_d",)),
    "c_in": Variant(("query_stream.query_scale=sqrt_d", "query_stream.query_input=normalised", *chain_search.NOISY)),
    "twice": Variant(None, is_twice=True),
}


@pytest.fixture(scope="module")
def toy_recipe_file(toy_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    tree = recipe_tree(toy_parts, data={"path": str(write_emoji_set(folder / "emoji"))})
    tree["machine"] = {"cache_dir": str(folder / "cache")}
    (folder / "toy.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "toy.yaml")


def rows_by_hand(text, image, cosine, name="a"):
    """The rows that decide: recall@10 both ways with 8 steps, and the lowest cosine of `chain_use`."""
    recalls = zip(chain_search.RECALLS, (text, image), strict=True)
    rows = [{"name": name, "setting": "8 steps", "metric": metric, "value": value} for metric, value in recalls]
    rows += [{"name": name, "setting": "1 step", "metric": metric, "value": 1.0} for metric in chain_search.RECALLS]
    cosines = {"chain_cosine_noise_t50": cosine, "chain_cosine_noise_t500": 0.999, "chain_cosine_other_t50": 0.5}
    return rows + [{"name": name, "setting": "chain_use", "metric": key, "value": c} for key, c in cosines.items()]


def test_a_variant_is_live_where_own_query_and_noise_differ_at_any_step():
    assert chain_search.is_live(rows_by_hand(0.1, 0.1, 0.9899))
    assert not chain_search.is_live(rows_by_hand(0.1, 0.1, 0.9901))
    assert not chain_search.is_live([row for row in rows_by_hand(0.1, 0.1, 0.9) if "other" in row["metric"]])
    assert chain_search.recall(rows_by_hand(0.3, 0.2, 1.0)) == pytest.approx(0.25)


def test_the_chosen_variant_is_live_has_the_highest_recall_and_usual_length(monkeypatch, tmp_path):
    measured = {
        "none": rows_by_hand(0.5, 0.5, 1.0),
        "unit": rows_by_hand(0.4, 0.4, 0.999),
        "sqrt_d": rows_by_hand(0.2, 0.35, 0.8),
        "c_in": rows_by_hand(0.3, 0.2, 0.9),
        "none-twice": rows_by_hand(0.9, 0.9, 0.5),
    }
    monkeypatch.setattr(Search, "finished", lambda search, name, recipe: measured.get(name))
    assert Search(tmp_path).chosen() == "sqrt_d"
    measured = {name: rows for name, rows in measured.items() if name in ("none", "unit", "none-twice")}
    assert Search(tmp_path).chosen() is None


def test_the_search_has_at_most_twelve_variants_that_differ_in_the_text_diffusion_alone(tmp_path):
    search, single = Search(tmp_path), load_recipe(DiffDisRecipe, "emoji", chain_search.BEFORE).model_dump()
    assert len(search.variants) <= 12
    recipes = {name: search.recipe_of(name) for name, each in search.variants.items() if each.overrides is not None}
    assert len({recipe.model_dump_json() for recipe in recipes.values()}) == len(recipes)
    for name, recipe in recipes.items():
        assert (recipe.objective.task, recipe.loop.seed, recipe.loop.batch_size) == ("alignment", 0, 64)
        assert recipe.loop.num_steps == (3000 if search.variants[name].is_twice else 1500)
        assert (recipe.data.split, recipe.machine.precision) == ("train", "fp32")
        same = {"data", "text", "vae", "unet", "scheduler", "views"}
        assert {key: recipe.model_dump()[key] for key in same} == {key: single[key] for key in same}


def test_costs_count_every_step_of_training_and_every_pass_of_naming(monkeypatch, tmp_path):
    parts = {"VAE": 1.0, "reading": 2.0, "denoising": 0.5}
    monkeypatch.setattr(chain_search, "fake_run", nullcontext)
    monkeypatch.setattr(chain_search, "step_tflop", lambda run, recipe: {"alignment": 3.0})
    monkeypatch.setattr(chain_search, "naming_tflop", lambda run, evaluation: parts)
    for name, passes in (("unit", [1, 8, 16, 32]), ("none", [1, 1, 2, 4])):
        train_tflop, named = chain_search.costs(Search(tmp_path, steps=10).recipe_of(name))
        assert train_tflop == 30
        assert list(named.values()) == [3 + 0.5 * number for number in passes]


def test_a_search_is_measured_resumed_and_prolonged(toy_recipe_file, monkeypatch, tmp_path):
    monkeypatch.setattr(chain_search, "LIVE_BELOW", 1.0)  # two steps teach nothing, so the rule is relaxed
    monkeypatch.setattr(chain_search, "costs", lambda recipe: (1.0, dict.fromkeys(chain_search.SETTINGS, 2.0)))
    search = Search(tmp_path / "runs", toy_recipe_file, 2, variants=TOY_VARIANTS)
    results = tmp_path / "search.json"
    with pytest.raises(ValueError, match=r"`twice` prolongs the chosen variant, but there is none, raw, c_in not"):
        search.run(["twice"], results, "c")
    with pytest.raises(ValueError, match=r"There is no variant `raws`\. Expected one of none, raw"):
        search.run(["raws"], results, "c")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(chain_search, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            search.run(["none"], results, "c")
    assert not results.exists()
    search.run(["none", "raw", "c_in"], results, "c")
    assert [line["step"] for line in read_log(tmp_path / "runs" / "none" / "log.jsonl") if "loss" in line] == [1, 2]
    found = read_results(results)
    assert found.settings["unfinished"] == ["twice"]
    assert [row["name"] for row in found.rows if row["metric"] == chain_search.RECALLS[0]] == [
        name for name in ("none", "raw", "c_in") for _ in chain_search.SETTINGS
    ]
    assert {row["n"] for row in found.rows if row["setting"] == "8 steps"} == {12, 16}  # images and captions
    assert len({frozenset(row) for row in found.rows}) == 1  # one table
    assert {row["is_live"] for row in found.rows if row["name"] == "none"} == {False}
    monkeypatch.setattr(torch.nn.Module, "train", stop)  # nothing is trained any more
    search.run(["none", "raw", "c_in"], results, "c")
    monkeypatch.undo()
    assert read_results(results).rows == found.rows


def test_the_measured_recall_is_that_of_the_checkpoint_on_the_validation_split(toy_recipe_file, monkeypatch, tmp_path):
    monkeypatch.setattr(chain_search, "LIVE_BELOW", 1.0)
    monkeypatch.setattr(chain_search, "costs", lambda recipe: (1.0, dict.fromkeys(chain_search.SETTINGS, 2.0)))
    search = Search(tmp_path / "runs", toy_recipe_file, 2, variants={k: TOY_VARIANTS[k] for k in ("c_in", "twice")})
    search.run(["c_in", "twice"], tmp_path / "search.json", "c")
    found = read_results(tmp_path / "search.json")
    assert found.settings["chosen"] == "c_in"
    assert found.settings["variants"]["twice"] == found.settings["variants"]["c_in"]
    assert {row["steps"] for row in found.rows if row["name"] == "twice"} == {4}
    assert {row["name"] for row in found.rows if row["is_chosen"]} == {"c_in"}
    pipeline = PalindiffPipeline.from_pretrained(tmp_path / "runs" / "c_in" / "checkpoint")
    images = list(chain_search.open_images(search.recipe_of("c_in").data.model_copy(update={"split": "validation"})))
    captions = list(dict.fromkeys(caption for image in images for caption in image.captions))
    scores = pipeline.rank([image.source for image in images], captions, num_inference_steps=8, num_samples=4)
    hits = [
        any(captions[place] in image.captions for place in row.topk(10).indices.tolist())
        for image, row in zip(images, scores, strict=True)
    ]
    (value,) = [
        row["value"]
        for row in found.rows
        if (row["name"], row["setting"]) == ("c_in", "8 steps, mean of 4 samplings")
        and row["metric"] == "text_retrieval_recall@10"
    ]
    assert value == pytest.approx(sum(hits) / len(hits), abs=1 / 24)  # an order of sums may exchange two close ones
