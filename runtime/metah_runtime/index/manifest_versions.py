"""The versions of a manifest: keys that version 2 added, and what a manifest without them says.

A state that needs none of these keys is written as version 1, which older programs read.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from metah_runtime.domain import TARGET

VERSIONS: Final = (1, 2)

_ADDED: Final[Mapping[str, Any]] = {"detail_bits": 0, "code_weight": 1, "base": None}
_ADDED_TO_SEGMENTS: Final[Mapping[str, Any]] = {"domain": TARGET, "attributes": None}


def needed_version(value: Mapping[str, Any]) -> int:
    """Return the first version that can say what the JSON object of a manifest says."""
    plain = all(
        item.get(key, default) == default for item, added in _parts(value) for key, default in added
    )
    return 1 if plain else 2


def to_version_1(value: dict[str, Any]) -> None:
    """Remove the keys that version 2 added."""
    for item, added in _parts(value):
        for key, _ in added:
            del item[key]


def from_version_1(value: dict[str, Any]) -> None:
    """Add the keys of version 2; raise ValueError if one is there."""
    for item, added in _parts(value):
        for key, default in added:
            if key in item:
                raise ValueError(f"unknown key {key}")
            item[key] = default


def _parts(value: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the manifest and its segments, each with the keys that were added and their values."""
    yield value, _ADDED.items()
    segments = value.get("segments")
    for segment in segments if isinstance(segments, list) else ():
        if isinstance(segment, dict):
            yield segment, _ADDED_TO_SEGMENTS.items()
