"""How web servers are asked: how long an answer may stay away, and where a redirect may lead.

aiohttp is an extra: it is imported where a web server is asked.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import fsspec

from patchsieve.pipeline.errors import UserError

# A stalled server is given up after this long without a byte; a whole object may take as long as it likes.
CONNECT_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 60.0

REDIRECT_HOSTS = "PATCHSIEVE_REDIRECT_HOSTS"
"""Environment variable: hosts that other hosts may redirect to, separated by commas; `*` for any."""

_PORTS = {"http": 80, "https": 443}


def client_options(protocols: Sequence[str]) -> dict[str, Any]:
    """What aiohttp's session is made with; the user's own settings of fsspec (`client_kwargs`) come on top."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    given: dict[str, Any] = {}
    for protocol in protocols:
        given.update(fsspec.config.conf.get(protocol, {}).get("client_kwargs", {}))
    return {"timeout": timeout, "trace_configs": [_redirects()], **given}


@functools.cache
def _redirects() -> Any:
    # One for all: fsspec knows a client by the options that it was made with.
    import aiohttp

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(_check_redirect)
    return config


async def _check_redirect(session: Any, context: Any, redirect: Any) -> None:
    """Raise UserError for a redirect that may not be followed."""
    await check_redirect(str(redirect.url), redirect.response.headers)


async def check_redirect(url: str, headers: Mapping[str, str]) -> None:
    """Raise UserError where an answer with these headers leads to a host that nobody named, or to this machine.

    Within a host any redirect may be followed, and from http to https; to others where `REDIRECT_HOSTS` lets it.
    """
    source = urlsplit(url)
    target = urlsplit(urljoin(url, headers.get("Location") or headers.get("URI") or ""))
    if _origin(source) == _origin(target):
        return
    if source.hostname == target.hostname and _ports(source, target) == (80, 443):
        return
    host = target.hostname or ""
    told = f"{source.scheme}://{source.netloc.rpartition('@')[2]} redirects to the host {host}"
    named = {name.strip() for name in os.environ.get(REDIRECT_HOSTS, "").split(",")}
    if not host or (host not in named and "*" not in named):
        raise UserError(f"{told}: give the URL there, or name the host in {REDIRECT_HOSTS}")
    for address in await _addresses(host):
        if address.is_loopback or address.is_link_local or address.is_unspecified:
            raise UserError(f"{told}, which is this machine or its link ({address}): refused")


def _ports(*urls: Any) -> tuple[int | None, ...]:
    return tuple(url.port or _PORTS.get(url.scheme) for url in urls)


def _origin(url: Any) -> tuple[str | None, int | None]:
    return url.hostname, _ports(url)[0]


async def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return []  # whoever asks it next says so
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
