"""ETags: conditional requests, by the version of a row."""

import re
from typing import Any, TypeVar, cast

from fastapi import HTTPException
from sqlalchemy import Column, Delete, Select, Update
from starlette.datastructures import Headers

from app.openapi import request_headers

Guarded = TypeVar("Guarded", bound=Select[Any] | Update | Delete)

MAX_ETAGS = 100
MEMBER = re.compile(r'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|$)')
VERSION = re.compile(r"[1-9][0-9]{0,17}")

# `openapi_extra` of operations that call `where_if_match` and `matches_if_none_match`.
IF_MATCH = request_headers(If_Match=("Change the row only if it still has one of these ETags.", '"1"'))
IF_NONE_MATCH = request_headers(If_None_Match=("Leave the body out if the row has one of these ETags.", '"1"'))


class PreconditionFailed(HTTPException):
    """412: the row has another version than the client has read."""

    def __init__(self) -> None:
        super().__init__(412, "The resource has changed: no ETag in If-Match matches its current version.")


def format_etag(version: int) -> str:
    """Return the ETag of a version."""
    return f'"{version}"'


def parse_etags(header: str) -> list[tuple[bool, str]]:
    """Parse a list of ETags: whether each is weak, and what is in its quotes. A malformed list has none."""
    etags, at = [], 0
    while at < len(header):
        member = MEMBER.match(header, at)
        if member is None:
            return []
        if member[2] is not None:
            etags.append((member[1] is not None, member[2]))
        at = member.end()
    return etags


def where_if_match(statement: Guarded, column: Column[int], headers: Headers) -> Guarded:
    """Restrict a statement to a row that has one of the versions in If-Match.

    Weak ETags, those of other servers and a malformed list match no version, as RFC 9110 says. Nor does a list of more
    than `MAX_ETAGS` versions.
    """
    lines = headers.getlist("if-match")
    if not lines or ",".join(lines).strip() == "*":
        return statement
    versions = {int(tag) for weak, tag in parse_etags(",".join(lines)) if not weak and VERSION.fullmatch(tag)}
    return cast(Guarded, statement.where(column.in_(versions if len(versions) <= MAX_ETAGS else ())))


def matches_if_none_match(version: int, headers: Headers) -> bool:
    """Tell whether If-None-Match names this version, weak or strong."""
    lines = headers.getlist("if-none-match")
    if not lines:
        return False
    return ",".join(lines).strip() == "*" or str(version) in {tag for _, tag in parse_etags(",".join(lines))}
