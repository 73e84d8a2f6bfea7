"""What `add` and `query` share: the options of the model, and the model of an index."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from metah_runtime.cli import console
from metah_runtime.errors import BundleError, ConfigError, IndexMismatch
from metah_runtime.results import IndexLike

if TYPE_CHECKING:
    from metah_runtime.model.encoder import Encoder

BUNDLE = "bundle"
"""Key of an index's metadata: the absolute path of its model bundle."""

F = TypeVar("F", bound=Callable[..., Any])


def model_options(command: F) -> F:
    """Add --bundle, --device and --threads to a command."""
    for option in (
        click.option("--threads", type=int, help="CPU threads of the model [default: all cores]"),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="where the model runs: cpu, cuda, tensorrt or auto",
        ),
        click.option(
            "--bundle",
            type=click.Path(path_type=Path),
            help="model bundle [default: the one that the index was made with]",
        ),
    ):
        command = option(command)
    return command


def remembered(store: IndexLike) -> Path | None:
    """Return the bundle that an index was last added to with, None if it states none."""
    where = store.metadata.get(BUNDLE)
    return Path(where) if isinstance(where, str) else None


def open_encoder(
    index: Path,
    store: IndexLike | None,
    bundle: Path | None,
    device: str,
    threads: int | None,
    *,
    spin: bool = True,
) -> "Encoder":
    """Open the bundle given, or else the one that the index remembers; both must be one model.

    Raises ConfigError if there is neither, BundleError, BackendUnavailable, and IndexMismatch if
    the index holds codes of another model.
    """
    from metah_runtime.model.encoder import Encoder  # decoders and runners: not for --code

    where = bundle or (None if store is None else remembered(store))
    if where is None:
        raise ConfigError(f"{index} remembers no bundle; fix: --bundle BUNDLE")
    try:
        encoder = Encoder.open(where, device=device, threads=threads, spin=spin, warn=console.warn)
    except BundleError as error:
        if bundle is not None:
            raise
        raise BundleError(f"{error}; or --bundle BUNDLE if it has moved") from error
    if store is not None and store.fingerprint != encoder.fingerprint:
        theirs = store.fingerprint[:12] if store.fingerprint else "none"
        raise IndexMismatch(
            f"{index} holds codes of model {theirs}, bundle {where} is model "
            f"{encoder.fingerprint[:12]}: their codes cannot be compared; "
            "fix: --bundle with the model of the index, or another index"
        )
    return encoder
