"""Icon packages in Iconify's format at toy size."""

import json

DOT = '<path fill="currentColor" d="M0 0h8v16H0z"/>'  # the left half of a box of 16 x 16


def write_package(
    folder, prefix="noto", icons=("ok-hand",), aliases=None, characters=None, license="MIT", metadata=None, **more
):
    """Write a package; `icons` are names, or a dict of name -> what the icon states; `more` are keys of icons.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = icons if isinstance(icons, dict) else {name: {} for name in icons}
    files = {
        "icons.json": {
            "prefix": prefix,
            "icons": {name: {"body": DOT, **icon} for name, icon in stated.items()},
            "aliases": aliases or {},
            **more,
        },
        "info.json": {
            "prefix": prefix,
            "name": f"{prefix} icons",
            "author": {"name": "A. Drawer", "url": "https://example.org"},
            "license": {"title": license, "spdx": license, "url": ""},
        },
        "package.json": {"name": f"@iconify-json/{prefix}", "version": "1.2.3"},
        "chars.json": characters,
        "metadata.json": metadata,
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
