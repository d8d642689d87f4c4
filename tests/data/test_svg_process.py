"""svg_process.py: the same images as in this process, and what remains when the renderer ends."""

import sys

import pytest

from palindiff.data import svg_process
from palindiff.data.svg import SVG_OPENING, SvgFault, draw_checked_svg
from palindiff.data.svg_process import SvgProcess

pytest.importorskip("resvg_py", reason="needs the extra `emoji`")

HALF = f'{SVG_OPENING} viewBox="0 0 8 8"><path fill="red" d="M0 0h4v8H0z"/></svg>'


@pytest.fixture
def renderer():
    with SvgProcess() as process:
        yield process


def end(renderer):
    """End the process as a crash does."""
    renderer._process.kill()
    renderer._process.wait()


@pytest.mark.parametrize("size_px", [8, 33])
def test_images_are_those_that_this_process_renders(size_px, renderer):
    for _ in range(2):
        drawn = renderer.draw(HALF, size_px)
        assert (drawn.size, drawn.tobytes()) == ((size_px, size_px), draw_checked_svg(HALF, size_px).tobytes())


def test_a_fault_has_its_reason_and_the_next_svg_is_drawn(renderer):
    for body, reason in (
        ("<script/>", "element script"),
        ("<path", "broken XML"),
        ("\ud800", "nothing to see on white"),
    ):
        with pytest.raises(SvgFault, match=f"^{reason}$"):
            renderer.draw(f"{SVG_OPENING}>{body}</svg>", 8)
    assert renderer.draw(HALF, 8).getpixel((1, 4)) == (255, 0, 0)


def test_a_crash_is_a_fault_and_the_next_svg_is_drawn(renderer):
    renderer.draw(HALF, 8)
    end(renderer)
    with pytest.raises(SvgFault, match=r"^renderer crashed$"):
        renderer.draw(HALF, 8)
    assert renderer.draw(HALF, 8).getpixel((1, 4)) == (255, 0, 0)


def test_an_svg_that_takes_too_long_counts_as_a_crash(renderer, monkeypatch):
    monkeypatch.setattr(svg_process, "MAX_SECONDS", 0.0)
    with pytest.raises(SvgFault, match=r"^renderer crashed$"):
        renderer.draw(HALF, 8)


def test_many_crashes_are_an_error(renderer, monkeypatch):
    monkeypatch.setattr(svg_process, "MAX_CRASHES", 2)
    for error, message in ((SvgFault, "renderer crashed"), (ValueError, "The SVG renderer crashed at 2 icons")):
        renderer.draw(HALF, 8)
        end(renderer)
        with pytest.raises(error, match=message):
            renderer.draw(HALF, 8)


def test_no_process_is_left_behind():
    with SvgProcess() as renderer:
        renderer.draw(HALF, 8)
        process = renderer._process
    assert process.returncode is not None


def test_a_missing_renderer_is_named_with_its_remedy(renderer, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"`resvg_py` is not installed.*pip install -e '\.\[emoji\]'"):
        renderer.draw(HALF, 8)


def test_nothing_of_the_working_folder_is_imported(renderer, monkeypatch, tmp_path):
    (tmp_path / "resvg_py.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert renderer.draw(HALF, 8).getpixel((1, 4)) == (255, 0, 0)
