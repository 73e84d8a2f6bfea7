"""What an index is, in plain JSON and for people."""

from pathlib import Path
from typing import Any

from metah_runtime.index.snapshot import Snapshot


def describe(path: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Return the facts of one state of an index."""
    manifest = snapshot.manifest
    segments = [
        {
            "file": part.entry.codes.file,
            "codes": len(part),
            "removed": len(part.removed),
            "bytes": part.segment.length,
            "ids": [part.segment.first_id, part.segment.last_id],
            "stored_ids": part.segment.stored_ids is not None,
            "paths": part.segment.header.path_bytes is not None,
        }
        for part in snapshot.parts
    ]
    return {
        "path": str(path),
        "format": manifest.format,
        "version": manifest.version,
        "index_id": manifest.index_id,
        "generation": manifest.generation,
        "bits": manifest.bits,
        "codes": len(snapshot),
        "removed": sum(len(part.removed) for part in snapshot.parts),
        "bytes": sum(part.segment.length for part in snapshot.parts),
        "next_id": manifest.next_id,
        "fingerprint": manifest.fingerprint,
        "model": manifest.model,
        "metadata": dict(manifest.metadata),
        "segments": segments,
    }
