"""ETags: which version of a row a client has, and on which one its change may build."""

import re
from typing import Annotated, Any, TypeVar, cast

from fastapi import Header, HTTPException
from sqlalchemy import Column, Delete, Select, Update

Guarded = TypeVar("Guarded", bound=Select[Any] | Update | Delete)

MAX_TAGS = 100
MEMBER = re.compile(r'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|$)')
VERSION = re.compile(r"[1-9][0-9]{0,17}")

IfMatch = Annotated[
    tuple[str, ...],
    Header(description="Change the row only if it still has one of these ETags.", examples=[['"1"']]),
]
IfNoneMatch = Annotated[
    tuple[str, ...],
    Header(description="Leave the body out if the row has one of these ETags.", examples=[['"1"']]),
]


class PreconditionFailed(HTTPException):
    """412: the row is not the one that the client has seen."""

    def __init__(self) -> None:
        super().__init__(status_code=412, detail="It was changed since: its ETag is none of those in If-Match.")


def etag(version: int) -> str:
    """Write a version as a header has it."""
    return f'"{version}"'


def read_tags(lines: tuple[str, ...]) -> list[tuple[bool, str]]:
    """Read a list of tags: whether each is weak, and what is in its quotes. What is no such list has none."""
    header, tags, at = ",".join(lines), [], 0
    while at < len(header):
        member = MEMBER.match(header, at)
        if member is None:
            return []
        if member[2] is not None:
            tags.append((member[1] is not None, member[2]))
        at = member.end()
    return tags


def building_on(statement: Guarded, column: Column[int], if_match: IfMatch) -> Guarded:
    """Let a statement find its row only if it has one of the versions in If-Match.

    Weak tags, tags of others and what is no list of tags name no version: as RFC 9110 has it, then nothing is changed.
    Nor is it by a client that names more than `MAX_TAGS` versions: it has not seen them all.
    """
    if not if_match or ",".join(if_match).strip() == "*":
        return statement
    versions = {int(tag) for weak, tag in read_tags(if_match) if not weak and VERSION.fullmatch(tag)}
    return cast(Guarded, statement.where(column.in_(versions if len(versions) <= MAX_TAGS else ())))


def is_known(version: int, if_none_match: IfNoneMatch) -> bool:
    """Tell whether If-None-Match has this version, be it as a weak tag."""
    return ",".join(if_none_match).strip() == "*" or str(version) in {tag for _, tag in read_tags(if_none_match)}
