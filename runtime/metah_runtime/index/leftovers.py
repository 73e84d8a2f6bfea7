"""Files that interrupted writers left in the folder of an index."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metah_runtime.index.lock import CLAIM
from metah_runtime.index.manifest import FILE_NAME, NAME, Manifest, number_of

_TEMPORARY: Final = re.compile(r"\.(.*)\.[0-9a-f]{12}\.tmp")


@dataclass(frozen=True)
class Leftover:
    """A file of the folder that is not part of the index, though its name is of an index.

    number: of an index file, also of one that is not finished; generation: of a claim.
    """

    path: Path
    number: int | None = None
    generation: int | None = None

    def is_dead(self, manifest: Manifest) -> bool:
        """Return whether no writer whose base is this state, the newest one, can need it."""
        if self.number is not None:
            return self.number < manifest.next_file
        return self.generation is not None and self.generation <= manifest.generation


def find_leftovers(folder: Path, manifest: Manifest) -> list[Leftover]:
    """Return the files with names of an index that are not part of this state."""
    known = manifest.names() | {NAME}
    found = []
    for path in folder.iterdir():
        inner = _TEMPORARY.fullmatch(path.name)
        name = inner[1] if inner else path.name
        claim, file = CLAIM.fullmatch(name), FILE_NAME.fullmatch(name)
        if file and path.name not in known:
            found.append(Leftover(path, number=number_of(name)))
        elif claim:
            found.append(Leftover(path, generation=int(claim[1])))
        elif inner:
            found.append(Leftover(path))
    return found
