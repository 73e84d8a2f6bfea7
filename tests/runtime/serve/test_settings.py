"""What a server may be told, and what follows from where it listens."""

import math
from pathlib import Path
from typing import Any

import pytest

from metah_runtime.errors import ConfigError
from metah_runtime.serve.settings import ServerSettings, is_loopback

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("::ffff:192.168.1.4", False),
        ("localhost.example.org", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_other_machines_need_a_token(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone
    assert ServerSettings(host=host, token=TOKEN).host == host
    if alone:
        assert ServerSettings(host=host).token is None
    else:
        with pytest.raises(ConfigError, match=r"there is no token; fix: --token-file"):
            ServerSettings(host=host)


@pytest.mark.parametrize(
    "token", ["", "short", "with space in it", "tab\tin it....", "ümläut-token"]
)
def test_a_token_fits_a_header(token: str) -> None:
    with pytest.raises(ConfigError, match="8 to 512 visible ASCII characters"):
        ServerSettings(token=token)


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(ServerSettings(token=TOKEN))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("port", 65536, "--port must be a whole number in 0..65535, got 65536"),
        ("port", True, "--port"),
        ("max_body", 0, "--max-body must be a whole number"),
        ("max_pixels", 10**9, "--max-pixels must be a whole number in 1..89478485"),
        ("max_k", 0, "--max-k"),
        ("queue", 0, "--queue"),
        ("per_client", -1, "--per-client"),
        ("max_batch", 0, "--max-batch"),
        ("connections", 0, "--connections"),
        ("decoders", 0, "--decoders"),
        ("timeout", 0.0, "--timeout must be in 0.01..3600 seconds, got 0.0"),
        ("timeout", math.nan, "--timeout"),
        ("max_wait", -0.1, "--max-wait must be in 0.0..3600 seconds"),
        ("body_timeout", math.inf, "--body-timeout"),
        ("header_timeout", "1", "--header-timeout"),
        ("reload", 0.0, "--reload"),
        ("drain", 1e9, "--drain"),
    ],
)
def test_a_limit_out_of_range_is_refused(name: str, value: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        ServerSettings(**{name: value})


def test_the_folder_of_pictures_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        ServerSettings(images=tmp_path / "none")
