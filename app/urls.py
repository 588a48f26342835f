"""URLs: the database URLs that the service supports."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

PORTS = range(1, 2**16)
HOST = re.compile(r"/.*|(?:[^\[\]:]*|\[[^\[\]]+\])(?::([0-9]+))?")  # a folder, or a name or an address and its port
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}

# The parameters of a URL that asyncpg reads with libpq's meaning. Where a set of values follows, others are refused at
# startup: asyncpg would refuse them too, but at every request.
POSTGRES_PARAMETERS: Mapping[str, frozenset[str] | None] = {
    "application_name": None,
    "channel_binding": frozenset({"disable", "prefer", "require"}),
    "host": None,
    "options": None,
    "passfile": None,
    "port": None,
    "sslcert": None,
    "sslcrl": None,
    "sslkey": None,
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "sslrootcert": None,
    "target_session_attrs": frozenset({"any", "primary", "standby", "read-write", "read-only", "prefer-standby"}),
}


def is_sqlite(url: URL) -> bool:
    """Tell whether the database is SQLite; otherwise it is Postgres."""
    return url.get_backend_name() == "sqlite"


def parse_url(text: str) -> URL:
    """Parse a database URL, in any of the forms that hosting companies use.

    Returns:
        The URL, with the driver that the service uses.

    Raises:
        ValueError: the URL is not supported. The message does not contain it.
    """
    try:
        url = make_url(text)
        urlsplit(url.render_as_string(hide_password=False))  # as asyncpg will read it
    except (ArgumentError, ValueError):
        raise ValueError(
            "not a URL such as sqlite:///database.db or postgresql://user:password@host:5432/name"
        ) from None
    name, _, driver = url.drivername.partition("+")
    if name not in DRIVERS:
        raise ValueError(f"the database {name!r} is not supported: use sqlite:// or postgresql://")
    url = url.set(drivername=DRIVERS[name])
    if driver not in {"", url.get_driver_name()}:
        raise ValueError(f"the driver {driver!r} is not supported: leave it out, or write {url.drivername}://")
    if is_sqlite(url):
        _check_sqlite(url)
    else:
        _check_postgres(url)
    return url


def split_hosts(url: URL) -> list[URL]:
    """Return a URL for each of the hosts of a Postgres URL."""
    hosts, ports = _hosts_and_ports(url)
    if len(hosts) == 1 or url.query.get("target_session_attrs") == "prefer-standby":  # which needs to know them all
        return [url]
    if len(ports) == 1:
        ports *= len(hosts)
    rest = {name: value for name, value in url.query.items() if name not in {"host", "port"}}
    return [
        URL.create(
            url.drivername,
            url.username,
            url.password,
            database=url.database,
            query={**rest, "host": host, **({"port": port} if port else {})},
        )
        for host, port in zip(hosts, ports, strict=True)
    ]


def _hosts_and_ports(url: URL) -> tuple[list[str], list[str]]:
    query = {name: ",".join(values) for name, values in url.normalized_query.items()}
    hosts, ports = url.host or query.get("host", ""), query.get("port", "") if url.port is None else str(url.port)
    return hosts.split(","), ports.split(",")


def _check_sqlite(url: URL) -> None:
    if url.query:
        raise ValueError(f"the parameter {next(iter(url.query))!r} is not supported: a SQLite URL takes none")
    if url.host:
        raise ValueError("a SQLite URL has three slashes before a relative path and four before an absolute one")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("a database in memory (:memory:) is not supported: name a file, as in sqlite:///database.db")
    path = Path(url.database)
    if url.database.endswith("/") or not path.parent.is_dir() or path.is_dir():
        raise ValueError("not a path for a SQLite file: name a file in a folder that exists")


def _check_postgres(url: URL) -> None:
    for name, value in url.query.items():
        if name not in POSTGRES_PARAMETERS:
            raise ValueError(f"the parameter {name!r} is not supported: leave it out")
        allowed = POSTGRES_PARAMETERS[name]
        if allowed and value not in allowed:
            raise ValueError(f"the parameter {name!r} must be one of {', '.join(sorted(allowed))}")
        if not isinstance(value, str) and name not in {"host", "port"}:
            raise ValueError(f"the parameter {name!r} is given twice")
    hosts, ports = _hosts_and_ports(url)
    found = [] if url.host else [HOST.fullmatch(host) for host in hosts]
    if not all(found):
        raise ValueError("a host is a name or an address, and may have a port; write an IPv6 address in brackets")
    every_port = [match[1] for match in found if match and match[1]] + (ports if ports != [""] else [])
    if not all(port.isascii() and port.isdigit() and int(port) in PORTS for port in every_port):
        raise ValueError(f"the port must be from {PORTS[0]} to {PORTS[-1]}")
    if len(ports) not in {1, len(hosts)}:
        raise ValueError("give one port, or one for each host")
    if "@" in (url.host or ""):
        raise ValueError("write an @ in the user name or password as %40")
