"""Folders as img2dataset 1.47 leaves them: numbered tars with KEY.jpg, KEY.json and KEY.txt, and a report beside each.

Some rows failed to download, some images are grey, one is damaged, one caption is empty; the last archive may be one
whose download was killed. Its table of all rows, `NAME.parquet`, is left out where nothing reads it.
"""

import io
import json

from PIL import Image, ImageDraw

from toys.sources import COLOURS, write_tar

NOT_FOUND = "HTTP Error 404: Not Found"


def write_downloads(folder, num_shards=2, rows_per_shard=8, size_px=64, faults=(), is_killed=False):
    """Write a folder of shards; of each eight rows, row 3 was not found.

    `faults` of the first shard: "damaged" cuts the image of row 1, "empty" takes the caption of row 2 away, "twice"
    writes row 4's image twice. `is_killed`: the last shard ends in the middle and has no report.
    """
    for number in range(num_shards):
        members, fetched = {}, 0
        for row in range(rows_per_shard):
            key = f"{number:05d}{row:04d}"
            if row % 8 == 3:
                continue
            fetched += 1
            image = _jpeg(number * rows_per_shard + row, size_px, is_grey=row % 8 == 5)
            caption = f"a {COLOURS[row % len(COLOURS)]} shape {key}"
            if number == 0 and row == 1 and "damaged" in faults:
                image = image[: len(image) // 2]
            if number == 0 and row == 2 and "empty" in faults:
                caption = ""
            members |= _sample(key, image, caption)
            if number == 0 and row == 4 and "twice" in faults:
                members[f"{key}.2.jpg"] = image
        tar = write_tar(folder / f"{number:05d}.tar", members)
        if is_killed and number == num_shards - 1:
            tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
            tar.with_name(f"{number:05d}.parquet").write_bytes(b"")
        else:
            _write_report(folder / f"{number:05d}_stats.json", rows_per_shard, fetched)
    (folder / "_tmp").mkdir(exist_ok=True)  # left behind by a kill
    return folder


def _sample(key, image, caption):
    told = {"caption": caption, "url": f"http://example.com/{key}.jpg", "key": key, "status": "success",
            "error_message": None, "width": 256, "height": 256, "original_width": 900, "original_height": 700,
            "exif": "{}", "sha256": "0" * 64}  # fmt: skip
    return {f"{key}.jpg": image, f"{key}.json": json.dumps(told, indent=4).encode(), f"{key}.txt": caption.encode()}


def _jpeg(number, size_px, is_grey):
    image = Image.new("RGB", (size_px, size_px), COLOURS[number % len(COLOURS)])
    ImageDraw.Draw(image).ellipse([number % 7, 2, size_px // 2, size_px - 3], fill=(number * 37 % 256, 90, 200))
    stream = io.BytesIO()
    (image.convert("L") if is_grey else image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _write_report(path, count, fetched):
    failed = count - fetched
    told = {"count": count, "successes": fetched, "failed_to_download": failed, "failed_to_resize": 0,
            "duration": 1.5, "start_time": 1.0, "end_time": 2.5,
            "status_dict": {"success": fetched, NOT_FOUND: failed}}  # fmt: skip
    path.write_text(json.dumps(told, indent=4))
