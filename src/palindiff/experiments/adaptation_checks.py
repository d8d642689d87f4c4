"""What `palindiff adapt` refuses before it measures, trains or writes anything.

Here: catalogues, output folders and settings that cannot work. Not here: models that do not fit
(`training/recipes/build_unidiff.py`), single settings (`unidiff_recipe.py`).
"""

from collections.abc import Sequence
from pathlib import Path

from palindiff.data.rows import ImageSet
from palindiff.pretrained.unidiff_folders import RESULT_FOLDERS
from palindiff.training.loop.device import check_launch, check_trackers
from palindiff.training.loop.loop_config import check_shares
from palindiff.training.loop.optimizer import check_optimizer
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe

MIN_IMAGES = 16  # to train on; fewer teach nothing that validation could tell


def check_catalogue(training: ImageSet, validation: ImageSet) -> None:
    """Refuse a catalogue that nothing can be learned from, or measured on.

    Raises: ValueError.
    """
    if len(training) < MIN_IMAGES:
        raise ValueError(
            f"`{training.source}` has {len(training)} images to train on. Expected {MIN_IMAGES} or more. Add images, "
            "or use the models as they are."
        )
    captions = {caption for of_one, _ in training.texts() for caption in of_one}
    if len(captions) < 2:
        raise ValueError(
            f"All images of `{training.source}` have the same caption. Expected captions that differ: CLIP learns "
            "from their difference. Describe each image."
        )
    held_out = {of_one[0] for of_one, _ in validation.texts() if of_one}
    if len(held_out) < 2:
        raise ValueError(
            f"The {len(validation)} images held out of `{validation.source}` have {len(held_out)} different captions. "
            "Expected two or more, to measure retrieval. Add a split `validation`, or raise "
            "--set data.validation_fraction=0.2."
        )


def check_output(output: Path, data: str, sources: Sequence[str], has_begun: bool) -> None:
    """Refuse a folder of which something would be replaced that `palindiff adapt` did not write.

    data, sources: the paths or Hub names of the images and of both models; has_begun: whether a run lies there.
    Raises: ValueError, FileExistsError.
    """
    if Path(data).is_dir() and output.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(
            f"`{output}` lies within the images, `{data}`. Expected a folder elsewhere: its generated images would "
            "count as images of yours. Name another --output."
        )
    for name in RESULT_FOLDERS:
        target = output / name
        for source in sources:
            if Path(source).exists() and Path(source).resolve().is_relative_to(target.resolve()):
                raise ValueError(
                    f"`{source}` would be replaced by the result. Expected an output folder without it. Name another "
                    "--output."
                )
        if target.exists() and not has_begun:
            raise FileExistsError(
                f"`{target}` exists, and no run of `palindiff adapt` lies beside it. Expected a new folder, which "
                "nothing is lost in. Remove it or name another --output."
            )


def check_settings(recipe: UniDiffRecipe) -> None:
    """Refuse what training would refuse after the models were measured.

    Raises: ModuleNotFoundError, ValueError.
    """
    check_shares(recipe.loop, num_processes=1)
    check_optimizer(recipe.optimizer, is_sharded=False)
    check_launch(recipe.machine)
    check_trackers(recipe.machine.log_with)
