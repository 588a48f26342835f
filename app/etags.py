"""ETags: conditional requests, by the version of a row."""

import re
from typing import Any, TypeVar, cast

from fastapi import HTTPException
from sqlalchemy import Column, Delete, Select, Update, false
from starlette.datastructures import Headers

from app.inputs import INT64
from app.openapi import request_headers

Guarded = TypeVar("Guarded", bound=Select[Any] | Update | Delete)

MAX_ETAGS = 100
MEMBER = re.compile(r'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|$)')
VERSION = re.compile(r"[1-9][0-9]{0,18}")

IF_MATCH = ("Only if the row has one of these ETags, else 412.", '"1"')
# `openapi_extra` of operations that call `where_preconditions`, and of reads.
WRITE_PRECONDITIONS = request_headers(
    {"If-Match": IF_MATCH, "If-None-Match": ("Only if the row has none of these ETags, else 412.", '"1"')}
)
READ_PRECONDITIONS = request_headers(
    {"If-Match": IF_MATCH, "If-None-Match": ("Leave the body out if the row has one of these ETags.", '"1"')}
)


class PreconditionFailed(HTTPException):
    """412: the row's version is not one that If-Match and If-None-Match accept."""

    def __init__(self, version: int, headers: Headers) -> None:
        """Say which header it was. A change of the row is the reason that clients want to hear of first.

        The version may be newer than the one that the statement met: without If-None-Match, it was If-Match.
        """
        if "if-none-match" not in headers or not matches_if_match(version, headers):
            reason = "The resource has changed: no ETag in If-Match matches its current version."
        else:
            reason = "An ETag in If-None-Match matches the resource's current version."
        super().__init__(412, reason)


def format_etag(version: int) -> str:
    """Return the ETag of a version."""
    return f'"{version}"'


def read_list(headers: Headers, name: str) -> str | None:
    """Return a header whose lines are parts of one list, or None without it."""
    lines = headers.getlist(name)
    return ",".join(lines).strip() if lines else None


def parse_versions(header: str, *, weak: bool) -> set[int]:
    """Return the versions that a list of ETags names; of weak ETags only if those count. A malformed list has none."""
    versions, at = set(), 0
    while at < len(header):
        member = MEMBER.match(header, at)
        if member is None:
            return set()
        is_weak, tag = member.groups()
        if tag and VERSION.fullmatch(tag) and int(tag) <= INT64 and (weak or not is_weak):
            versions.add(int(tag))
        at = member.end()
    return versions


def accepted_versions(headers: Headers) -> set[int] | None:
    """Return the versions that If-Match accepts, None for all. More than `MAX_ETAGS` different ones accept none."""
    header = read_list(headers, "if-match")
    if header is None or header == "*":
        return None
    versions = parse_versions(header, weak=False)
    return versions if len(versions) <= MAX_ETAGS else set()


def where_preconditions(statement: Guarded, column: Column[int], headers: Headers) -> Guarded:
    """Restrict a statement to a row whose version If-Match and If-None-Match accept.

    In If-Match weak ETags, those of other servers and a malformed list match no version, as RFC 9110 says. With more
    than `MAX_ETAGS` versions in either header, there is no such row.
    """
    accepted, excluded = accepted_versions(headers), read_list(headers, "if-none-match")
    if accepted is not None:
        statement = cast(Guarded, statement.where(column.in_(accepted)))
    if excluded is not None:
        versions = parse_versions(excluded, weak=True)
        is_open = excluded != "*" and len(versions) <= MAX_ETAGS
        statement = cast(Guarded, statement.where(column.not_in(versions) if is_open else false()))
    return statement


def matches_if_match(version: int, headers: Headers) -> bool:
    """Tell whether If-Match accepts this version, or is not there."""
    accepted = accepted_versions(headers)
    return accepted is None or version in accepted


def matches_if_none_match(version: int, headers: Headers) -> bool:
    """Tell whether If-None-Match names this version, weak or strong."""
    known = read_list(headers, "if-none-match")
    return known is not None and (known == "*" or version in parse_versions(known, weak=True))
