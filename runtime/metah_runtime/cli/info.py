"""metah-search info: what an index holds."""

from pathlib import Path

import click

from metah_runtime.cli import console
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@console.json_option
def info(index: Path, as_json: bool) -> None:
    """Show what INDEX holds. Reads headers only; `verify` reads everything.

    \b
    Examples:
      metah-search info photos.index
      metah-search info photos.index --json
    """
    with Index.open(index) as store:
        facts = store.info()
    if as_json:
        console.print_json(facts)
        return
    segments, domains = facts.pop("segments"), facts.pop("domains")
    detail, weight = facts.pop("detail_bits"), facts.pop("code_weight")
    if detail:
        facts["bits"] = f"{facts['bits']} + {detail} (hash code + detail code)"
        if weight > 1:
            facts["code weight"] = weight
    if domains["source"]:
        facts["codes"] = ", ".join(f"{n:,} of the {domain}" for domain, n in domains.items() if n)
    rows = [(key.replace("_", " "), _shown(key, value)) for key, value in facts.items()]
    console.print_table(["", ""], [*rows, ("segments", f"{len(segments):,}")])
    if segments:
        console.print_table(
            ["segment", "codes", "removed", "bytes", "ids", "paths"],
            [
                (
                    s["file"],
                    s["codes"],
                    s["removed"],
                    s["bytes"],
                    f"{s['ids'][0]}..{s['ids'][1]}",
                    "yes" if s["paths"] else "no",
                )
                for s in segments
            ],
        )


def _shown(key: str, value: object) -> str:
    if isinstance(value, int) and key not in ("version", "bits", "generation"):
        return f"{value:,}"
    return "-" if value is None else str(value)
