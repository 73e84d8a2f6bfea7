"""Clients behind proxies that are trusted to name them in X-Forwarded-For."""

import ipaddress
from collections.abc import MutableMapping, Sequence
from typing import Any, TypeAlias

from starlette.datastructures import Headers

from metah_runtime.errors import ConfigError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """Addresses and networks of proxies; Raises ConfigError for what is neither."""

    def __init__(self, names: Sequence[str]) -> None:
        self._networks: list[Network] = []
        for name in names:
            try:
                self._networks.append(ipaddress.ip_network(name))
            except ValueError as error:
                raise ConfigError(
                    f"--trusted-proxy must be an address or a network, got {name!r:.60} ({error}); "
                    "fix: for example --trusted-proxy 10.0.0.0/8"
                ) from None

    def __contains__(self, address: object) -> bool:
        try:
            found = ipaddress.ip_address(str(address))
        except ValueError:
            return False
        return any(found in network for network in self._networks)

    def of_client(self, scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return a request's scope whose client is the one that the trusted proxies name.

        That is the last address in X-Forwarded-For that is no trusted proxy: what stands before it
        the client may have written itself. Without such, the client is who connected.
        """
        client = scope.get("client")
        if not self._networks or not client or client[0] not in self:
            return scope
        named = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
        for text in reversed(named):
            try:
                address = str(ipaddress.ip_address(text.strip()))
            except ValueError:
                break
            if address not in self:
                return {**scope, "client": (address, 0)}
        return scope
