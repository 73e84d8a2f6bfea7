"""metah-search serve: an index and its model behind HTTP, with a page."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from metah_runtime.cli import console
from metah_runtime.cli.model_options import model_options, open_encoder
from metah_runtime.errors import ConfigError, require
from metah_runtime.index import Index

F = TypeVar("F", bound=Callable[..., Any])

LIMITS = {
    "max-body": "bytes of an image",
    "max-pixels": "pixels of an image",
    "max-k": "neighbours in an answer",
    "queue": "requests at work or waiting; more get 503",
    "per-client": "of them from one address; more get 429",
    "max-batch": "images a model run",
    "max-wait": "seconds that an image waits for others while the model is idle",
    "timeout": "seconds from the whole body to the answer",
    "decode-timeout": "seconds to decode one image",
    "body-timeout": "seconds for the body of a request",
    "header-timeout": "seconds for the head of a request",
    "connections": "open at once; of one address three quarters of them",
    "decoders": "processes that decode images [default: all cores]",
    "reload": "seconds between looks at the index for a new version",
    "drain": "seconds for requests at work when told to stop",
}
"""Options that are fields of ServerSettings, which has their defaults and rules."""


def limit_options(command: F) -> F:
    """Add one option for each limit."""
    for name, text in reversed(LIMITS.items()):
        real = name.endswith("timeout") or name in ("max-wait", "reload", "drain")
        command = click.option(f"--{name}", type=float if real else int, help=text)(command)
    return command


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one")
@click.option("--token", help="what requests must bear; seen by all users of this machine")
@click.option("--token-file", type=click.Path(path_type=Path), help="take the token from FILE")
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="address or network of a proxy whose X-Forwarded-For names the client",
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="serve thumbnails of files below it"
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="path of that folder when INDEX was made [default: as --images]",
)
@click.option("--layout", help="what folders below --images mean, such as domain/label")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with path,label,domain")
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning, error")
@click.option("--json", "as_json", is_flag=True, help="print where it listens as JSON")
@limit_options
def serve(
    index: Path,
    bundle: Path | None,
    device: str,
    threads: int | None,
    host: str,
    port: int,
    token: str | None,
    token_file: Path | None,
    trusted_proxies: Sequence[str],
    images: Path | None,
    base: Path | None,
    layout: str | None,
    labels: Path | None,
    log_level: str,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Answer searches in INDEX over HTTP, and show a page at /.

    Listens on this machine alone unless --host says otherwise, which needs a token. New versions
    of INDEX are taken over without a pause. SIGTERM and Ctrl-C end it after the requests at work.

    \b
    metah-search serve photos.index --images photos/
    metah-search serve photos.index --host 0.0.0.0 --token-file token.txt
    curl -F image=@cat.jpg 'http://127.0.0.1:8000/v1/search?k=5'
    """
    require("fastapi", "uvicorn", "prometheus_client", "python_multipart")
    from metah_runtime.serve import logs, startup
    from metah_runtime.serve.labels import Labels, read_labels
    from metah_runtime.serve.run import listen, run, url
    from metah_runtime.serve.service import Service
    from metah_runtime.serve.settings import ServerSettings

    if log_level not in logs.LEVELS:
        raise ConfigError(f"--log-level must be one of {', '.join(logs.LEVELS)}, got {log_level!r}")
    settings = ServerSettings(
        host=host,
        port=port,
        token=_token(token, token_file),
        trusted_proxies=tuple(trusted_proxies),
        images=images,
        base=base,
        **{name: value for name, value in limits.items() if value is not None},  # type: ignore[arg-type]
    )
    facts = Labels(
        root=None if images is None else images.resolve(),
        base=settings.images_base,
        layout=tuple(layout.split("/")) if layout else (),
        table={} if labels is None else read_labels(labels),
    )
    with Index.open(index) as store:
        encoder = open_encoder(index, store, bundle, device, threads)
    with listen(host, port) as sock:
        logs.start(log_level)
        service = Service(index, encoder, settings, facts)
        for text in startup.warnings(service.versions.current.index, settings, facts):
            logs.log.warning(text)

        def ready() -> None:
            snapshot = service.versions.current.snapshot
            where = {"url": url(sock), "pid": os.getpid(), "codes": len(snapshot)}
            if as_json:
                console.print_json(where)
            else:
                console.say(f"{len(snapshot):,} codes of {encoder.code_format} at {url(sock)}")

        try:
            run(service, sock, ready)
        finally:
            logs.stop()


def _token(given: str | None, file: Path | None) -> str | None:
    if given is not None and file is not None:
        raise ConfigError("give --token or --token-file, not both")
    if file is None:
        return given
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file}: {error}") from None
