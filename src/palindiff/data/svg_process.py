"""Rendering in a process of its own, for SVGs that others wrote: the renderer aborts its process at some damaged ones.

Here: the process, its restart, and the time that an SVG may take. Not here: rendering and the check of an SVG
(`svg.py`), which this process runs.
"""

import os
import struct
import subprocess
import sys
import threading
from types import TracebackType
from typing import IO, BinaryIO

from PIL import Image

from palindiff.data.emoji_extra import import_package
from palindiff.data.svg import SvgFault, draw_checked_svg

MAX_SECONDS = 60.0  # for one SVG
MAX_CRASHES = 10  # of the process, before the package counts as damaged

_REQUEST = struct.Struct(">II")  # side in pixels, number of bytes of the SVG, which follow
_ANSWER = struct.Struct(">?I")  # whether it is drawn, number of bytes of the pixels or of the reason, which follow


class SvgProcess:
    """A process that renders one SVG after another; it is started with the first and ends with the `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._num_crashes = 0

    def __enter__(self) -> "SvgProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def draw(self, svg: str, size_px: int) -> Image.Image:
        """Render an SVG as `draw_checked_svg` does.

        Raises: SvgFault as `draw_checked_svg`, or if the renderer crashes or takes longer than MAX_SECONDS;
            ModuleNotFoundError if the renderer is not installed; ValueError at the last of MAX_CRASHES crashes.
        """
        if self._process is None:
            self._process = _start()
        data = svg.encode(errors="replace")
        timer = threading.Timer(MAX_SECONDS, self._process.kill)
        timer.start()
        try:
            is_drawn, answer = _exchange(self._process, size_px, data)
        except (OSError, EOFError) as error:
            self._stop()
            self._num_crashes += 1
            if self._num_crashes == MAX_CRASHES:
                raise ValueError(
                    f"The SVG renderer crashed at {MAX_CRASHES} icons. Expected an icon package that is complete. "
                    "Install the package again."
                ) from error
            raise SvgFault("renderer crashed") from error
        finally:
            timer.cancel()
        if not is_drawn:
            raise SvgFault(answer.decode())
        return Image.frombytes("RGB", (size_px, size_px), answer)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # waits, and closes the pipes
            self._process = None


def _start() -> "subprocess.Popen[bytes]":
    import_package("resvg_py")  # a missing package is an error of this process
    paths = os.pathsep.join(filter(None, sys.path))  # where this process found palindiff
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "palindiff.data.svg_process"],  # -P: nothing of the working folder is imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # of crashes
        env=os.environ | {"PYTHONPATH": paths},
    )


def _exchange(process: "subprocess.Popen[bytes]", size_px: int, svg: bytes) -> tuple[bool, bytes]:
    """Send an SVG, and wait for the answer.

    Raises: OSError or EOFError if the process ends.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(_REQUEST.pack(size_px, len(svg)) + svg)
    process.stdin.flush()
    is_drawn, length = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
    return is_drawn, _read(process.stdout, length)


def _read(stream: BinaryIO | IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the other process ended")
    return data


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Render each SVG that is requested, until there are no more requests."""
    while header := requests.read(_REQUEST.size):
        size_px, length = _REQUEST.unpack(header)
        try:
            answer, is_drawn = draw_checked_svg(_read(requests, length).decode(), size_px).tobytes(), True
        except SvgFault as fault:
            answer, is_drawn = str(fault).encode(), False
        answers.write(_ANSWER.pack(is_drawn, len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
