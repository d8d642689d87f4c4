"""formats.py: images by suffix or first bytes, and the names of formats that are not read."""

import io

import pytest
from PIL import Image

from palindiff.data import formats
from palindiff.data.formats import FORMATS, HEADER_BYTES, find_format, is_image_file, read_formats, unread_format
from palindiff.data.images import ImageFileError, decode_image
from toys.sources import encode, square

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\xff\x0a" + bytes(100)


@pytest.mark.parametrize("image_format", [name for name in FORMATS if name != "MPO"])
def test_every_format_that_is_read_is_recognised_by_its_first_bytes(image_format):
    assert find_format(square(image_format=image_format)[:HEADER_BYTES]) == image_format


def test_first_bytes_of_other_files_are_no_image():
    for header in (b"", b"caption", b"\x7fELF" + bytes(28), b"%PDF-1.7 and more of it", b"{", b"\0" * HEADER_BYTES):
        assert find_format(header) is None
    assert (find_format(HEIC[:HEADER_BYTES]), find_format(JXL[:HEADER_BYTES])) == ("HEIF", "JXL")
    assert find_format(b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf") == "AVIF"  # the brand that HEIF also has


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jfif", "a.pgm", "a", "a.image", "b.2", "a.PNG_"])
def test_images_are_found_whatever_their_suffix(name, tmp_path):
    (tmp_path / name).write_bytes(square(image_format="JPEG"))
    assert is_image_file(tmp_path / name)
    assert decode_image(tmp_path / name).size == (4, 4)


@pytest.mark.parametrize("name", [".a.png", "a.txt", "a.json", "notes", "notes.docx", "missing"])
def test_other_files_are_no_images(name, tmp_path):
    if name != "missing":
        (tmp_path / name).write_bytes(square() if name.startswith(("a.", ".a")) else b"notes")
    assert not is_image_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "remedy"),
    [
        ("a.heic", HEIC, "format HEIF; install the package pillow-heif"),
        ("a.jpg", HEIC, "format HEIF; install the package pillow-heif"),  # as phones rename them
        ("a.jxl", JXL, "format JXL; install the package pillow-jxl-plugin"),
        ("a.nef", square(image_format="TIFF"), "raw camera data, .nef; convert it to PNG or JPEG"),
        ("a.psd", b"8BPS" + bytes(30), "format .psd; convert it to PNG or JPEG"),
        ("a.svg", b"<svg/>", "format .svg; convert it to PNG or JPEG"),
    ],
)
def test_formats_that_are_not_read_are_named_with_what_would_read_them(name, data, remedy, tmp_path, without_plugins):
    (tmp_path / name).write_bytes(data)
    assert remedy in unread_format(name, data[:HEADER_BYTES])
    with pytest.raises(ImageFileError, match=rf"{name}` is not read \({remedy[:20]}"):
        decode_image(tmp_path / name)


def test_damaged_files_and_misnamed_ones_are_not_taken_for_another_format():
    assert unread_format("a.png", b"no image") is None
    assert unread_format("a.psd", square()[:HEADER_BYTES]) is None
    assert unread_format("a", b"") is None


@pytest.fixture
def without_plugins(monkeypatch):
    monkeypatch.setattr(formats, "_has_plugin", lambda name: False)


@pytest.fixture
def with_plugin(tmp_path, monkeypatch):
    """A module as pillow_heif is: it adds a format to PIL when it is asked to."""
    (tmp_path / "toy_plugin.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "def open_it(stream, name):\n"
        "    stream.seek(24)\n"
        "    import io\n"
        "    image = PngImagePlugin.PngImageFile(io.BytesIO(stream.read()))\n"
        "    image.format = 'HEIF'\n"
        "    return image\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', open_it, lambda header: header[4:12] == b'ftypheic')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(formats.PLUGINS, "HEIF", ("toy-plugin", "toy_plugin"))
    formats._has_plugin.cache_clear()
    opener, ids = Image.OPEN.get("HEIF"), list(Image.ID)
    yield
    Image.OPEN.pop("HEIF", None)
    Image.OPEN.update({"HEIF": opener} if opener else {})
    Image.ID[:] = ids
    formats._has_plugin.cache_clear()


@pytest.mark.parametrize(("image_format", "module"), [(name, each[1]) for name, each in formats.PLUGINS.items()])
def test_files_of_the_real_plugins_are_read(image_format, module, tmp_path):
    pytest.importorskip(module, reason=f"needs {formats.PLUGINS[image_format][0]}, a part of the extra `dev`")
    assert image_format in read_formats()  # registers the plugin
    data = encode(Image.new("RGB", (16, 24), "blue"), image_format)
    (tmp_path / "a").write_bytes(data)
    assert find_format(data[:HEADER_BYTES]) == image_format
    assert is_image_file(tmp_path / "a")
    red, green, blue = decode_image(tmp_path / "a").getpixel((3, 3))
    assert blue > 240 > 15 > max(red, green)


def test_formats_of_an_installed_plugin_are_read(with_plugin):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + encode(Image.new("RGB", (4, 4), "blue"))
    assert "HEIF" in read_formats()
    assert unread_format("a.heic", heic[:HEADER_BYTES]) is None
    assert decode_image(heic).getpixel((0, 0)) == (0, 0, 255)
    assert decode_image(io.BytesIO(heic).getvalue()).size == (4, 4)
