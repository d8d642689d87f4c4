"""showing.py: what stands on the page is what the model says, evenly chosen, in the order told."""

import base64
import html as markup
import io
import re

import numpy as np
import pytest
from PIL import Image

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image
from palindiff.experiments.demo_sections import (
    CHAIN_CAPTION,
    FREE_WORDING,
    NUM_STRIP_STEPS,
    chains,
    generation_chain,
    generations,
    named,
    search,
    training_curves,
)
from palindiff.experiments.emoji_protocol import concept_images, evenly, naming_rows
from palindiff.inference.defaults import GENERATION_STEPS
from palindiff.inference.generation import generate_images
from toys.emoji import SCRIPT
from toys.page import Page


def read(html):
    return Page(f"<div>{html}</div>")


def pixels(image):
    return np.asarray(image).astype(int)


def shown(page, number):
    """An image of the page, as pixels."""
    data = page.references[number].removeprefix("data:image/png;base64,")
    return pixels(Image.open(io.BytesIO(base64.b64decode(data))))


def alts(html):
    """What the page tells of each image."""
    return [markup.unescape(alt) for alt in re.findall(r'<img alt="([^"]*)"', html)]


@pytest.fixture(scope="module")
def generated_section(model, emoji_dir):
    heading, html = generations(model.pipeline, emoji_dir, seed=3)
    assert heading == "From words to images"
    return read(html)


def test_generations_are_of_evenly_spread_unseen_concepts_compositions_and_free_wording(generated_section, emoji_dir):
    spread = {
        split: [row.captions[0] for style in STYLES for row in evenly(concept_images(emoji_dir, split, style), 8)]
        for split in ("test", "train")
    }
    compositions = ["flat ca", "flat ca x", "flat cb", "flat cc"]
    compositions += [caption.replace("flat", "outlined") for caption in compositions]
    assert generated_section.of("figcaption") == [*spread["test"], *compositions, *FREE_WORDING, *spread["train"]]
    assert [text.split(",")[0].split(":")[0] for text in generated_section.of("h3")] == [
        "Concepts never seen in training", "Concepts seen", "Free wording", "For comparison"
    ]  # fmt: skip
    assert f"flat tl{SCRIPT}" in generated_section.of("figcaption")
    assert len(generated_section.references) == 16 + 8 + 8 + 16


@pytest.mark.parametrize("number", [0, 17, 47])
def test_each_generation_has_the_seed_of_its_place(generated_section, model, number):
    caption = generated_section.of("figcaption")[number]
    (alone,) = generate_images(model.pipeline, [caption], [3 + number], guidance_scale=4.0)
    assert abs(shown(generated_section, number) - pixels(alone)).max() <= 1  # of 255: another batch, rounded
    assert np.ptp(pixels(alone)) > 20


def test_names_are_the_best_of_all_unseen_concepts_and_the_right_one_is_bold(embedded):
    heading, html = named(embedded)
    page = read(html)
    assert heading == "From an image to its name"
    assert len(page.references) == page.tags.count("tr") - 1 == 2 * 8
    places, first = [0, 2, 3, 5, 6, 8, 9, 11], embedded[0]
    for number, place in enumerate(places):
        assert (shown(page, number) == pixels(decode_image(first.rows[place].source))).all()
    texts = [text for within, text in page.texts if within in ("td", "span", "small")]
    best = first.scores[0].topk(5)
    told = [each for i, score in zip(best.indices, best.values, strict=True)
            for each in ("✓ " * (int(i) == 0) + first.captions[int(i)], f"{float(score):.2f}")]  # fmt: skip
    assert texts[:11] == [first.captions[0], *told]
    ranks = [int((each.scores[place] > each.scores[place, place]).sum()) for each in embedded for place in places]
    assert len(page.marked) == 2 * sum(rank < 5 for rank in ranks)  # a name and its score
    assert alts(html) == [each.captions[place] for each in embedded for place in places]
    assert "Unseen images, evenly spread; the best 5 of 12 names" in page.of("p")[0]
    assert page.of("td").count(f"flat tl{SCRIPT}") >= 1  # text, in the column of what it is
    assert "script" not in page.tags


