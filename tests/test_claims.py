"""Figures in the prose of README.md and docs/: each is compared with a result file, the weights or the code."""

import math
import re
from collections import Counter
from statistics import fmean, stdev

import pytest
from safetensors import safe_open

from palindiff.evaluation.results import read_results
from palindiff.evaluation.thumbnails import THUMBNAIL_SIDE
from palindiff.experiments.adaptation import CPU_SHARE, GPU_SHARE
from palindiff.experiments.emoji_protocol import METRIC_STEPS, NUM_GENERATED, NUM_GENERATION_CONCEPTS
from palindiff.experiments.reproduction.plan import load_plan
from palindiff.experiments.reproduction.verdicts import SAME_FLOP
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.models.text_diffusion import leak, text_diffusion_scheduler
from palindiff.pretrained.bundled import CHECKPOINTS
from toys.by_path import load_by_path
from toys.documents import PAGES, ROOT, prose, results

cards = load_by_path("scripts/bundled_card.py")
FILES = [
    *(ROOT / "src" / "palindiff").rglob("*"), *(ROOT / "docs").glob("*"), *(ROOT / "scripts").glob("*"),
    *(ROOT / "benchmarks").glob("*"), ROOT / "README.md", ROOT / "CHANGELOG.md",
]  # fmt: skip
UNPROVED = re.compile(
    r"(?:in|without) (?:a|no|any) result file|not kept|measured once|short trial|mostly wrong|two CPU cores"
    r"|much (?:faster|slower)|come out right|blobs|some seconds|takes? seconds|learns? (?:less|slowly)"
    r"|most common tasks|more every year|few sets need|several GB|not selected by hand|early in training"
    r"|well below its peak",
    re.IGNORECASE,
)
QUANTITY = re.compile(r"(?<![\w.])[\d,.]*\d ?(?:%|dB|ms|[KMGT]i?B|seconds?|minutes?|hours?|days?|M parameters)(?!\w)")


def num_parameters(folder):
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def test_no_text_claims_what_nothing_holds():
    texts = [path for path in FILES if path.suffix in {".py", ".md", ".yaml", ".html", ".jinja"}]
    assert len(texts) > 100
    assert not [(path.name, found) for path in texts if (found := UNPROVED.findall(path.read_text(encoding="utf-8")))]


def test_every_quantity_in_prose_is_compared_below():
    found = {page: {text for text in QUANTITY.findall(prose(page)) if not text.endswith("%")} for page in PAGES}
    assert {page: texts for page, texts in found.items() if texts} == {
        "README.md": {"12 M parameters"},
        "cc3m.md": {"45.9 GB"},
        "results.md": {"12 M parameters"},
        "vae.md": {"3.1 M parameters"},
    }
    shares = {page: re.findall(r"[\d.]+ ?%", prose(page)) for page in PAGES}
    # README.md and results.md: sentences of scripts/bundled_card.py; stable_diffusion.md: test_full_size.py
    assert {page for page, texts in shares.items() if texts} == {
        "README.md", "chain_search.md", "is_diffusing_better.md", "protocol.md", "results.md", "stable_diffusion.md",
        "tables.md", "unidiff.md",
    }  # fmt: skip
    assert shares["unidiff.md"] == [f"{100 * share:.0f} %" for share in (GPU_SHARE, CPU_SHARE)]
    of_claims = [row for file in (ROOT / "results").glob("*claims-*.json") for row in read_results(file).rows]
    of_holm = {f"{100 * row['level']:.1f} %" for row in of_claims}
    assert set(shares["chain_search.md"]) == {"95 %"}  # the level of intervals
    step = {row["variant"]: row["train_tflop"] / row["steps"] for name in ("table2-emoji", "table4-emoji")
            for row in results(name).rows if "steps" in row}  # fmt: skip
    more = f"{100 * (step['clip'] / step['alignment'] - 1):.0f} %"
    assert f"its step costs {more} more than one of alignment alone" in prose("protocol.md")
    same = f"{100 * SAME_FLOP:.0f} %"
    assert f"Costs that differ by at most {same} count as equal" in prose("protocol.md")
    assert set(shares["protocol.md"]) == {"95 %", more, same}
    assert set(shares["tables.md"]) == {"95 %"} | of_holm
    assert shares["stable_diffusion.md"] == ["15 %"]
    ways = [f"{way}_retrieval_recall@10" for way in ("text", "image")]
    of_seed_0 = {
        name: fmean(
            row["value"] for row in results(name).rows
            if (row["variant"], row["seed"]) == ("both", 0) and row["metric"] in ways and row["data"] == "unseen"
        )
        for name in ("table1-emoji", "diffusing-emoji")
    }  # fmt: skip
    of_machines = [f"{100 * value:.1f}%" for value in of_seed_0.values()]
    assert results("table1-emoji").machine != results("table4-emoji").machine
    apart = 100 * abs(of_seed_0["table1-emoji"] - of_seed_0["diffusing-emoji"])
    (p8,) = (row for row in results("claims-emoji").rows if (row["claim"], row["budget"]) == ("P8", "steps"))
    assert 0.4 < apart / abs(p8["difference"]) < 0.6  # "about half of the difference that P8 is about"
    assert "ended in a recall@10 of {} in place of {}".format(*of_machines) in prose("is_diffusing_better.md")
    of_paper = {"14.85 %", "23.14 %"}  # compared below
    assert set(shares["is_diffusing_better.md"]) == {"95 %", *of_paper, *of_machines}


