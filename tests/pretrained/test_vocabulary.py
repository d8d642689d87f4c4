"""vocabulary.py: what a checkpoint answers if no label is given travels with it, and damaged files are refused."""

import json

import pytest

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.vocabulary import MAX_LABELS, VOCABULARY_FILE, Vocabulary, read_vocabulary, vocabulary_of
from toys.models import toy_pipeline


def test_the_vocabulary_is_that_of_the_classes():
    assert vocabulary_of(["b", None, "a", "b", ""], ("a {}",)) == Vocabulary(labels=("a", "b"), templates=("a {}",))
    assert vocabulary_of(["a", None], ("{}",)) is None
    assert vocabulary_of(map(str, range(MAX_LABELS + 1)), ("{}",)) is None


def test_it_is_saved_and_loaded_with_a_checkpoint(encoder_folder, tmp_path):
    pipeline = toy_pipeline(encoder_folder)
    pipeline.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / VOCABULARY_FILE).exists()
    assert PalindiffPipeline.from_pretrained(tmp_path / "without").vocabulary is None
    pipeline.vocabulary = Vocabulary(labels=("red", "blue"), templates=("{}",))
    pipeline.save_pretrained(tmp_path / "with")
    assert PalindiffPipeline.from_pretrained(tmp_path / "with").vocabulary == pipeline.vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Invalid JSON"),
        (json.dumps({"labels": ["a"], "templates": ["{}"]}).encode(), "at least 2 items"),
        (json.dumps({"labels": ["a", "b"], "templates": ["{}"], "run": "x"}).encode(), "Extra inputs"),
        (b" " * 16_000_001, "too large"),
    ],
)
def test_a_damaged_file_is_refused(content, message, tmp_path):
    (tmp_path / VOCABULARY_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot be read .*{message}.*Expected `labels` and `templates`"):
        read_vocabulary(tmp_path)
