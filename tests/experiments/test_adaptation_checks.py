"""adaptation_checks.py: what would be lost or cannot work is refused; catalogues are in tests/cli/test_adapt.py."""

import pytest

from palindiff.experiments.adaptation_checks import check_output, check_settings
from palindiff.pretrained.unidiff_folders import RESULT_FOLDERS
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import load_recipe


@pytest.mark.parametrize("name", RESULT_FOLDERS)
def test_a_folder_that_no_run_wrote_is_not_replaced(tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(FileExistsError, match="no run of `palindiff adapt` lies beside it"):
        check_output(tmp_path / "out", str(tmp_path / "data"), ("CLIP", "SD"), has_begun=False)
    check_output(tmp_path / "out", str(tmp_path / "data"), ("CLIP", "SD"), has_begun=True)


@pytest.mark.parametrize("source", ["clip", "stable_diffusion/unet"])
def test_the_models_that_are_adapted_are_not_replaced(tmp_path, source):
    (tmp_path / source).mkdir(parents=True)
    for output in (tmp_path, tmp_path / "clip" / ".."):
        with pytest.raises(ValueError, match="would be replaced by the result"):
            check_output(output, str(tmp_path / "data"), ("CLIP", str(tmp_path / source)), has_begun=True)
    check_output(tmp_path / "other", str(tmp_path / "data"), ("CLIP", str(tmp_path / source)), has_begun=True)


@pytest.mark.parametrize("output", ["catalogue", "catalogue/adapted", "catalogue/../catalogue/a/b"])
def test_an_output_within_the_images_is_refused(tmp_path, output):
    (tmp_path / "catalogue").mkdir()
    with pytest.raises(ValueError, match="lies within the images"):
        check_output(tmp_path / output, str(tmp_path / "catalogue"), ("CLIP", "SD"), has_begun=False)
    check_output(tmp_path / "catalogue-adapted", str(tmp_path / "catalogue"), ("CLIP", "SD"), has_begun=False)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (["loop.batch_size=64", "loop.accumulation=3"], ValueError, "Expected a multiple of 3"),
        (['machine.log_with=["nowhere"]'], ValueError, "`machine.log_with` names 'nowhere'"),
        (["optimizer.kind=adamw_8bit"], ModuleNotFoundError, "Expected the extra `memory`"),
    ],
)
def test_what_training_would_refuse_is_refused_at_once(changes, error, sentence, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_settings(load_recipe(UniDiffRecipe, "adapt"))
    with pytest.raises(error, match=sentence):
        check_settings(load_recipe(UniDiffRecipe, "adapt", changes))
