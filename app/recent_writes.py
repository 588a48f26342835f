"""Recent writes: a client that has just written reads from the primary, because a replica may not have its write yet.

The client carries that itself, in a cookie that expires when every replica that is read from has the write.
"""

import re
from collections.abc import MutableMapping
from typing import Any

COOKIE = b"recent_write=1"
SET_COOKIE = "recent_write_cookie"  # the key in the state of a request
SAFE_METHODS = {"GET", "HEAD"}

# What a client without cookies can send, and a browser does when a page is reloaded.
NO_CACHE = re.compile(rb"(^|[\s,])(no-cache|max-age=0)($|[\s,])", re.IGNORECASE)


def may_read_replica(scope: MutableMapping[str, Any]) -> bool:
    """Tell whether a request may be answered from a replica."""
    if scope.get("method") not in SAFE_METHODS:
        return False
    return not any(
        (name == b"cookie" and COOKIE in value) or (name == b"cache-control" and NO_CACHE.search(value))
        for name, value in scope["headers"]
    )


def set_recent_write_cookie(scope: MutableMapping[str, Any], max_lag: int) -> None:
    """Let the response to a request set the cookie, for longer than a replica may be behind, in seconds."""
    state = scope.setdefault("state", {})
    # Clients count whole seconds, so it lives one longer.
    state[SET_COOKIE] = b"%s; Max-Age=%d; Path=/; HttpOnly; SameSite=Lax" % (COOKIE, max_lag + 1)


def recent_write_headers(state: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the headers that set the cookie, if the request with this state has written."""
    return [(b"set-cookie", state.pop(SET_COOKIE))] if SET_COOKIE in state else []
