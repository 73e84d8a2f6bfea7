"""Settings of a server: address, token, folder of pictures, and all limits."""

import ipaddress
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from metah_runtime.checks import usable_cores
from metah_runtime.errors import ConfigError
from metah_runtime.images.formats import MAX_PIXELS

MIB = 1 << 20

_TOKEN = re.compile(r"[!-~]{8,512}")
"""Visible ASCII: a header can carry it unchanged."""

_RANGES = {
    "port": (0, 65535),
    "max_body": (1024, 1 << 30),
    "max_pixels": (1, MAX_PIXELS),
    "max_batch": (1, 1024),
    "decoders": (1, 256),
}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One server. Sizes in bytes, times in seconds.

    token: that every request under /v1 and /metrics must bear, None for no check (loopback only).
    trusted_proxies: addresses and networks whose X-Forwarded-For names the client.
    images: folder below which the pictures of indexed images may be read, None for no thumbnails.
    base: path of that folder when the index was built, default its present one.
    max_body, max_pixels: of one image. max_k: neighbours in one answer. queue: requests at work
    or waiting; per_client: of them from one address. max_batch, max_wait: a model run takes up to
    so many images and waits so long for a second. timeout: from the whole body to the answer;
    decode_timeout: for decoding one image; body_timeout: for the body; header_timeout: for the
    head of a request. connections: open at once. decoders: processes that decode images.
    reload: between looks at the index's manifest. drain: for requests at work when the server is
    told to stop. Raises ConfigError.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    trusted_proxies: tuple[str, ...] = ()
    images: Path | None = None
    base: Path | None = None
    max_body: int = 16 * MIB
    max_pixels: int = 50_000_000
    max_k: int = 1000
    queue: int = 256
    per_client: int = 128
    max_batch: int = 32
    max_wait: float = 0.002
    timeout: float = 10.0
    decode_timeout: float = 3.0
    body_timeout: float = 20.0
    header_timeout: float = 10.0
    connections: int = 512
    decoders: int = field(default_factory=usable_cores)
    reload: float = 1.0
    drain: float = 10.0

    def __post_init__(self) -> None:
        for item in fields(self):
            option, value = item.name.replace("_", "-"), getattr(self, item.name)
            if item.type is int:
                _check_whole(option, value, *_RANGES.get(item.name, (1, 100_000)))
            elif item.type is float:
                _check_seconds(option, value, 0.0 if item.name == "max_wait" else 0.01)
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ConfigError(
                f"the token must be 8 to 512 visible ASCII characters, got {len(self.token)} "
                "characters; fix: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines and there is no token; "
                "fix: --token-file FILE, or --host 127.0.0.1"
            )
        if self.images is not None and not self.images.is_dir():
            raise ConfigError(f"--images {self.images}: no such folder")
        if self.base is not None and (self.images is None or not self.base.is_absolute()):
            raise ConfigError(
                f"--base must be the absolute path that --images had when the index was built, "
                f"got {str(self.base)!r}; fix: --images FOLDER --base /PATH"
            )

    @property
    def images_base(self) -> Path | None:
        """Absolute path of the folder of pictures in the index, symbolic links not resolved."""
        return self.base or (self.images and self.images.absolute())

    @property
    def max_memory(self) -> int:
        """Bytes of request bodies and picture files that may be in memory at once."""
        return 16 * self.max_body


def is_loopback(host: str) -> bool:
    """Return whether an address is a loopback address or the name localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"--{name} must be a whole number in {low}..{high}, got {value!r}")


def _check_seconds(name: str, value: object, low: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= 3600
    ):
        raise ConfigError(f"--{name} must be in {low}..3600 seconds, got {value!r}")
