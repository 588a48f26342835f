"""Security: bearer tokens, each of a named caller, with the scopes `read` and `write`. Off where there are none.

`python -m app.security billing read+write` creates a token, and its entry for the setting.
"""

import hashlib
import hmac
import logging
import re
import secrets
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import Depends, FastAPI, HTTPException, Request, Security
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import Scope

from app.access_log import name_route
from app.logs import Repetitions

log = logging.getLogger(__name__)

READ_METHODS = {"GET", "HEAD"}
ENTRY = re.compile(r"([A-Za-z0-9._-]{1,64}):(read|write|read\+write|write\+read):([0-9A-Fa-f]{64})")
CREDENTIALS = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)  # RFC 6750, section 2.1
REALM = 'Bearer realm="api"'


class Caller(NamedTuple):
    """Who has sent a request, and what the token that was sent allows."""

    name: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class Token:
    """A token that is accepted. Several of one caller are for its rotation."""

    caller: Caller
    digest: bytes = field(repr=False)


class TokenBearer(HTTPBearer):
    """FastAPI's bearer scheme, which decides by its token whether a request may run.

    It is one dependency, because each one costs a request some 5 % of its CPU time.
    """

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        super().__init__(
            auto_error=False,
            scheme_name="bearer",
            description="A token of the operator. GET and HEAD need its scope `read`, everything else `write`.",
        )
        self._tokens = tokens
        self._refusals = Repetitions(log, limit=1)

    async def __call__(self, request: HTTPConnection) -> None:
        """Authorize a request of a router with this dependency. FastAPI calls it when the body is decoded."""
        if "caller" not in request.scope.get("state", {}):  # else an AdmissionRoute has done it on arrival
            self.authorize(request.scope)

    def authorize(self, scope: Scope) -> None:
        """Authorize a request, and keep its caller in its state.

        Raises:
            HTTPException: 401, it has no valid token; 403, the token does not have the scope.
        """
        sent = [value.strip() for name, value in scope["headers"] if name == b"authorization"]
        if not any(value.lower().startswith(b"bearer") for value in sent):  # RFC 6750: no error, nothing was tried
            raise self._refuse(scope, 401, "Send a bearer token in the Authorization header.", "no token", REALM)
        caller = self._authenticate(sent)
        if caller is None:
            challenge = f'{REALM}, error="invalid_token"'
            raise self._refuse(scope, 401, "The token is not valid.", "an invalid token", challenge)
        needed = "read" if scope.get("method") in READ_METHODS else "write"
        if needed not in caller.scopes:
            detail, reason = f"The token does not have the scope '{needed}'.", f"{caller.name} may not {needed}"
            raise self._refuse(scope, 403, detail, reason, f'{REALM}, error="insufficient_scope", scope="{needed}"')
        scope.setdefault("state", {})["caller"] = caller

    def _authenticate(self, sent: list[bytes]) -> Caller | None:
        """Return the caller with this token, in a time that does not depend on which one it is."""
        credentials = CREDENTIALS.fullmatch(sent[0]) if len(sent) == 1 else None
        if credentials is None:
            return None
        # No salt and no slow hash: a token has 256 random bits, so that nobody can try them out.
        digest = hashlib.sha256(credentials[1]).digest()
        found = [token.caller for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        return found[0] if found else None

    def _refuse(self, scope: Scope, status: int, detail: str, reason: str, challenge: str) -> HTTPException:
        """Count a refusal in the log, and return its exception."""
        if self._refusals.should_log(f"refused: {reason}"):
            log.warning("%s: refused: %s", name_route(scope), reason)
        return HTTPException(status, detail, {"WWW-Authenticate": challenge})


async def get_caller(request: Request) -> Caller | None:
    """Return who has sent a request. None without tokens, and on a router that needs none."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller


CallerDep = Annotated[Caller | None, Depends(get_caller)]


def install(app: FastAPI, tokens: tuple[Token, ...]) -> list[Dependency]:
    """Return the dependencies of a router that needs a token: none without tokens.

    `app.state.authorize` is for an `AdmissionRoute`: it takes the scope of a request, and is None if nothing is to do.
    """
    if not tokens:
        app.state.authorize = warn_if_exposed
        return []
    bearer = TokenBearer(tokens)
    app.state.authorize = bearer.authorize
    return [Security(bearer)]


def warn_if_exposed(scope: Scope) -> None:
    """Log once that there are no tokens, at the first request to an address that is not loopback.

    Only a request tells which address the server has. A Unix socket has no port.
    """
    host, port = scope.get("server") or ("", None)
    if port is not None and not is_loopback(host):
        scope["app"].state.authorize = None
        log.warning("Everyone who can connect to %s may read and write: set TOKENS or TOKENS_FILE.", host)


def is_loopback(host: str) -> bool:
    """Tell whether an address is loopback, or none at all: test clients have names."""
    try:
        return host.startswith("127.") or ip_address(host).is_loopback
    except ValueError:
        return True


def parse_tokens(text: str, separator: str = ",") -> tuple[Token, ...]:
    """Parse tokens, each as `name:scopes:hash`.

    Raises:
        ValueError: there is none, or one is malformed or there twice. The message has its number, and not itself.
    """
    tokens: dict[bytes, Token] = {}
    for number, entry in enumerate(map(str.strip, text.split(separator)), 1):
        if not entry or entry.startswith("#"):
            continue
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"entry {number} is not name:scopes:hash, as `python -m app.security` prints it")
        token = Token(Caller(match[1], frozenset(match[2].split("+"))), bytes.fromhex(match[3]))
        if token.digest in tokens:
            raise ValueError(f"entry {number} has the hash of an earlier one")
        tokens[token.digest] = token
    if not tokens:  # a secret that was lost on its way does not open the service
        raise ValueError("there is no token in it, and without any everyone could read and write")
    return tuple(tokens.values())


def read_tokens(path: str) -> tuple[Token, ...]:
    """Read a file with a token on each line. Empty lines and those that begin with # are ignored.

    Raises:
        ValueError: it can't be read, has no token, or one that is malformed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"the file can't be read: {reason}") from None
    return parse_tokens(text, "\n")


def main(arguments: list[str]) -> None:
    """Print a new token, and its entry for TOKENS or TOKENS_FILE.

    Raises:
        SystemExit: the arguments are not a name and scopes.
    """
    token = secrets.token_urlsafe(32)
    entry = ":".join([*arguments, hashlib.sha256(token.encode()).hexdigest()])
    if not ENTRY.fullmatch(entry):
        raise SystemExit("Usage: python -m app.security NAME read|write|read+write")
    print(f"token: {token}\nentry: {entry}")


if __name__ == "__main__":
    main(sys.argv[1:])
