"""The command `palindiff`, called in this process through its own door, and what `evaluate` is given."""

import json
from itertools import cycle, islice

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from palindiff.cli.main import main
from toys.models import toy_checkpoint


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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of toy size."""
    return toy_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Twelve images of three classes, two captions each."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    lines = []
    for i, label in enumerate(islice(cycle(["red", "green", "blue"]), 12)):
        Image.new("RGB", (8, 8), (20 * i, 90, 200 - 15 * i)).save(folder / f"{i:02d}.png")
        captions = [f"{label} {i}", f"number {i}"]
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "captions": captions, "label": label}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def evaluate(palindiff, model):
    """Run `palindiff evaluate` on the images with the toy checkpoint."""

    def run(*arguments, data="set", tasks=("retrieval", "classification")):
        chosen = [part for task in tasks for part in ("--task", task)]
        options = ("--output", "out", "--model", model, "--device", "cpu", *arguments)
        return palindiff("evaluate", "--data", data, *chosen, *options)

    return run


@pytest.fixture
def records(tmp_path):
    """Read the records of `evaluate` by file name."""
    return lambda: {path.name: json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*.json"))}
