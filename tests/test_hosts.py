"""A URL of several hosts: the first that accepts is used, and asked first from then on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack

import asyncpg
import pytest
from sqlalchemy import URL

from app.hosts import Hosts
from app.pooler import connect_to_server
from tests.support.processes import free_port
from tests.support.relay import Relay, relay

TIMEOUT = 5.0  # seconds, for all hosts together


def hosts(url: URL, *ports: int, connect: Callable[..., Awaitable[asyncpg.Connection]] = connect_to_server) -> Hosts:
    """Return the hosts of a URL of these ports."""
    query = {"host": ",".join("127.0.0.1" for _ in ports), "port": ",".join(map(str, ports))}
    named = URL.create("postgresql", url.username, url.password, database=url.database, query=query)
    return Hosts(named, connect, TIMEOUT)


@pytest.fixture
async def relays(postgres: URL) -> AsyncIterator[tuple[Relay, Relay]]:
    """Two ways to the same server."""
    with ExitStack() as stack:
        yield stack.enter_context(relay(postgres)), stack.enter_context(relay(postgres))


async def connect(found: Hosts) -> None:
    """Connect, and close the connection."""
    connection = await found.connect()
    await connection.close()


async def test_the_first_host_that_accepts_is_used(relays: tuple[Relay, Relay], postgres: URL) -> None:
    one, other = relays
    await connect(hosts(postgres, free_port(), one.port, other.port))
    assert (one.accepted, other.accepted) == (1, 0)


async def test_a_host_that_hangs_has_its_share_of_the_time(relays: tuple[Relay, Relay], postgres: URL) -> None:
    hanging, other = relays
    hanging.silence(new_too=True)
    await connect(hosts(postgres, hanging.port, other.port))
    assert other.accepted == 1


async def test_a_host_that_hangs_after_the_handshake_has_the_same_share(
    relays: tuple[Relay, Relay], postgres: URL
) -> None:
    hanging, other = relays

    async def connect_and_query(dsn: str) -> asyncpg.Connection:
        connection = await asyncpg.connect(dsn)
        hanging.silence()
        try:
            await connection.execute("SELECT 1")
        except BaseException:
            connection.terminate()
            raise
        return connection

    async with asyncio.timeout(TIMEOUT * 2):
        await connect(hosts(postgres, hanging.port, other.port, connect=connect_and_query))
    assert hanging.withheld
    assert other.accepted == 1


async def test_the_host_that_has_accepted_is_asked_first_the_next_time(
    relays: tuple[Relay, Relay], postgres: URL
) -> None:
    hanging, other = relays
    hanging.silence(new_too=True)
    found = hosts(postgres, hanging.port, other.port)
    await connect(found)
    hanging.passes_new = True
    await connect(found)
    assert (hanging.accepted, other.accepted) == (1, 2)


async def test_each_host_is_asked_once_with_the_password_after_any_number_of_connects(
    relays: tuple[Relay, Relay], postgres: URL
) -> None:
    asked: list[str] = []

    async def connect_or_refuse(dsn: str) -> asyncpg.Connection:
        if asked:
            asked.append(dsn)
            raise ConnectionRefusedError
        return await connect_to_server(dsn)

    url = postgres.set(username="postgres", password="hunter2")
    found = hosts(url, *(relay.port for relay in relays), connect=connect_or_refuse)
    for _ in range(3):
        await connect(found)
    asked.append("from now on")
    with pytest.raises(asyncpg.ClientCannotConnectError):
        await found.connect()
    assert ["hunter2" in dsn for dsn in asked[1:]] == [True, True]


async def test_the_error_says_why_each_host_was_not_used(relays: tuple[Relay, Relay], postgres: URL) -> None:
    hanging, _ = relays
    hanging.silence(new_too=True)
    with pytest.raises(asyncpg.ClientCannotConnectError, match=r"no answer in time; .*Refused"):
        await connect(hosts(postgres, hanging.port, free_port()))


@pytest.mark.parametrize("name", ["x" * 64, "xn--a..b"])
async def test_a_host_whose_name_dns_does_not_allow_is_not_used(
    relays: tuple[Relay, Relay], postgres: URL, name: str
) -> None:
    ports = f"{relays[0].port},{relays[0].port}"
    url = postgres.set(drivername="postgresql", query={"host": f"{name},127.0.0.1", "port": ports})
    await connect(Hosts(url, connect_to_server, TIMEOUT))
    assert relays[0].accepted == 1


async def test_a_host_in_another_role_is_not_used(relays: tuple[Relay, Relay], postgres: URL) -> None:
    url = postgres.set(query={"target_session_attrs": "standby"}, host="127.0.0.1", port=relays[0].port)
    with pytest.raises(asyncpg.ClientCannotConnectError, match="TargetServerAttributeNotMatched"):
        await connect(Hosts(url.set(drivername="postgresql"), connect_to_server, TIMEOUT))
