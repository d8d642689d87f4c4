"""A function in a process of its own, which is forked and so has imported everything already."""

import multiprocessing
import os
import sys


def run_forked(output, function, *arguments):
    """Run a function in a forked process; `output` is a file for what it prints, on both streams.

    Returns: the exit code.
    """
    child = multiprocessing.get_context("fork").Process(target=_run, args=(output, function, arguments))
    child.start()
    child.join()
    return child.exitcode


def _run(output, function, arguments):
    with output.open("w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        function(*arguments)