def test_search_shows_the_best_images_of_a_caption_and_marks_the_right_one(model, embedded):
    rows = [row for each in embedded for row in naming_rows(model, each)]
    heading, html = search(embedded, rows)
    page = read(html)
    assert heading == "Search among concepts never seen"
    places = [1, 5, 8, 11]
    assert page.of("h3") == [each.captions[place] for each in embedded for place in places]
    first = embedded[0]
    for number, place in enumerate(places):
        best = first.scores[:, place].topk(5)
        for i, found in enumerate(best.indices.tolist()):
            assert (shown(page, 5 * number + i) == pixels(decode_image(first.rows[found].source))).all()
        assert page.of("figcaption")[5 * number : 5 * number + 5] == [
            "✓ " * (i == places[number]) + f"{score:.2f}"
            for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        assert alts(html)[5 * number : 5 * number + 5] == [first.captions[i] for i in best.indices]
    ranks = [int((each.scores[:, place] > each.scores[place, place]).sum()) for each in embedded for place in places]
    assert len(page.marked) == sum(rank < 5 for rank in ranks)
    cells = page.of("td")
    assert len(cells) == 7 * len(rows)
    assert cells[:7] == ["flat", "image to text", "1", f"{100 * rows[0]['recall']:.1f} %", "8.3 %",
                         f"{100 * rows[0]['shuffled']:.1f} %", "12"]  # fmt: skip


def test_the_generation_chain_goes_from_noise_to_the_generation(model):
    steps = generation_chain(model.pipeline, "flat ta", seed=5)
    times = [t for t, _ in steps]
    assert len(steps) == NUM_STRIP_STEPS
    assert times == sorted(times, reverse=True)
    model.pipeline.scheduler.set_timesteps(GENERATION_STEPS)
    assert (times[0], times[-1]) == (999, int(model.pipeline.scheduler.timesteps[-1]))
    (generation,) = generate_images(model.pipeline, ["flat ta"], [5], guidance_scale=4.0)
    assert abs(pixels(steps[-1][1]) - pixels(generation)).max() <= 1  # of 255, rounded
    assert abs(pixels(steps[0][1]) - pixels(generation)).max() > 20


def test_both_chains_are_shown_step_by_step(model, embedded):
    heading, html = chains(model.pipeline, embedded[0], seed=0)
    page = read(html)
    assert heading == "The two chains, walking"
    assert page.of("h3")[0] == f"Generation “{CHAIN_CAPTION}”"
    assert [text.startswith("t = ") for text in page.of("figcaption")] == [True] * NUM_STRIP_STEPS
    assert page.of("td")[0] == "t = 999"
    times = page.of("figcaption")
    assert alts(html) == [*(f"{CHAIN_CAPTION}, at {t}" for t in times), embedded[0].captions[6]]
    walked = list(model.pipeline.denoise_query([embedded[0].rows[6].source], 8, 1.0))
    assert [text for text in page.of("td") if text.startswith("t = ")] == [f"t = {step.t_e}" for step in walked]
    ranks = [text for text in page.of("small") if text.startswith("the right name is number")]
    assert len(ranks) == 2 * len(walked)
    scores = walked[-1].e_0_hat[0] @ embedded[0].e.T
    assert ranks[-1] == f"the right name is number {1 + int((scores > scores[6]).sum())}"


def test_a_chain_without_noise_is_one_step(model, embedded):
    """`text_chain: none` has no noisy query to show; the section says what there is."""
    stream = model.pipeline.query_stream
    try:
        stream.register_to_config(text_chain="none")
        page = read(chains(model.pipeline, embedded[0], seed=0)[1])
    finally:
        stream.register_to_config(text_chain="diffusion")
    assert [text for text in page.of("td") if text.startswith("t = ")] == ["t = 0"]


def test_the_log_is_drawn_and_what_it_lacks_is_told():
    log = [{"step": step, "generation": 1 / step, "alignment": 4 / step} for step in range(1, 9)]
    heading, html = training_curves(log)
    assert heading == "How it was trained"
    page = read(html)
    assert page.tags.count("svg") == page.tags.count("polyline") == 2
    assert page.of("p") == ["recall at 10, validation: too short to draw."]
    assert {"generation: 0.125", "alignment: 0.5"} <= set(page.of("text"))
