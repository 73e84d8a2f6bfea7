"""metah-search card: the model card of a bundle."""

from pathlib import Path

import click

from metah_runtime.cli import console
from metah_runtime.errors import BundleError
from metah_runtime.model import card as cards
from metah_runtime.model.bundle import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@console.json_option
def card(bundle: Path, as_json: bool) -> None:
    """Show the model card of BUNDLE: data, method, scores, preprocessing, limits, licence.

    \b
    Examples:
      metah-search card model.bundle
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if as_json:
        facts = {
            "bundle": bundle,
            "fingerprint": opened.fingerprint,
            "bits": opened.bits,
            "precision": manifest.precision,
            "preprocess": opened.preprocess.to_dict(),
            "training": manifest.training,
            "parity": manifest.parity,
            "versions": manifest.versions,
        }
        console.print_json(facts)
        return
    if cards.FILE not in manifest.files:
        raise BundleError(
            f"{bundle} holds no {cards.FILE}: an earlier version wrote it; fix: export again"
        )
    for line in opened.read(cards.FILE).decode("utf-8", "backslashreplace").splitlines():
        click.echo(console.printable(line))
