"""What tells whether the images of a split are those of an earlier time."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from metah_runtime.errors import DataError
from metah_train.data.base import SETS, FileImages, ImageSet, Split

ImageRecord = dict[str, dict[str, Any]]
"""Set -> its number of ``images`` and digests of ``names`` (and labels), ``contents``, ``times``.

``contents`` of files: their sizes; ``times``: when they were changed.
"""


def record_images(split: Split) -> ImageRecord:
    """Return the record of a split; raises DataError for a file that is gone."""
    return {name: _record(getattr(split, name)) for name in SETS}


def check_images(before: Mapping[str, Any], split: Split, what: str) -> str | None:
    """Compare a record of ``record_images`` with the split as it is now.

    Returns a warning if only the times of files differ, None if nothing does. Raises DataError if
    images were added, removed, renamed or changed in size; ``what`` was made with the images of
    ``before``.
    """
    now = record_images(split)
    for name in SETS:
        old, new = before.get(name), now[name]
        if not isinstance(old, Mapping):
            continue
        for key in ("images", "names", "contents"):
            if old.get(key) != new[key]:
                how = {
                    "images": f"{name} had {old.get('images')} images, has {new['images']}",
                    "names": f"names or labels of {name} differ",
                    "contents": f"images of {name} have another size or other pixels",
                }[key]
                raise DataError(
                    f"{what} was made with other images than {split.name} has now: {how}; "
                    "fix: restore the images, or start again in another folder"
                )
    touched = [name for name in SETS if before.get(name, now[name])["times"] != now[name]["times"]]
    if not touched:
        return None
    return f"image files of {', '.join(touched)} were changed, by their times, since {what} began"


def _record(images: ImageSet) -> dict[str, Any]:
    names, contents, times = (hashlib.sha256() for _ in range(3))
    for name in images.names:
        names.update(name.encode("utf-8", "surrogateescape") + b"\0")
    if images.labels is not None:
        names.update(images.labels.tobytes())
    if isinstance(images, FileImages):
        for path in images.paths:
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from None
            contents.update(b"%d\0" % status.st_size)
            times.update(b"%d\0" % status.st_mtime_ns)
    else:
        for start in range(0, len(images), 4096):
            rows = np.arange(start, min(start + 4096, len(images)))
            contents.update(images.load(rows).tobytes())
    digests = {"names": names, "contents": contents, "times": times}
    return {"images": len(images), **{k: v.hexdigest()[:32] for k, v in digests.items()}}