@pytest.mark.parametrize("page", ["README.md", "results.md"])
def test_the_size_of_the_bundled_model_is_that_of_its_weights(page):
    total = sum(num_parameters(CHECKPOINTS / "emoji" / part) for part in ("unet", "query_stream"))
    side = cards.image_side(CHECKPOINTS / "emoji", CHECKPOINTS / "vae-emoji")
    assert f"{side} px emoji, {total / 1e6:.0f} M parameters" in prose(page)


@pytest.mark.parametrize("page", ["README.md", "results.md"])
def test_the_settings_of_the_metrics_are_those_of_the_code(page):
    text, rows = prose(page), results("demo").rows
    assert f"{NUM_GENERATED} captions are generated at guidance scale {GENERATION_GUIDANCE_SCALE:g}" in text
    assert f"with {METRIC_STEPS} DDIM steps" in text
    assert f"guidance scale {NAMING_GUIDANCE_SCALE:g} (no guidance) with {NAMING_STEPS} DDIM steps" in text
    rows = [row for row in rows if "direction" in row]
    of_generation = [
        row for row in rows if row["direction"] == "caption_to_generated" and row["split"] != "composition"
    ]
    assert {row["n"] for row in of_generation} == {NUM_GENERATED}
    assert {round(row["k"] / row["chance"]) for row in of_generation} == {NUM_GENERATION_CONCEPTS}
    assert re.search(rf"\b{NUM_GENERATION_CONCEPTS} concepts\b", text)
    (n,) = {row["n"] for row in rows if row.get("split") == "unseen" and row["direction"].endswith(("text", "image"))}
    assert f"among {n} concepts" in text


def test_what_results_md_says_beside_its_tables():
    text = prose("results.md")
    assert f"{THUMBNAIL_SIDE} x {THUMBNAIL_SIDE} thumbnails" in text
    demo = results("demo")
    trained = demo.settings["rows_measured_before"].get("trained", demo.model_dump())
    assert "--train --minutes 10 " in trained["command"]
    assert "A model trained for ten minutes" in text
    metrics = [str(row["metric"]) for row in results("chain_use").rows]
    least = min(int(metric.rpartition("_t")[2]) for metric in metrics if metric.startswith("chain_cosine_noise_t"))
    assert f"least noisy step measured (t = {least} of" in text
    assert f"{results('calibration').rows[0]['num_bins']} bins" in text


def test_what_results_md_says_of_the_best_of_four_is_in_its_result_file():
    lows = {row["choice"]: row["ci_low"] for row in results("best_of").rows if row["style"] == "all"}
    assert "the interval of the model's own choice reaches 0" in prose("results.md")
    assert lows["own"] <= 0 < lows["judge"]
    assert lows["more_steps"] <= 0
    values = {row["choice"]: row["recall"] for row in results("best_of").rows if row["style"] == "all"}
    assert values["random"] > values["real_images"]  # "it finds even random ones more often than real images"


