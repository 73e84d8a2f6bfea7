"""Connects to a Ray cluster, and only to one that asks every caller for its token.

Ray runs any code that a member sends, so access is controlled by its own token
(RAY_AUTH_MODE=token). METAH adds a clear error within seconds, and a check that callers without
the token are refused.
"""

import logging
import os
import socket
import subprocess
import sys
from typing import Any

from metah_runtime.errors import BackendUnavailable, ClusterError, require

NAMESPACE = "metah-search"
CONNECT_TIMEOUT = 10.0
"""Seconds in which the head must accept a connection."""

_TOKEN_FIX = (
    "fix: `ray get-auth-token --generate` on one machine, the same token (RAY_AUTH_TOKEN_PATH or "
    "~/.ray/auth_token) on all, RAY_AUTH_MODE=token for every `ray start` and here"
)

_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None, timeout=5)
except AuthenticationError:
    sys.exit(40)
sys.exit(41)
"""
_REFUSED, _ADMITTED = 40, 41


def connect(address: str | None = None) -> str:
    """Join a running Ray cluster as a client and return its address, HOST:PORT of the head.

    address: default RAY_ADDRESS, else the cluster of this machine. Raises MissingExtra,
    ClusterError for a cluster that does not run, has another token, or a client without one.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        raise ClusterError(f"RAY_AUTH_MODE is {mode!r}, METAH works with token alone; {_TOKEN_FIX}")
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # its C++ part writes to stderr
    require("ray")
    import ray

    if not hasattr(ray, "_raylet") or not hasattr(ray._raylet, "AuthenticationTokenLoader"):
        raise BackendUnavailable(
            f"ray {ray.__version__} knows no token; fix: pip install 'metah[ray]' (2.60 or newer)"
        )
    if ray.is_initialized():
        where = str(ray.get_runtime_context().gcs_address)
    else:
        where = _find(address)
        _check_reachable(where)
        _silence_errors_of_others()
        try:
            ray.init(
                address=where, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(
                f"cannot join the Ray cluster at {where}: {error.__cause__ or error}; "
                "fix: a node of it must run on this machine"
            ) from error
    if not token_mode():
        raise ClusterError(f"Ray was started in this process without its token; {_TOKEN_FIX}")
    return where


def token_mode() -> bool:
    """Tell whether this process sends and expects Ray's token."""
    from ray._raylet import AuthenticationMode, get_authentication_mode

    return bool(get_authentication_mode() == AuthenticationMode.TOKEN)


def require_token(address: str) -> None:
    """Raise ClusterError unless the cluster refuses a caller without a token. Takes a second."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{address} does not answer; fix: see `ray status`") from None
    if done.returncode == _ADMITTED:
        raise ClusterError(
            f"the Ray cluster at {address} lets callers in without a token, and whoever is in can "
            f"run any code; {_TOKEN_FIX}"
        )
    if done.returncode != _REFUSED:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"cannot tell whether {address} asks for a token: {reason[:200]}")


def _silence_errors_of_others() -> None:
    """Keep Ray from writing errors of the cluster to standard output, which is for results.

    Ray has no option for it: ``log_to_driver`` stops the logs of workers alone. Errors of our own
    requests are raised and do not come this way.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def _find(address: str | None) -> str:
    """Return HOST:PORT of the head; raise ClusterError if no cluster is known."""
    given = address or os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in given:
        raise ClusterError(f"--address {given}: give HOST:PORT of the head, without a protocol")
    if given != "auto":
        host, _, port = given.rpartition(":")
        if not host or not port.isdigit():
            raise ClusterError(f"--address must be HOST:PORT of the head, got {given!r}")
        return given
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found: Any = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if found is None:
        raise ClusterError(
            "no Ray cluster runs on this machine; fix: --address HOST:PORT, or `ray start --head` "
            "with RAY_AUTH_MODE=token"
        )
    return str(found)


def _check_reachable(address: str) -> None:
    """Raise ClusterError within seconds; Ray would retry for half a minute or end the process."""
    from ray._raylet import AuthenticationTokenLoader, GcsClient
    from ray.exceptions import AuthenticationError, RayError

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(
            f"no Ray cluster at {address} ({reason}); fix: --address HOST:PORT of its head"
        ) from None
    refuses = f"the Ray cluster at {address} refuses"
    try:
        held = AuthenticationTokenLoader.instance().has_token()
    except AuthenticationError:  # of a token file that cannot be read, too
        held = False
    if not held:
        raise ClusterError(f"{refuses}: there is no token here; {_TOKEN_FIX}")
    try:
        GcsClient(address=address).internal_kv_keys(b"", namespace=None, timeout=CONNECT_TIMEOUT)
    except AuthenticationError:
        raise ClusterError(f"{refuses}: its token is another one; {_TOKEN_FIX}") from None
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"the Ray cluster at {address} does not answer: {reason}") from None
