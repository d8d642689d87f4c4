"""fidelity.py: torch-fidelity is imported without torchvision, of which nothing remains."""

import subprocess
import sys

import pytest

from palindiff.evaluation import fidelity
from toys.image_features import needs_torch_fidelity


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(fidelity, "PACKAGE", "no_such_package_of_distances")
    with pytest.raises(ModuleNotFoundError, match="Install it with `pip install --no-deps torch-fidelity`"):
        fidelity.load_torch_fidelity.__wrapped__()
    assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]


@needs_torch_fidelity
def test_nothing_of_torchvision_remains_and_no_other_package_sees_it():
    code = (
        "import sys, torch\nfrom palindiff.evaluation.fidelity import fidelity_module\nbefore = set(sys.modules)\n"
        "print(fidelity_module('metric_kid').KEY_METRIC_KID_MEAN)\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print('torchvision' in new, new & {'transformers', 'diffusers', 'timm'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["kernel_inception_distance_mean", "False set()"]


@needs_torch_fidelity
def test_a_torchvision_that_is_imported_already_is_left_alone(monkeypatch):
    theirs = type(sys)("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", theirs)
    with fidelity._stand_ins_for_torchvision():
        assert sys.modules["torchvision"] is theirs
    assert sys.modules["torchvision"] is theirs
