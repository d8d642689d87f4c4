"""labels.py: captions of labels; what is refused is shown through the pipeline in test_pipeline.py."""

from palindiff.inference.labels import check_labels, fill_templates


def test_templates_are_filled_label_by_label():
    assert fill_templates(["cat", "{dog}"], ["{}", "a {} or {}"]) == [
        "cat",
        "a cat or cat",
        "{dog}",
        "a {dog} or {dog}",
    ]


def test_labels_that_differ_in_case_alone_pass():
    check_labels(["cat", "Cat", "cats"], ["a {}"])
