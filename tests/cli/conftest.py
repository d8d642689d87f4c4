"""The command `palindiff`, called in this process through its own door."""

import pytest
from accelerate.state import AcceleratorState

from palindiff.cli.main import main


@pytest.fixture
def palindiff(monkeypatch, capsys):
    """Run the command with arguments -> exit code, stdout, stderr."""

    def run(*arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr("sys.argv", ["palindiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return stopped.value.code or 0, told.out, told.err

    return run


@pytest.fixture
def cells():
    """Read a printed table's rows -> what each column holds, with what was folded over several lines joined."""

    def read(printed):
        lines = [line.strip("│").split("│") for line in printed.splitlines() if line.startswith("│")]
        return ["".join(part.strip() for part in column) for column in zip(*lines, strict=True)]

    return read
