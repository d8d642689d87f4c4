"""Starting from Hub names: what is downloaded, and the licence that the base's card tells."""

import pytest
import yaml

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStreamConfig
from palindiff.pretrained.model_card import card_head
from toys.hub import toy_hub
from toys.stable_diffusion import write_clip_of, write_sd1
from toys.stock_generation import differing

STREAM = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
LICENSE = "creativeml-openrail-m"


@pytest.fixture
def repositories(monkeypatch, tmp_path):
    with toy_hub(monkeypatch, tmp_path / "cache") as (found, _):
        yield found


def publish(folder, **more):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files | more


def test_hub_names_start_as_folders_do_and_the_base_s_licence_reaches_the_card(repositories, tmp_path):
    clip, base = write_clip_of(tmp_path), write_sd1(tmp_path)
    card = f"---\nlicense: {LICENSE}\n---\n".encode()
    repositories |= {"me/clip": publish(clip), "me/base": publish(base, **{"README.md": card})}
    of_hub = PalindiffPipeline.from_stable_diffusion("me/base", "me/clip", STREAM)
    of_folder = PalindiffPipeline.from_stable_diffusion(base, clip, STREAM)
    assert not differing(of_hub, of_folder)
    head = yaml.safe_load(card_head(of_hub.model_card))
    assert (head["license"], head["base_model"]) == (LICENSE, ["me/base", "me/clip"])
    assert yaml.safe_load(card_head(of_folder.model_card))["license_name"] == "unknown"


def test_a_name_that_the_hub_does_not_know_is_told_in_a_sentence(repositories, tmp_path):
    clip = write_clip_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No Stable Diffusion `me/nothing`: it is not a folder, and neither"):
        PalindiffPipeline.from_stable_diffusion("me/nothing", clip, STREAM)
