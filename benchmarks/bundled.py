"""Tasks of `palindiff evaluate` on all splits of the emoji set, with the bundled model or any other.

Run: python benchmarks/bundled.py --data data/emoji [--model emoji] [--output DIR] [--results results/bundled.json]

One image of each concept, in each style; of concepts that were not in training, with country flags and without, and
with controls. Rerun the same command to resume.
"""

import argparse
import time
from pathlib import Path
from typing import get_args

from palindiff.cli.model_option import open_model
from palindiff.data.emoji import STYLES
from palindiff.data.sources import DataConfig
from palindiff.evaluation.launch import Launch
from palindiff.evaluation.named_data import NamedData
from palindiff.evaluation.records import Record
from palindiff.evaluation.results import Row, script_command, write_results
from palindiff.evaluation.run import Evaluation
from palindiff.evaluation.tasks import Control, EvaluationOptions, NamingSetting, Task
from palindiff.inference.embedder import PipelineEmbedder
from palindiff.pretrained.bundled import bundled_folder, bundled_models
from palindiff.training.training_cost import training_tflop

NAMING: tuple[Task, ...] = ("classification", "retrieval", "collapse")
WITH_CONTROLS: tuple[Task, ...] = (*NAMING, "controls")
TEMPLATES = ("a flat emoji of a {}", "an outlined emoji of a {}")
NO_FLAGS = "caption!=*the flag of *"
SUBSETS: dict[str, tuple[str, tuple[str, ...], tuple[Task, ...]]] = {  # name -> split, further conditions, tasks
    "training": ("train", (), NAMING),
    "validation": ("validation", (), NAMING),
    "composition": ("composition", (), NAMING),
    "unseen": ("test", (), WITH_CONTROLS),
    "unseen without flags": ("test", (NO_FLAGS,), NAMING),
}


def measure(model: str, data_dir: Path, output: Path) -> list[Row]:
    """Evaluate each subset in each style."""
    embedder = PipelineEmbedder(open_model(model))
    tflop = training_tflop(bundled_folder(model) if model in bundled_models() else Path(model))
    launch, rows = Launch(train_tflop=lambda: tflop), list[Row]()
    for name, (split, conditions, tasks) in SUBSETS.items():
        for style in STYLES:
            where = (f"style={style}", "is_representative=True", *conditions)
            data = NamedData(f"{name}, {style}", DataConfig(path=str(data_dir), split=split, where=where))
            options = EvaluationOptions(templates=TEMPLATES)
            evaluation = Evaluation(embedder, model, [data], tasks, [NamingSetting()], output, options, launch=launch)
            for record in evaluation.run():
                print(record.dataset, record.task, record.metrics, flush=True)
                labels: Row = {"subset": name, "split": split, "style": style, "task": record.task}
                rows += [{**labels, **row, **_parts(row, record)} for row in record.flat_rows()]
    return rows


def _parts(row: Row, record: Record) -> Row:
    """Divide a metric's name into the control and what it measures; "none" for the model itself."""
    metric = str(row["metric"])
    control = next((name for name in get_args(Control) if metric.startswith(f"{name}_")), "none")
    return {"control": control, "measure": metric.removeprefix(f"{control}_"), "chance": record.chance[metric]}


def main() -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="bundled model, or a checkpoint folder (default: emoji)")
    parser.add_argument("--data", type=Path, required=True, help="folder that `palindiff data emoji` wrote")
    parser.add_argument("--output", type=Path, default=Path("evaluations"), help="folder of the records")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = measure(args.model, args.data, args.output)
    if args.results:
        command = script_command(__file__)
        write_results(args.results, rows, command, {"model": args.model}, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
