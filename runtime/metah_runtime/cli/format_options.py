"""The options of export and import that say what the other side is."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def format_options(command: F) -> F:
    """Give a command the options --format (``kind``) and --table."""
    command = click.option(
        "--table", help="NAME or SCHEMA.NAME in pgvector, the collection in milvus"
    )(command)
    return click.option(
        "--format",
        "kind",
        help="faiss, npy, parquet, pgvector or milvus [default: by the suffix, or by postgresql://]",
    )(command)
