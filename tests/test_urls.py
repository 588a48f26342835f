"""Supported database URLs, and the reasons for refusing others."""

import pytest

from app.urls import parse_url, split_hosts
from tests.support.processes import render_url


@pytest.mark.parametrize(
    ("given", "normalized"),
    [
        ("sqlite:///database.db", "sqlite+aiosqlite:///database.db"),
        ("sqlite+aiosqlite:///database.db", "sqlite+aiosqlite:///database.db"),
        ("sqlite:////tmp/database.db", "sqlite+aiosqlite:////tmp/database.db"),
        ("postgres://h/d", "postgresql+asyncpg://h/d"),
        ("postgres+asyncpg://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql+asyncpg://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql://u:p%40%25%2F@h/d", "postgresql+asyncpg://u:p%40%25%2F@h/d"),
        ("postgresql:///d?host=/run/postgresql", "postgresql+asyncpg:///d?host=%2Frun%2Fpostgresql"),
        (
            "postgres://u:p@h/d?sslmode=require&channel_binding=require&application_name=x&options=-cgeqo%3Doff",
            "postgresql+asyncpg://u:p@h/d?sslmode=require&channel_binding=require&application_name=x&options=-cgeqo%3Doff",
        ),
    ],
)
def test_a_supported_url_is_normalized(given: str, normalized: str) -> None:
    assert render_url(parse_url(given)) == render_url(parse_url(normalized))
    assert parse_url(given).drivername == normalized.partition(":")[0]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "not a URL"),
        ("hunter2", "not a URL"),
        ("postgresql://u:hunter2@h:port/d", "not a URL"),
        ("mysql://u:hunter2@h/d", "'mysql'"),
        ("postgresql+psycopg://u:hunter2@h/d", "'psycopg'"),
        ("sqlite+pysqlite:///hunter2.db", "'pysqlite'"),
        ("postgresql://u:hunter2@h/d?sslmod=require", "'sslmod'"),
        ("postgresql://u:hunter2@h/d?sslmode=hunter2", "'sslmode' must be one of"),
        ("postgresql://u:hunter2@h/d?channel_binding=hunter2", "'channel_binding' must be one of"),
        ("postgresql://u:hunter2@x@h/d", "%40"),
        ("postgresql://u:hunter2@h:99999/d", "from 1 to 65535"),
        ("postgresql://u:hunter2@h:0/d", "from 1 to 65535"),
        ("postgresql:///hunter2?host=h&port=0", "from 1 to 65535"),
        ("postgresql:///hunter2?host=h&port=5432,x", "from 1 to 65535"),
        ("postgresql:///hunter2?host=h&port=\N{ARABIC-INDIC DIGIT FIVE}", "from 1 to 65535"),
        ("postgresql:///hunter2?host=h,i&port=1,", "from 1 to 65535"),
        ("postgresql:///hunter2?host=h,i&port=1,2,3", "one for each host"),
        ("postgresql://u:hunter2@h[/d?host=/x", "not a URL"),
        ("postgresql:///hunter2?host=h:x", "IPv6 address in brackets"),
        ("postgresql:///hunter2?host=::1", "IPv6 address in brackets"),
        ("postgresql:///hunter2?host=h,fd00::5&port=5432", "IPv6 address in brackets"),
        ("postgresql:///hunter2?host=h:1&host=i:99999", "from 1 to 65535"),
        ("postgresql://u:hunter2@h/d?options=-ca%3D1&options=-cb%3D1", "'options' is given twice"),
        ("sqlite://", ":memory:"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite:///file::memory:?cache=shared", "'cache'"),
        ("sqlite:///file:hunter2", ":memory:"),
        ("sqlite:///database.db?mode=memory", "'mode'"),
        ("sqlite://hunter2/database.db", "three slashes"),
        ("sqlite:////no/such/folder/hunter2.db", "folder that exists"),
        ("sqlite:////tmp", "folder that exists"),
        ("sqlite:////tmp/hunter2/", "folder that exists"),
    ],
)
def test_an_unsupported_url_is_refused_with_a_reason_that_does_not_contain_it(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        parse_url(url)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ("postgresql://u:p@h:1/d", ["postgresql://u:p@h:1/d"]),
        ("postgresql:///d?host=/run/postgresql", ["postgresql:///d?host=/run/postgresql"]),
        ("postgresql://u:p@h,i/d", ["postgresql://u:p@/d?host=h", "postgresql://u:p@/d?host=i"]),
        ("postgresql://u:p@h,i:7/d", ["postgresql://u:p@/d?host=h&port=7", "postgresql://u:p@/d?host=i&port=7"]),
        ("postgresql:///d?host=h:1&host=[::1]:2", ["postgresql:///d?host=h:1", "postgresql:///d?host=[::1]:2"]),
        ("postgresql:///d?host=h,i&port=1,2", ["postgresql:///d?host=h&port=1", "postgresql:///d?host=i&port=2"]),
        (
            "postgresql:///d?host=h&host=i&port=1&port=2",
            ["postgresql:///d?host=h&port=1", "postgresql:///d?host=i&port=2"],
        ),
        ("postgresql:///d?host=h,i&port=7", ["postgresql:///d?host=h&port=7", "postgresql:///d?host=i&port=7"]),
        (
            "postgresql:///d?host=h,i&target_session_attrs=primary",
            [
                "postgresql:///d?target_session_attrs=primary&host=h",
                "postgresql:///d?target_session_attrs=primary&host=i",
            ],
        ),
        (
            "postgresql:///d?host=h,i&target_session_attrs=prefer-standby",
            ["postgresql:///d?host=h,i&target_session_attrs=prefer-standby"],
        ),
    ],
)
def test_a_url_of_several_hosts_is_split_into_one_for_each(given: str, split: list[str]) -> None:
    assert [render_url(url) for url in split_hosts(parse_url(given))] == [render_url(parse_url(url)) for url in split]
