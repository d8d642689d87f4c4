"""Time of attention in bf16, forward and backward: torch's choice of a kernel against the plain kernel.

Run: python benchmarks/attention_backend.py [--rounds 15] [--threads 0]. The two alternate, so that a slow phase of the
machine affects both; medians and their ratio are printed as JSON. `attention_backend` in `training/loop/device.py`
follows the result.
"""

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def measure(shape: tuple[int, ...], rounds: int, device: str) -> dict[str, float]:
    """Return both medians in milliseconds, after one warm-up round, and their ratio."""
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for round_ in range(rounds + 1):
        order = list(BACKENDS) if round_ % 2 else list(BACKENDS)[::-1]
        for backend in order:
            times[backend].append(time_once(shape, backend, device))
    medians = {f"{backend}, ms": 1e3 * statistics.median(taken[1:]) for backend, taken in times.items()}
    own, plain = medians.values()
    return {name: round(value, 3) for name, value in medians.items()} | {"own / plain": round(own / plain, 2)}


def main() -> None:
    """Measure every site and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each kernel (default: 15)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's default (default: 0)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: cpu)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    sites = {name: measure(shape, args.rounds, args.device) for name, shape in SITES.items()}
    print(json.dumps({"device": args.device, **machine, "rounds": args.rounds, "sites": sites}, indent=2))


if __name__ == "__main__":
    main()
