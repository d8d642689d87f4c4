"""Whether a model's text diffusion uses its query: the evaluator `chain_use`, and recall by steps, guidance and seed.

Run: python benchmarks/chain_use.py --data data/emoji [--model emoji] [--results FILE.json]

On one image and caption of every unseen concept of the emoji set, in both styles. Each image is encoded once for all.
"""

import argparse
import time
from pathlib import Path

from palindiff.cli.model_option import open_model
from palindiff.data.emoji import STYLES
from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationImages, chain_use, retrieval
from palindiff.evaluation.results import Row, script_command, write_results
from palindiff.experiments.emoji_subsets import concept_images

SETTINGS = [  # naming steps, guidance scale, seed
    *((steps, scale, 0) for scale in (1.0, 4.0) for steps in (1, 8, 50)),
    (8, 1.0, 1),
]


def measure(model: str, data_dir: Path) -> list[Row]:
    """Measure both styles -> rows with `style`, and of retrieval with its settings."""
    pipeline, rows = open_model(model), []
    for style in STYLES:
        images = concept_images(data_dir, "test", style)
        z = pipeline.encode_latents([each.source for each in images])
        data = EvaluationImages(z, [each.captions[0] for each in images])
        rows += [{"style": style, **row} for row in chain_use(pipeline, data, EvaluationConfig())]
        for steps, scale, seed in SETTINGS:
            e_0_hat = pipeline.encode_image(z, steps, scale, seed)
            label = {"style": style, "naming_steps": steps, "naming_guidance_scale": scale, "seed": seed}
            found = retrieval(pipeline, EvaluationImages((), data.captions, (), e_0_hat), EvaluationConfig())
            rows += [label | row for row in found]
    return rows


def main() -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="bundled model, or a checkpoint folder (default: emoji)")
    parser.add_argument("--data", type=Path, required=True, help="folder that `palindiff data emoji` wrote")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = measure(args.model, args.data)
    for row in rows:
        print(row)
    if args.results:
        command = script_command(__file__)
        write_results(args.results, rows, command, {"model": args.model}, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
