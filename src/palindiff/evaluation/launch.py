"""How an evaluation runs: its worker processes, its share of a launch, and whom it reports to.

Nothing here changes a number. Not here: options that do (`tasks.py`, `generation.py`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]  # what is computed, how many are done, of how many
WAIT_S = 1.0  # between two looks at whether other processes have written their parts


@dataclass(frozen=True)
class Launch:
    """One process of an evaluation; process 0 measures."""

    num_workers: int = 0  # processes that decode images
    process: int = 0
    num_processes: int = 1
    progress: Progress = lambda what, done, total: None
    warn: Callable[[str], None] = lambda sentence: None  # of images that were left out
    train_tflop: Callable[[], float | None] = lambda: None  # of the model's training, for the records


ALONE = Launch()
"""One process, which reports nothing"""


def wait_until(is_done: Callable[[], bool]) -> None:
    """Wait until the other processes of a launch have written their parts; the launcher stops all if one fails."""
    while not is_done():
        time.sleep(WAIT_S)
