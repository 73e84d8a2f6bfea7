"""What makes an index agree with a folder: new, changed, moved and vanished files."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metah_runtime.catalogue.file_facts import Stamp, digest
from metah_runtime.catalogue.known_files import KnownFiles


@dataclass(frozen=True)
class SyncPlan:
    """Files by what is to be done with them.

    moved: known path -> new path of the same content; touched: another time but the same content;
    vanished: known, not there any more; same: how many are as they were.
    """

    new: list[str]
    changed: list[str]
    touched: list[str]
    moved: dict[str, str]
    vanished: list[str]
    same: int = field(default=0)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done, whatever becomes of vanished files."""
        return not (self.new or self.changed or self.touched or self.moved)


def plan_sync(
    known: KnownFiles,
    now: Mapping[str, Stamp],
    unreadable: Sequence[str] = (),
    *,
    checksum: bool = False,
) -> SyncPlan:
    """Compare known files with those that are there.

    now: the stamps of all that are there. unreadable: files and folders that could not be looked
    at; what is known below them has not vanished. checksum: compare the content of every file.
    """
    new = [path for path in now if path not in known]
    here = [path for path in now if path in known]
    suspects = here if checksum else known.maybe_changed(now)
    changed, others = known.changed_content(suspects)
    touched = others if not checksum else known.maybe_changed({p: now[p] for p in others})
    begins = tuple(f"{path.rstrip('/')}/" for path in unreadable)
    vanished = [
        path
        for path in known.paths
        if path not in now and path not in unreadable and not path.startswith(begins or ("\0",))
        and not os.path.lexists(path)
    ]  # fmt: skip
    moved = _moved(known, now, new, vanished)
    arrived = set(moved.values())
    return SyncPlan(
        new=[path for path in new if path not in arrived],
        changed=changed,
        touched=touched,
        moved=moved,
        vanished=[path for path in vanished if path not in moved],
        same=len(here) - len(changed) - len(touched),
    )


def _moved(
    known: KnownFiles, now: Mapping[str, Stamp], new: Sequence[str], vanished: Sequence[str]
) -> dict[str, str]:
    """Return vanished path -> new path of equal content; only files of equal size are read."""
    lost: dict[bytes, list[str]] = defaultdict(list)
    for path in vanished:
        if (content := known.digest(path)) is not None:
            lost[content].append(path)
    sizes = {known.size(path) for paths in lost.values() for path in paths}
    moved: dict[str, str] = {}
    for path in new:
        if now[path][0] in sizes and (content := digest(path)) is not None and lost.get(content):
            moved[lost[content].pop(0)] = path
    return moved
