"""Domains of images: the target in use, and the source that the model was trained on with labels.

Codes of both are compared with each other; a model centres the features of each by its own mean.
"""

from typing import Any, Literal, TypeAlias, get_args

from metah_runtime.errors import ConfigError

Domain: TypeAlias = Literal["target", "source"]

DOMAINS: tuple[Domain, ...] = get_args(Domain)
TARGET: Domain = "target"


def check_domain(value: Any) -> Domain:
    """Return ``value`` if it is a Domain; else raise ConfigError."""
    if value not in DOMAINS:
        raise ConfigError(f"domain must be one of {', '.join(DOMAINS)}, got {value!r:.60}")
    found: Domain = value
    return found
