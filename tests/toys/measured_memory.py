"""Peak memory of a training run, measured in a process of its own."""

from toys.by_path import load_by_path

BENCHMARK = load_by_path("benchmarks/training_memory.py")
WITHOUT_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}  # in bf16 oneDNN keeps compiled ones, which no tensor holds


def measured_bytes(recipe_file, changes):
    """The whole loop, glibc told to hand freed memory back; large enough that an interpreter's own does not count."""
    environment = BENCHMARK.HAND_BACK | WITHOUT_KERNELS | {"CUDA_VISIBLE_DEVICES": ""}
    measured = BENCHMARK.measure_apart(str(recipe_file), list(changes), 2, environment)["bytes"]
    assert measured > 150e6
    return measured
