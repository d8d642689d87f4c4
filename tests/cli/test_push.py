"""`palindiff push`: what would be uploaded, what is, and what the Hub or the folder does not allow."""

import pytest
import yaml

from palindiff.pretrained.model_card import CardFacts, write_card
from toys.hub import toy_hub
from toys.saving import write_stable_diffusion


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("push")
    write_stable_diffusion(root)
    write_card(root / "checkpoint", CardFacts(name="toy", datasets=("somebody/images",)))
    return root


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with toy_hub(monkeypatch, tmp_path / "hub") as (repositories, asked):
        yield repositories, asked


def test_a_dry_run_lists_the_files_and_the_head_of_the_card_without_a_request(palindiff, root, hub):
    code, out, err = palindiff("push", "--model", root / "checkpoint", "--to", "me/toy", "--private", "--dry-run")
    assert (code, err) == (0, "")
    listed, head = out.split("head of the card:\n")
    for path in (root / "checkpoint").rglob("*"):
        if path.is_file():
            assert f"  {path.relative_to(root / 'checkpoint')}, {path.stat().st_size:,} bytes\n" in listed
    assert listed.startswith("to: me/toy\nprivate: True\nfiles:\n")
    assert yaml.safe_load(head)["datasets"] == ["somebody/images"]
    assert hub == ({}, [])


def test_the_folder_is_uploaded_as_it_is(palindiff, root, hub):
    repositories, asked = hub
    code, out, err = palindiff("push", "--model", root / "checkpoint", "--to", "me/toy", "--private")
    assert (code, err) == (0, "")
    assert out.endswith("/me/toy/commit/main\n")
    files = [path for path in (root / "checkpoint").rglob("*") if path.is_file()]
    assert repositories["me/toy"] == {
        path.relative_to(root / "checkpoint").as_posix(): path.read_bytes() for path in files
    }
    assert ("visibility", "private") in asked


def test_a_refusal_of_the_hub_is_one_line(palindiff, root, hub):
    code, out, err = palindiff("push", "--model", root / "checkpoint", "--to", "stranger/toy")
    assert (code, out) == (2, "")
    assert err.startswith(f"palindiff: The Hub did not take `{root / 'checkpoint'}` as stranger/toy: 403 Forbidden")
    assert err.endswith(
        "You may not write here. Expected a name that your token may write to, and a network. Log in with "
        "`hf auth login`, or check --to.\n"
    )
    assert err.count("\n") == 1


def test_without_a_network_the_error_is_one_line(palindiff, root, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = palindiff("push", "--model", root / "checkpoint", "--to", "me/toy")
    assert code == 2
    assert "offline mode is enabled" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["toy", "me/toy/more", "me/", "me/a toy"])
def test_a_name_that_the_hub_cannot_have_is_refused(palindiff, root, hub, name):
    code, _, err = palindiff("push", "--model", root / "checkpoint", "--to", name, "--dry-run")
    assert code == 2
    assert f"--to is {name}. Expected OWNER/NAME as the Hub allows it" in err
    assert hub == ({}, [])


def test_a_folder_that_is_no_checkpoint_is_refused(palindiff, root, hub):
    code, _, err = palindiff("push", "--model", root / "base", "--to", "me/toy")
    assert code == 2
    assert "without `query_stream` and `query_scheduler`" in err
    assert hub == ({}, [])
