"""Icon sets in Iconify's JSON format: `icons.json` with SVG bodies, `info.json` with author and licence.

Here: which folders hold a set, licences, and the SVG of an icon with its aliases, turns and mirroring applied. Not
here: which SVGs are drawn (`svg.py`), emoji (`emoji_styles.py`), a set as captioned images (`icon_folder.py`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, RootModel, StringConstraints, ValidationError

from palindiff.data.svg import SVG_OPENING

MAX_ICONS_BYTES = 256 * 2**20  # of icons.json; the largest set known has 100 MiB
MAX_FILE_BYTES = 16 * 2**20  # of each other file
MAX_ICONS = 100_000
MAX_ALIASES_IN_A_ROW = 8
LICENSES = "CC0, CC BY, CC BY-SA, MIT, Apache-2.0 or OFL"

_ALLOWED = re.compile(r"CC0-[\d.]+|CC-BY(-SA)?-[\d.]+(-[A-Z]{2,3})?|MIT|Apache-2\.0|OFL-[\d.]+((-no)?-RFN)?")
_FILES = ("icons.json", "info.json")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=200)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]*$", max_length=200)]
Side = Annotated[float, Field(ge=0.001, le=100_000)]
Place = Annotated[float, Field(ge=-100_000, le=100_000)]
FileT = TypeVar("FileT", bound=BaseModel)


class _Properties(BaseModel):
    """What an icon, an alias and a whole set may state; None: as the parent, or as the set."""

    left: Place | None = None
    top: Place | None = None
    width: Side | None = None
    height: Side | None = None
    rotate: int | None = None
    hFlip: bool | None = None
    vFlip: bool | None = None
    hidden: bool | None = None


class _Icon(_Properties):
    body: str


class _Alias(_Properties):
    parent: Name


class _Icons(BaseModel):
    prefix: Name
    icons: dict[Name, _Icon]
    aliases: dict[Name, _Alias] = {}
    left: Place = 0
    top: Place = 0
    width: Side = 16
    height: Side = 16


class _Named(BaseModel):
    name: Line


class _License(BaseModel):
    title: Line
    spdx: Line = ""


class _Info(BaseModel):
    prefix: Name
    name: Line
    author: _Named | Line
    license: _License


class _Characters(
    RootModel[dict[Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{1,8}(-[0-9a-fA-F]{1,8})*$")], Name]]
):
    pass


class _Metadata(BaseModel):
    prefixes: dict[str, str] = {}
    suffixes: dict[str, str] = {}


class _Package(BaseModel):
    name: Line
    version: Line = ""


@dataclass(frozen=True)
class Icon:
    """One drawing: an SVG body with its box, and how it is turned and mirrored; all names under which it is shown."""

    names: tuple[str, ...]  # the first is its own
    parent: str  # the name of the body, equal for all turned and mirrored copies of a drawing
    body: str
    box: tuple[float, float, float, float]  # left, top, width, height
    quarter_turns: int = 0  # clockwise, after mirroring
    is_mirrored: bool = False  # left and right exchanged
    is_upside_down: bool = False  # top and bottom exchanged
    is_hidden: bool = False  # kept for old programs only

    @property
    def svg(self) -> str:
        """The icon as a whole SVG file."""
        left, top, width, height = self.box
        steps = [
            ("", f"translate({height:.10g} 0) rotate(90)", f"translate({width:.10g} {height:.10g}) rotate(180)",
             f"translate(0 {width:.10g}) rotate(270)")[self.quarter_turns],
            f"translate({width:.10g} 0) scale(-1 1)" if self.is_mirrored else "",
            f"translate(0 {height:.10g}) scale(1 -1)" if self.is_upside_down else "",
            f"translate({-left:.10g} {-top:.10g})" if left or top else "",
        ]  # fmt: skip  # the last is applied first
        if self.quarter_turns % 2:
            width, height = height, width
        body = f'<g transform="{" ".join(filter(None, steps))}">{self.body}</g>' if any(steps) else self.body
        return f'{SVG_OPENING} viewBox="0 0 {width:.10g} {height:.10g}">{body}</svg>'


@dataclass(frozen=True)
class IconInfo:
    """What `info.json` says of a set, and where the set is."""

    folder: Path
    prefix: str
    title: str
    author: str
    license: str
    package: str

    @property
    def credit(self) -> str:
        """Author and licence of each image, as a row and ATTRIBUTION.txt state them."""
        return f"{self.title}, {self.author}, {self.license} (package {self.package})"


@dataclass(frozen=True)
class IconSet:
    """A set of icons, and the characters that some of them show."""

    info: IconInfo
    icons: tuple[Icon, ...]
    characters: dict[tuple[int, ...], str]  # code points -> name; empty if the set has no chars.json
    prefixes: tuple[str, ...] = ()  # parts of names that tell variants of one icon apart, such as a weight
    suffixes: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, Icon]:
        """Each icon by each of its names."""
        return {name: icon for icon in self.icons for name in icon.names}


def find_icon_sets(folder: Path) -> list[IconInfo]:
    """Find the set in a folder, or those in its direct sub-folders, in the order of their prefixes.

    Raises: FileNotFoundError if there is none; ValueError as `read_info`.
    """
    folders = (
        [folder] if (folder / _FILES[0]).is_file() else sorted(path.parent for path in folder.glob(f"*/{_FILES[0]}"))
    )
    if not folders:
        found = "holds no icons.json" if folder.is_dir() else "is not a folder"
        raise FileNotFoundError(
            f"`{folder}` {found}, and neither does a folder in it. Expected an icon package in Iconify's JSON format, "
            "or a folder of such packages. Install one with `npm install @iconify-json/noto` and pass "
            "`node_modules/@iconify-json`."
        )
    return sorted((read_info(each) for each in folders), key=lambda info: info.prefix)


def read_info(folder: Path) -> IconInfo:
    """Read the author and licence of a set.

    Raises: FileNotFoundError if there is no info.json; ValueError if it is damaged.
    """
    info = _read(folder / "info.json", _Info, MAX_FILE_BYTES)
    author = info.author if isinstance(info.author, str) else info.author.name
    package = _read_if_any(folder / "package.json", _Package, lambda: _Package(name=folder.resolve().name))
    named = f"{package.name} {package.version}".strip()
    return IconInfo(folder, info.prefix, info.name, author, info.license.spdx or info.license.title, named)


def check_license(info: IconInfo) -> None:
    """Check that the set's licence allows images to be shared with credit.

    Raises: ValueError for any other licence.
    """
    if not _ALLOWED.fullmatch(info.license):
        raise ValueError(
            f"`{info.folder}` has the licence `{info.license}` in info.json. Expected {LICENSES}, by its SPDX name. "
            "Use another package."
        )


def read_icon_set(info: IconInfo) -> IconSet:
    """Read all icons of a set.

    Raises: FileNotFoundError if a file is missing; ValueError if its licence is not allowed, a file is too large or
        damaged, or an alias leads to no icon.
    """
    check_license(info)
    file = info.folder / "icons.json"
    icons = _read(file, _Icons, MAX_ICONS_BYTES)
    if icons.prefix != info.prefix:
        raise ValueError(
            f"`{file}` has the prefix `{icons.prefix}`, and info.json beside it `{info.prefix}`. Expected one set. "
            "Install the package again."
        )
    if (number := len(icons.icons) + len(icons.aliases)) > MAX_ICONS:
        raise ValueError(f"`{file}` has {number:,} icons. Expected {MAX_ICONS:,} at most. Use a smaller package.")
    characters = _read_if_any(info.folder / "chars.json", _Characters, lambda: _Characters({})).root
    metadata = _read_if_any(info.folder / "metadata.json", _Metadata, _Metadata)
    return IconSet(
        info,
        _icons(icons, file),
        {tuple(int(point, 16) for point in points.split("-")): name for points, name in characters.items()},
        tuple(filter(None, metadata.prefixes)),
        tuple(filter(None, metadata.suffixes)),
    )


def _icons(file: _Icons, path: Path) -> tuple[Icon, ...]:
    """Apply all aliases: one that turns or resizes its parent is a drawing of its own, any other a further name."""
    names: dict[Icon, list[str]] = {}
    for name in dict.fromkeys([*file.icons, *file.aliases]):
        names.setdefault(_resolve(file, name, path), []).append(name)
    return tuple(replace(icon, names=tuple(of_one)) for icon, of_one in names.items())


def _resolve(file: _Icons, name: str, path: Path) -> Icon:
    """Follow a name to its body, and add up what the aliases on the way state: the nearest box, all turns."""
    parent, layers = name, list[_Properties]()
    while parent not in file.icons:
        if parent not in file.aliases or len(layers) == MAX_ALIASES_IN_A_ROW:
            raise ValueError(
                f"`{path}` is damaged: the alias `{name}` leads to no icon within {MAX_ALIASES_IN_A_ROW} steps. "
                "Expected an icon at the end. Install the package again."
            )
        alias = file.aliases[parent]
        layers.append(alias)
        parent = alias.parent
    icon = file.icons[parent]
    layers.append(icon)
    left, top, width, height = (
        next((value for layer in layers if (value := getattr(layer, key)) is not None), getattr(file, key))
        for key in ("left", "top", "width", "height")
    )
    return Icon(
        (),
        parent,
        icon.body,
        (left, top, width, height),
        sum(layer.rotate or 0 for layer in layers) % 4,
        sum(bool(layer.hFlip) for layer in layers) % 2 == 1,
        sum(bool(layer.vFlip) for layer in layers) % 2 == 1,
        bool(next((layer.hidden for layer in layers if layer.hidden is not None), False)),
    )


def _read_if_any(file: Path, model: type[FileT], default: Callable[[], FileT]) -> FileT:
    return _read(file, model, MAX_FILE_BYTES) if file.is_file() else default()


def _read(file: Path, model: type[FileT], max_bytes: int) -> FileT:
    """Read a JSON file of a package, of which only what `model` names is kept."""
    if not file.is_file():
        raise FileNotFoundError(f"`{file}` does not exist. Expected an icon package with {' and '.join(_FILES)}. "
                                "Install the package again.")  # fmt: skip
    with file.open("rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(
            f"`{file}` is larger than {max_bytes:,} bytes. Expected a package of usual size. Use another package."
        )
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        place = shorten(" > ".join(map(str, first["loc"])), 80, placeholder=" ...")
        raise ValueError(
            f"`{file}` is damaged: {place + ': ' if place else ''}{first['msg']}. Expected Iconify's JSON format. "
            "Install the package again."
        ) from error
