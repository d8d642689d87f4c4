"""downloads.py and the shards beside it: what becomes of each row of a list that img2dataset fetched."""

import json
from collections import Counter

import datasets
import pytest

from palindiff.data.downloads import read_downloads
from palindiff.data.images import decode_image
from palindiff.data.sources import DataConfig, find_shards, open_images
from toys.cc3m import NOT_FOUND, write_downloads
from toys.sources import sample, write_lines, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def open_folder(path, **settings):
    return open_images(DataConfig(path=str(path), **settings))


def test_reports_are_added_up_and_an_archive_without_one_is_counted(tmp_path):
    folder = write_downloads(tmp_path / "cc3m", num_shards=4, is_killed=True)
    found = read_downloads(sorted(folder.glob("*.tar")))
    assert (found.num_shards, found.num_without_report) == (4, 1)
    assert (found.num_listed, found.num_fetched) == (24, 21)
    assert found.failed == {"failed to download": 3}
    assert found.errors == {NOT_FOUND: 3}


def test_rows_that_a_report_does_not_explain_are_counted_too(tmp_path):
    tar = write_tar(tmp_path / "00000.tar", sample("a", "red"))
    told = {"count": 9, "successes": 1, "failed_to_download": 2, "failed_to_resize": 4}
    tar.with_name("00000_stats.json").write_text(json.dumps(told))
    found = read_downloads([tar])
    assert found.failed == {"failed to download": 2, "failed to resize": 4, "failed otherwise": 2}
    assert found.num_listed == found.num_fetched + found.failed.total() == 9


@pytest.mark.parametrize("report", ["", "{", "[]", '{"count": 3}', '{"successes": "many"}', None])
def test_what_is_no_report_counts_as_none(report, tmp_path):
    tar = write_tar(tmp_path / "00000.tar", sample("a", "red"))
    if report is not None:
        tar.with_name("00000_stats.json").write_text(report)
    found = read_downloads([tar])
    assert (found.num_without_report, found.num_listed) == (1, 0)


def test_each_row_of_a_download_is_usable_or_left_out_for_a_reason(tmp_path):
    folder = write_downloads(tmp_path / "cc3m", 3, faults=("damaged", "empty", "twice"), is_killed=True)
    with pytest.raises(
        ValueError, match=r"(?s)`000000002` in 00000\.tar: empty caption.*`00002\.tar`: archive cannot"
    ):
        open_folder(folder)
    rows = open_folder(folder, on_bad="skip")
    assert rows.reasons == {"empty caption": 1, "several members of a kind": 1, "archive cannot be read": 1}
    of_shard = [row.source.name.split("/")[0] for row in rows]
    assert (of_shard.count("00000.tar"), of_shard.count("00001.tar")) == (7 - 2, 7)
    assert 0 < of_shard.count("00002.tar") < 7, "what the killed download had finished is used"
    decoded = open_folder(folder, on_bad="skip", check_images=True)
    assert decoded.reasons == rows.reasons + Counter({"damaged image": 1})
    assert {decode_image(row.source).mode for row in decoded} == {"RGB"}, "grey ones too"


@pytest.mark.parametrize("train", ["cc3m/train", "cc3m"])
def test_validation_is_a_folder_of_its_own(train, tmp_path):
    write_downloads(tmp_path / train, 2)
    write_downloads(tmp_path / "cc3m" / "validation", 1)
    config = DataConfig(path=str(tmp_path / "cc3m"))
    assert [tar.name for tar in find_shards(config)] == ["00000.tar", "00001.tar"]
    assert len(open_images(config)) == 14
    assert len(open_folder(tmp_path / "cc3m", split="validation")) == 7


def test_splits_named_in_the_archives_of_one_folder_do_not_mix(tmp_path):
    for name in ("cc3m-train-0000", "cc3m-train-0001", "cc3m-validation-0000"):
        write_tar(tmp_path / "cc3m" / f"{name}.tar", sample(name, name))
    for split, number in (("train", 2), ("validation", 1)):
        captions = [row.captions[0] for row in open_folder(tmp_path / "cc3m", split=split)]
        assert len(captions) == number
        assert all(f"-{split}-" in caption for caption in captions)
    with pytest.raises(ValueError, match=r"no images of the split `test` \(splits found: train, validation\)"):
        open_folder(tmp_path / "cc3m", split="test")


def test_an_unsplit_folder_of_shards_has_no_validation(tmp_path):
    folder = write_downloads(tmp_path / "cc3m", 1)
    with pytest.raises(ValueError, match="no images of the split `validation`"):
        open_folder(folder, split="validation")


def test_only_tars_have_shards(tmp_path):
    root = write_lines(tmp_path / "set" / "train", [{"file_name": "a.png", "caption": "red"}], ["a.png"])
    assert find_shards(DataConfig(path=str(root.parent))) == []


def test_texts_are_those_of_the_rows(tmp_path):
    rows = open_folder(write_downloads(tmp_path / "cc3m", 2))
    assert list(rows.texts()) == [(row.captions, row.label) for row in rows]


def test_rows_found_damaged_later_are_left_out_and_counted(tmp_path):
    rows = open_folder(write_downloads(tmp_path / "cc3m", 1, faults=("empty",)), on_bad="skip")
    fewer = rows.without({0, 4})
    names = [row.source.name for row in rows]
    assert [row.source.name for row in fewer] == [names[row] for row in (1, 2, 3, 5)]
    assert list(fewer.texts()) == [(row.captions, row.label) for row in fewer]
    assert fewer.reasons == {"empty caption": 1, "damaged image": 2}
    assert fewer.left_out.startswith("3 of 7 rows of")
    assert len({rows.fingerprint, fewer.fingerprint, rows.without({0, 3}).fingerprint}) == 3
    assert rows.without({}) is rows
    with pytest.raises(ValueError, match="has no image that can be read"):
        rows.without(range(6))
