"""atomic.py: a reader sees the whole result or none, whatever goes wrong in between."""

import os
import stat
from pathlib import Path

import pytest

from palindiff.atomic import atomic_file, atomic_folder, atomic_text, check_writable, claim_folder


def names_in(folder):
    return sorted(each.name for each in folder.iterdir())


def test_folder_takes_its_name_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "runs" / "set") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "runs" / "set").exists()
    assert names_in(tmp_path / "runs") == ["set"]
    assert (tmp_path / "runs" / "set" / "a.txt").read_text() == "a"
    assert stat.S_IMODE((tmp_path / "runs" / "set").stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_building_fails(error, tmp_path):
    def build():
        with atomic_folder(tmp_path / "set") as folder:
            (folder / "a.txt").write_text("a")
            raise error("half way")

    with pytest.raises(error, match="half way"):
        build()
    assert names_in(tmp_path) == []


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "set").mkdir()
    with atomic_folder(tmp_path / "set") as folder:
        (folder / "a.txt").write_text("a")
    assert names_in(tmp_path / "set") == ["a.txt"]


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_there_is_never_overwritten(is_file, tmp_path):
    kept = tmp_path / "set" if is_file else tmp_path / "set" / "mine.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match=r"set` exists and is not empty\. Expected a new or empty folder"):
        atomic_folder(tmp_path / "set").__enter__()
    assert kept.read_text() == "mine"


def test_what_appears_meanwhile_is_never_overwritten(tmp_path):
    def build():
        with atomic_folder(tmp_path / "set") as folder:
            (folder / "a.txt").write_text("a")
            (tmp_path / "set").mkdir()
            (tmp_path / "set" / "of_another.txt").write_text("b")

    with pytest.raises(OSError, match="not empty"):
        build()
    assert names_in(tmp_path) == ["set"]
    assert names_in(tmp_path / "set") == ["of_another.txt"]


def test_folder_replaces_the_old_one_on_request(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old.txt").write_text("old")
    with atomic_folder(tmp_path / "set", replace=True) as folder:
        (folder / "new.txt").write_text("new")
        assert names_in(tmp_path / "set") == ["old.txt"]
    assert names_in(tmp_path) == ["set"]
    assert names_in(tmp_path / "set") == ["new.txt"]


def test_old_folder_stays_when_replacing_it_fails(tmp_path):
    def build():
        with atomic_folder(tmp_path / "set", replace=True) as folder:
            (folder / "new.txt").write_text("new")
            raise ValueError("half way")

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old.txt").write_text("old")
    with pytest.raises(ValueError, match="half way"):
        build()
    assert names_in(tmp_path) == ["set"]
    assert names_in(tmp_path / "set") == ["old.txt"]


def test_replacing_needs_nothing_to_replace(tmp_path):
    with atomic_folder(tmp_path / "set", replace=True) as folder:
        (folder / "new.txt").write_text("new")
    assert names_in(tmp_path) == ["set"]


def test_text_replaces_the_old_text(tmp_path):
    atomic_text(tmp_path / "a.json", "old")
    atomic_text(tmp_path / "a.json", "new: ä")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new: ä"
    assert names_in(tmp_path) == ["a.json"]


def test_old_text_stays_when_writing_fails(tmp_path):
    atomic_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_text(tmp_path / "a.json", "half \ud800")  # fails after the file beside was opened
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_written_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Images cannot be written to `.*file/cache` \(Not a directory\).* Set it\.$"):
        check_writable(tmp_path / "file" / "cache", "Images", "Set it.")
    check_writable(tmp_path / "new" / "cache", "Images", "Set it.")
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def test_a_folder_is_claimed_once_and_by_several_processes_alike(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    claim_folder(folder, "index.json", "{}", "Things")
    claim_folder(folder, "index.json", "another", "Things")
    assert (folder / "index.json").read_text() == "{}"
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".index.json.12").write_text("{")
    claim_folder(killed, "index.json", "{}", "Things")
    assert (killed / "index.json").is_file()
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.png").write_text("")
    with pytest.raises(
        ValueError, match=r"holds other files, such as `photo.png`. Expected a new folder, or one with"
    ):
        claim_folder(other, "index.json", "{}", "Things")
    assert [path.name for path in other.iterdir()] == ["photo.png"]
    raced = tmp_path / "raced"
    raced.mkdir()
    listed = Path.iterdir

    def list_while_another_process_writes(self):
        found = list(listed(self))
        (self / "index.json").write_text("{}")
        return [*found, self / "shard"]

    monkeypatch.setattr(Path, "iterdir", list_while_another_process_writes)
    claim_folder(raced, "index.json", "late", "Things")
    assert (raced / "index.json").read_text() == "{}"


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "link", replace=True) as folder:
            (folder / "a").write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "a").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_two_threads_may_write_one_file(tmp_path):
    with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1"  # the last to finish
