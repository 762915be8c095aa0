"""Decides which requests reach the page: from this page only, to listed paths only.

Gradio serves files of the machine under several paths, for components that this page does not use.
None of those is listed, so that whatever Gradio allows, no such file can be requested. And the
values of its events may name files, which Gradio copies into its cache: these are refused, too.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

__all__ = ["EVENTS", "PREVIEW_POLICY", "SECURITY_HEADERS", "is_local", "plain_event", "refusal"]

EVENTS = "/gradio_api/queue/join"
"""Path of the page's events."""

_PATHS = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico)?"
    r"|/gradio_api/(startup-events|app_id|heartbeat/\w+|queue/join|queue/data)"
    r"|/(assets|static)/[\w./-]+"
    r"|/jobs(/[\w-]+(/(input|uploaded|preview|output))?)?"
)
_UPLOAD = re.compile(r"/jobs/[\w-]+/input")

_LARGEST_BODY = 2**20
"""Bytes of a request that is not an upload."""

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
PREVIEW_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'self'"
)
"""Content-Security-Policy of preview pages, which names of files come into."""

SECURITY_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every response, unless it sets them itself."""


def refusal(
    method: str, path: str, headers: Mapping[str, str], *, host: str
) -> tuple[int, str] | None:
    """Return the status and a sentence if a request is refused, else ``None``.

    Args:
        method: such as "GET".
        path: decoded path, without the query.
        headers: by their names in lower case.
        host: name or address that the server listens on.
    """
    if not _is_own_host(headers.get("host", ""), host):
        return 421, "this name does not belong to the page: use the address that rbvsr web printed"
    if _is_foreign(method, headers):
        return 403, "requests from other sites are refused"
    if not _PATHS.fullmatch(path) or ".." in path:
        return 404, "there is nothing at this address"
    length = headers.get("content-length", "")
    if method not in ("GET", "HEAD", "DELETE") or "transfer-encoding" in headers:
        if not re.fullmatch(r"\d{1,18}", length):
            return 411, "requests need a Content-Length"
        if int(length) > _LARGEST_BODY and not (method == "PUT" and _UPLOAD.fullmatch(path)):
            return 413, "the request is too large"
    return None


class _Event(msgspec.Struct, forbid_unknown_fields=True):
    """An event of the page as Gradio's scripts send it, restricted to plain values."""

    data: list[str | float | bool | None]
    fn_index: int
    session_hash: str
    event_data: None = None
    trigger_id: int | None = None


def plain_event(body: bytes) -> bytes | None:
    """Return an event, encoded again, if all its values are texts, numbers, booleans or nothing;
    else ``None``.

    It is encoded again as Gradio may understand an ambiguous one differently.
    """
    try:
        return msgspec.json.encode(msgspec.json.decode(body, type=_Event))
    except msgspec.DecodeError:
        return None


def is_local(host: str) -> bool:
    """Return whether an address is that of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_own_host(given: str, host: str) -> bool:
    """Return whether a Host header can be this server's.

    A page of another site whose name is made to lead to this machine sends that name.
    """
    try:
        name = urlsplit(f"//{given}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", host.lower(), socket.gethostname().lower())
    return True


def _is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether the page of another site has sent the request, other than by a link."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return True
    is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_link