def test_what_is_said_of_diffusing_is_in_the_result_files():
    text, claims = prose("is_diffusing_better.md"), results("claims-emoji").rows
    compared = [row for row in claims if row["claim"] == "P8"]
    assert {row["verdict"] for row in compared} == {"cannot be decided"}
    assert "the verdict is that it **cannot be decided** with five seeds" in text
    assert {row["num_seeds"] for row in compared} == {5}
    assert all(-1.75 < row["difference"] < -1.25 for row in compared)
    assert "by about a point and a half" in text
    assert all(abs(row["a_train_tflop"] / row["b_train_tflop"] - 1) < 0.002 for row in compared)
    of_kd = [row for row in results("diffusing-emoji").rows if row.get("column") == "KD-EffLite0"]
    assert max(row["ci_low"] for row in of_kd) < min(row["ci_high"] for row in of_kd)
    recall = {row["row"]: row["value"] for row in results("diffusing-emoji").rows if row.get("column") == "recall@10"}
    used, unit, regression = recall.values()
    assert used < unit < regression
    ways = [f"nearest_thumbnail_{way}_retrieval_recall@10" for way in ("text", "image")]
    nearest = [row["value"] for row in results("controls-emoji").rows
               if row["variant"] == "both" and row["metric"] in ways]  # fmt: skip
    assert "By recall all three are below a control without any network of this project" in text
    assert len(nearest) == 2
    assert regression < fmean(nearest)
    assert "The recall of the paper's own text diffusion lies between the two" in text
    steps = {row["row"]: row["value"] for row in results("table8-emoji").rows if row.get("column") == "recall@10"}
    of_used = [value for row, value in steps.items() if row.startswith("both, ")]
    assert len(of_used) == 6
    assert max(of_used) - min(of_used) < 0.01
    assert steps["both, 8"] <= steps["both, 1"]
    assert abs(steps["both, 1"] - steps["both, 1, leading"]) < 0.002  # "nearly the same recall with either spacing"
    assert abs(steps["1"] - steps["1, leading"]) < 0.002
    longest = {
        name: sum(row["value"] for row in results("chain_search").rows if row["name"] == name and row["setting"] in
                  ("8 steps", None) and row["metric"] in ("text_retrieval_recall@10", "image_retrieval_recall@10")) / 2
        for name in ("twice", "none-twice")
    }  # fmt: skip
    assert abs(longest["twice"] - longest["none-twice"]) < 0.005
    paper = {row.label: row.paper for row in load_plan("emoji").tables["table8"].rows}
    one, four = paper["1"]["ImageNet"], paper["4"]["ImageNet"]
    assert f"a single step reaches {one} % there and four steps {four} %" in text
    used_by = {(row["variant"], row["metric"]): row["value"] for row in results("controls-emoji").rows}
    assert min(used_by["both", f"chain_cosine_{of}_t50"] for of in ("noise", "other")) < 0.95
    assert min(value for (variant, name), value in used_by.items() if variant == "unit" and "_cosine_" in name) > 0.99
    share = (leak(text_diffusion_scheduler(), 1) > 1).float().mean().item()
    assert abs(share - 1 / 3) < 0.03
    assert "with γ = 1 it is above 1 at a third of the training steps, with the paper's γ = 0.01 at none" in text
    assert leak(text_diffusion_scheduler(), 0.01).max() < 1
    again, before = (
        {(row["seed"], row["data"], row["metric"]): row["value"] for row in results(name).rows
         if row["variant"] == "both" and row["seed"] in (0, 1, 2) and "mrr" not in str(row["metric"])}
        for name in ("diffusing-emoji", "table4-emoji")
    )  # fmt: skip
    assert again == before  # "bit for bit"


def test_the_size_of_the_vae_is_that_of_its_result_file():
    settings = results("vae").settings
    assert settings["parameters"] == num_parameters(CHECKPOINTS / "vae-emoji")
    assert f"{settings['parameters'] / 1e6:.1f} M parameters" in prose("vae.md")
    assert f"latents of {settings['latent_channels']} x" in prose("vae.md")


def test_what_is_said_of_the_full_size_run_is_in_its_result_file():
    text, found = prose("stable_diffusion.md"), results("full_size")
    assert found.machine.accelerator is None
    assert "on a machine without a GPU" in text
    assert f"the machine: {found.machine.cores} CPU cores" in text
    assert f"batch size {found.settings['batch_size']}, bf16" in text
    new = sum(row["parameters"] for row in found.rows if row["kind"] == "parameters" and row["place"] != "U-Net")
    assert f"has {new / 1e6:.1f} million parameters in all" in text


