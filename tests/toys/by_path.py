"""Programs of the repository that lie in no package: benchmarks/ and scripts/."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load_by_path(name):
    """Import `benchmarks/NAME.py` or `scripts/NAME.py` by its path."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
