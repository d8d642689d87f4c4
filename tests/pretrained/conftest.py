"""What the tests of layouts and single files share."""

import pytest

from palindiff.pretrained.stable_diffusion import load_base


@pytest.fixture(scope="session")
def refused():
    """Load a base that cannot work, and read the sentence that says why."""

    def load(error, *told, **call):
        with pytest.raises(error) as found:
            load_base(**call)
        sentence = str(found.value)
        assert "\n" not in sentence
        for part in told:
            assert part in sentence, sentence

    return load
