"""benchmarks/: every file imports what exists, and says in its docstring how it is run."""

import pytest

from toys.by_path import ROOT, load_by_path


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_a_benchmark_can_be_run(file):
    module = load_by_path(file.relative_to(ROOT).as_posix())
    assert callable(module.main)
    assert f"benchmarks/{file.name}" in module.__doc__
