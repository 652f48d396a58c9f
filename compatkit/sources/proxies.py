"""Proxies, as the environment names them (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)."""

from __future__ import annotations

import base64
import os
from urllib.parse import SplitResult, urlsplit


def proxy_for(scheme: str, host: str) -> SplitResult | None:
    """The proxy for requests of that scheme to that host; None where they go straight."""
    if not any(name in os.environ for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")):
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or proxy_bypass(host):
        return None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    return parts if parts.scheme == "http" and parts.hostname else None


def login_of(proxy: SplitResult) -> dict[str, str]:
    """The header by which a user logs in to a proxy."""
    if not proxy.username:
        return {}
    login = f"{proxy.username}:{proxy.password or ''}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login).decode()}
