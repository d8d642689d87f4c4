"""naming_option.py: values that a range without a maximum accepts are refused by every verb that has the option."""

import pytest

VERBS = {"generate": ("b",), "classify": ("a.png", "--labels", "b,c"), "rank": ("a.png", "--caption", "b")}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_guidance_scale_that_is_not_finite_is_refused(palindiff, verb, value):
    code, out, err = palindiff(verb, *VERBS[verb], "--guidance-scale", value, "--dry-run")
    assert (code, out) == (2, "")
    assert "Invalid value for '--guidance-scale'" in err
    assert ("inf is not finite. Expected a number" if value == "inf" else "greater than or equal to 1") in err
