"""Time of attention in bf16, forward and backward: torch's choice of a kernel against the plain kernel.

Run: python benchmarks/attention_backend.py [--rounds 15] [--threads 0] [--results results/attention_backend.json]

The two alternate, so that a slow phase of the machine affects both; the rows hold medians and their ratio.
`attention_backend` in `training/loop/device.py` follows the result.
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from palindiff.evaluation.results import Row, script_command, write_results

SITES = {"8x8 latents, 96 channels": (64, 3, 64, 32), "4x4 latents, 192 channels": (64, 6, 16, 32)}  # (b, heads, l, d)
BACKENDS = {"torch's choice": nullcontext, "plain": lambda: sdpa_kernel(SDPBackend.MATH)}


def time_once(shape: tuple[int, ...], backend: str, device: str) -> float:
    """Measure the seconds of one forward and backward pass of self-attention in bf16."""
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    wait(device)
    began = time.perf_counter()
    with BACKENDS[backend]():
        F.scaled_dot_product_attention(q, k, v).float().square().mean().backward()
    wait(device)
    return time.perf_counter() - began


def wait(device: str) -> None:
    """Wait for an accelerator to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(shape: tuple[int, ...], rounds: int, device: str) -> Row:
    """Return both medians in milliseconds, after one warm-up round, and their ratio."""
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for round_ in range(rounds + 1):
        order = list(BACKENDS) if round_ % 2 else list(BACKENDS)[::-1]
        for backend in order:
            times[backend].append(time_once(shape, backend, device))
    own, plain = (1e3 * statistics.median(taken[1:]) for taken in times.values())
    return {"torch_ms": round(own, 3), "plain_ms": round(plain, 3), "torch_over_plain": round(own / plain, 2)}


def main() -> None:
    """Measure every site, print the rows, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each kernel (default: 15)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's default (default: 0)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: cpu)")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    began = time.perf_counter()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [{"site": name, **measure(shape, args.rounds, args.device)} for name, shape in SITES.items()]
    print(json.dumps(rows, indent=2))
    if args.results:
        command = script_command(__file__)
        settings = {"device": args.device, "rounds": args.rounds, "threads": torch.get_num_threads()}
        write_results(args.results, rows, command, settings, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