def test_sums_of_disk_space_are_right():
    per_image = 2 * 4 * 32 * 32 * 2
    assert f"2 x 4 x 32 x 32 x 2 = {per_image:,}" in prose("cc3m.md")
    assert f"latents of 2,800,000 images | {2_800_000 * per_image / 1e9:.1f} GB" in prose("cc3m.md")
    assert "77 x 768 x 2 bytes" in prose("decisions.md")
    assert per_image < 77 * 768 * 2


def test_the_plain_attention_kernel_is_the_faster_one_where_the_code_chooses_it():
    found = results("attention_backend")
    assert found.settings["device"] == "cpu"
    assert all(row["torch_over_plain"] > 1 for row in found.rows)


def test_what_is_said_of_verdicts_is_in_the_result_files():
    """In docs/paper_map.md and CHANGELOG.md; docs/tables.md is written from the files."""
    found = {
        (row["claim"], row["budget"]): row["verdict"]
        for name in ("claims-emoji", "exploratory-claims-emoji") for row in results(name).rows
    }  # fmt: skip
    for claim in ("P1", "P2", "P3"):
        assert found[claim, "flop"] == "does not hold here"
        assert found[claim, "steps"] == "cannot be decided"
    assert found["E3", "steps"] == "does not hold here"
    assert {found["P5", budget] for budget in ("steps", "flop")} == {"holds here"}
    assert "that a larger learning rate of the new parameters helps holds here" in " ".join(
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split()
    )
    accuracy = {(row["variant"], row["seed"]): 100 * row["value"] for row in results("table4-emoji").rows
                if row.get("metric") == "acc1" and row["data"] == "unseen"}  # fmt: skip
    differences = [accuracy["both", seed] - accuracy["alignment-long", seed] for seed in range(3)]
    (level,) = (row["level"] for row in results("exploratory-claims-emoji").rows
                if (row["claim"], row["budget"]) == ("E1", "flop"))  # fmt: skip
    share = (1 + level) / 2
    quantile = (2 * share - 1) / (2 * share * (1 - share)) ** 0.5  # of Student's t with two degrees of freedom
    assert "Student's interval of its three seeds at the level that decides contains 0" in prose("protocol.md")
    assert abs(fmean(differences)) < quantile * stdev(differences) / 3**0.5
    text = prose("paper_map.md")
    steps = {row["variant"]: row["steps"] for name in ("table2-emoji", "table4-emoji") for row in results(name).rows
             if "steps" in row}  # fmt: skip
    for longest in ("clip-long", "alignment-long"):
        assert 3.5 < steps[longest] / steps["both"] < 4
    assert steps["generation-long"] < steps["alignment-long"]
    equal_steps = (
        "P3 judged: at equal steps it cannot be decided; at equal FLOP, where the contrastive model has nearly"
    )
    assert f"{equal_steps} four times the steps, it is better here" in text
    assert "P1 and P2 judged: at equal steps, as in the recipes of Table 4, they cannot be decided; at equal" in text
    assert "one task alone has up to nearly four times the steps, it is better here" in text
    assert "E3 was judged: guidance lowers recall here" in text
    assert {found[claim, budget] for claim in ("P4", "P6") for budget in ("steps", "flop")} == {"cannot be decided"}
    seeds = {(row["row"], row["seed"]) for row in results("table1-emoji").rows if row["seed"] is not None}
    assert Counter(Counter(row for row, _ in seeds).values()) == {1: 1, 3: 3}  # one row has one seed in the plan
    assert "with queries of unit length and of length √d, and P6 judged of the latter: it cannot be decided" in text
    assert {row["row"] for row in results("table6-emoji").rows} == {
        "γ = 1, unit length", "γ = 0.01, unit length", "γ = 1, length √d", "γ = 0.5, length √d"
    }  # fmt: skip
    changes = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    assert "does not hold here at equal FLOP, and cannot be decided at equal steps" in changes
    assert "Whether a frozen text encoder or a smaller γ helps cannot be decided" in changes


def test_what_is_said_of_the_pilots_is_in_the_result_file():
    means = [row for row in results("pilot-photos").rows if row["seed"] is None]
    assert {row["row"] for row in means} == {"both, 600 steps", "both, 1,200 steps"}
    for row in means:
        assert row["column"] == "recall@10 on validation"
        assert row["value"] < 5 * row["chance"]
    assert "At the scale `photos` two pilots stayed below five times chance" in prose("paper_map.md")
    assert "The second did not reach it either: at this scale P1 to P3 cannot be decided" in prose("protocol.md")
    assert "Both runs stay below five times chance" in prose("tables.md")
