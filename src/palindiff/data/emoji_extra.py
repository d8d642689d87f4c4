"""Late import of the packages of the extra `emoji`.

Here: the import and what to do if a package is missing. Not here: what is read from them.
"""

import importlib
from types import ModuleType


def import_package(name: str) -> ModuleType:
    """Import a package of the extra.

    Raises: ModuleNotFoundError with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"Package `{name}` is not installed; images of emoji and icons are drawn with it. "
            "Expected the extra `emoji`. Install it with `pip install -e '.[emoji]'`."
        ) from missing
