"""What the tests of several rooms stand on."""

import gc
import os
import threading

from tqdm import tqdm

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a forked child of a process with more threads may hang
tqdm.monitor_interval = 0  # no thread of its own, for the same reason
tqdm.set_lock(threading.RLock())  # its own lock is shared with forked children: one killed with it held stops all bars


def pytest_configure(config):
    """Load shared fixtures; not in the process that only hands out tests to others, whose start all wait for."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        config.pluginmanager.import_plugin("toys.fixtures")


def pytest_collection_modifyitems(items):
    """Begin with the slow tests, so that no worker is left with one while the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Leave what was imported out of garbage collection: it is most of the heap, and never garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
