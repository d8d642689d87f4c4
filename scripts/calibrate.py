"""Fit the temperature of a checkpoint's classification and write it into the checkpoint; training does so at its end.

Run: python scripts/calibrate.py CHECKPOINT --data DIR [--split validation] [--where CONDITION ...] [--num-images 500]
     [--template TEXT ...] [--results FILE.json]

For a checkpoint that another run wrote on the way, such as `best/`, or one from before temperatures.
"""

import argparse
import json
import time
from pathlib import Path

from palindiff.atomic import atomic_text
from palindiff.cli.model_option import open_model
from palindiff.data.conditions import evenly_spread
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.calibration import calibrate
from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationImages
from palindiff.evaluation.results import Row, script_command, write_results
from palindiff.pretrained.bundled import bundled_folder


def fit(model: str, folder: Path, data: DataConfig, num_images: int, templates: list[str]) -> Row:
    """Fit on images evenly spread over a split, write the temperature -> what `calibrate` reports.

    model: what `--model` takes, stored in `folder`.
    """
    path = folder / "query_stream" / "config.json"
    config = {"temperature": 1.0} | json.loads(path.read_text())  # older ones have none and would not load
    atomic_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    rows = open_images(data)
    rows = rows.select(evenly_spread(len(rows), num_images))
    captions, labels = [row.captions[0] for row in rows], [row.label for row in rows]
    images = EvaluationImages([row.source for row in rows], captions, labels)
    options = EvaluationConfig(templates=templates) if templates else EvaluationConfig()
    found = calibrate(open_model(model), images, options)
    if found is None:
        raise ValueError(
            f"All {len(rows)} images of `{data.path}` have one caption. Expected several. Use other data."
        )
    atomic_text(path, json.dumps(config | {"temperature": found["temperature"]}, indent=2, sort_keys=True) + "\n")
    return found | {"split": data.split}


def main(arguments: list[str] | None = None) -> None:
    """Fit, write, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint folder, or the name of a bundled model")
    parser.add_argument("--data", required=True, help="images as `data.path` of a recipe names them")
    parser.add_argument("--split", default="validation", help="(default: validation)")
    parser.add_argument("--where", action="append", default=[], help="a condition on the images, such as style!=noto")
    parser.add_argument("--num-images", type=int, default=500, help="at most, evenly spread (default: 500)")
    parser.add_argument("--template", action="append", default=[], help="prompt template with {}; repeatable")
    parser.add_argument("--results", type=Path, help="write the report to this file")
    args = parser.parse_args(arguments)
    began = time.perf_counter()
    is_folder = Path(args.checkpoint).is_dir()
    folder = Path(args.checkpoint) if is_folder else bundled_folder(args.checkpoint)
    data = DataConfig(path=args.data, split=args.split, where=tuple(args.where))
    report = fit(args.checkpoint, folder, data, args.num_images, args.template)
    print(json.dumps(report))
    if args.results:
        command = script_command(__file__)
        settings = {"where": args.where, "num_images": args.num_images, "templates": args.template}
        write_results(args.results, [report], command, settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
