"""What `add` and `query` share: the options of the model, and the model of an index."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from metah_runtime.cli import console
from metah_runtime.domain import DOMAINS, TARGET, Domain
from metah_runtime.errors import BundleError, ConfigError, IndexMismatch
from metah_runtime.results import IndexLike
from metah_runtime.text import printable

if TYPE_CHECKING:
    from metah_runtime.index import Index
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


def domain_option(what: str) -> Callable[[F], F]:
    """Return what adds --domain to a command; what: whose domain it is."""
    return click.option(
        "--domain",
        type=click.Choice(DOMAINS),
        default=TARGET,
        show_default=True,
        help=f"of {what}; source: like the labelled images that the model was trained on",
    )


def remembered(store: IndexLike) -> Path | None:
    """Return the bundle that an index was last added to with, None if it states none."""
    where = store.metadata.get(BUNDLE)
    return Path(where) if isinstance(where, str) else None


def remember(store: "Index", encoder: "Encoder") -> None:
    """Note in an index the bundle that was used."""
    noted = {**store.metadata, BUNDLE: str(encoder.bundle.path.resolve())}
    if noted != store.metadata:
        store.set_metadata(noted)


def _is_mine(*paths: Path) -> bool:
    """Return whether all that is there of some paths belongs to this user."""
    return all(path.stat().st_uid == os.geteuid() for path in paths if path.exists())


def open_encoder(
    index: Path,
    store: IndexLike | None,
    bundle: Path | None,
    device: str,
    threads: int | None,
    *,
    spin: bool = True,
    domain: Domain = TARGET,
) -> "Encoder":
    """Open the bundle given, or else the one that the index remembers; both must be one model.

    A remembered bundle is used only if it and the index belong to this user: a model is code, and
    an index may come from anybody. Raises ConfigError if there is none to use, BundleError,
    BackendUnavailable, and IndexMismatch if the index holds codes of another model.
    """
    from metah_runtime.model.encoder import Encoder  # decoders and runners: not for --code

    where = bundle or (None if store is None else remembered(store))
    if where is None:
        raise ConfigError(f"{index} remembers no bundle; fix: --bundle BUNDLE")
    if bundle is None and store is not None and not _is_mine(index, where):
        model = (store.fingerprint or "none")[:12]
        raise ConfigError(
            f"{index} names a bundle ({printable(where)}, model {model}), and a model is code: "
            "it is used without being told only if index and bundle belong to you; "
            "fix: --bundle BUNDLE, with one that you trust"
        )
    try:
        encoder = Encoder.open(
            where, domain=domain, device=device, threads=threads, spin=spin, warn=console.warn
        )
    except BundleError as error:
        if bundle is not None:
            raise
        raise BundleError(f"{error}; or --bundle BUNDLE if it has moved") from error
    if store is not None and store.fingerprint != encoder.fingerprint:
        theirs = store.fingerprint[:12] if store.fingerprint else "none"
        if store.fingerprint is None:
            raise IndexMismatch(
                f"{index} does not say which model made its codes; fix: if it was bundle {where}, "
                f"import them again with --fingerprint {encoder.fingerprint}"
            )
        raise IndexMismatch(
            f"{index} holds codes of model {theirs}, bundle {where} is model "
            f"{encoder.fingerprint[:12]}: their codes cannot be compared; "
            "fix: --bundle with the model of the index, or another index"
        )
    return encoder
