"""Redis URLs: the meaning of each part, and their form for messages.

Parsed here only, so that no two clients read a URL differently. Knows no client:
`skynet/store/connection.py` opens connections, `skynet/chords/broker.py` is for Celery.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote

from skynet.errors import ConfigurationError

DEFAULT_HOST, PORT, SENTINEL_PORT = "localhost", 6379, 26379
TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ciphers",
)
OPTIONS = ("db", "username", "password")
SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password", "ssl")
CHECKS = ("required", "optional", "none")
FALSE = ("0", "false", "no", "n", "f")
FORMS = {
    "redis": "redis://USER:PASSWORD@HOST:6379/0",
    "rediss": "rediss://USER:PASSWORD@HOST:6379/0",
    "unix": "unix:///path/to/socket?db=0",
    "sentinel": "sentinel://USER:PASSWORD@HOST1:26379,HOST2:26379/MASTER?db=0",
}
ENCODE = "write %40 for @, %2F for /, %3F for ?, %23 for #, %25 for % and %20 for a space"

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:,@]*))(?::(\d{1,5}))?")
_AUTHORITY = re.compile(r"[^/?#]*")


@dataclass(frozen=True)
class RedisURL:
    """One Redis: a server, a Unix socket, or the master that Sentinels name.

    hosts: address of the server, or of each Sentinel; none for a socket.
    path: of the socket.
    master: name of the master, at the Sentinels.
    tls: redis-py's options of TLS; None for a plain connection.

    `str()` gives the URL without passwords.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    master: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: tuple[tuple[str, Any], ...] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> RedisURL:
        """Read a URL.

        Raises:
            ValueError: it cannot be used, and why; shows no piece of a password.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in FORMS:
            raise ValueError(
                f"{hide_password(text)!r} is not a Redis URL; use redis://, rediss:// (TLS), "
                "unix:///path/to/socket or sentinel://"
            )
        authority, path, query = _parts(scheme, rest)
        user, _, address = authority.rpartition("@")
        username, _, password = user.partition(":")
        options = _options(scheme, query)
        where = {
            "unix": _socket,
            "sentinel": _sentinels,
        }.get(scheme, _server)(scheme, address, path, options)
        return cls(
            scheme=scheme,
            username=unquote(username) or options.get("username"),
            password=unquote(password) or options.get("password"),
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
            tls=_tls(scheme, options),
            **where,
        )

    @classmethod
    def given(cls, text: str) -> RedisURL:
        """As `parse`, of a URL that a caller gave.

        Raises:
            ConfigurationError: it cannot be used, and why.
        """
        try:
            return cls.parse(text)
        except ValueError as error:
            raise ConfigurationError(f"Redis URL: {error}") from None

    def address(self) -> str:
        """Host and port, several with commas, or the path of the socket."""
        return self.path or ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )

    def __str__(self) -> str:
        user = f"{self.username or ''}{':***' if self.password else ''}"
        place = f"/{self.master}/{self.db}" if self.master else f"/{self.db}"
        if self.scheme == "unix":
            place = f"?db={self.db}" if self.db else ""
        return f"{self.scheme}://{user}{'@' if user else ''}{self.address()}{place}"


def hide_password(text: str) -> str:
    """The URL for messages: `redis://user:***@host`. Of a malformed one as little as is safe."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return f"***@{text.rpartition('@')[2]}" if "@" in text else text
    authority = _authority(rest)
    after = rest[len(authority) :]
    if authority and "@" in after:  # a password that is cut by a character of it
        return f"{scheme}://***@{after.rpartition('@')[2]}"
    after = re.sub(r"(?i)([?&][^=&]*password=)[^&#]*", r"\1***", after)
    user, separator, address = authority.rpartition("@")
    if not all(_HOST.fullmatch(host) for host in address.split(",")):
        return f"{scheme}://***{after}"
    name, colon, _ = user.partition(":")
    return f"{scheme}://{name}{':***' if colon else ''}{separator}{address}{after}"


def _authority(rest: str) -> str:
    match = _AUTHORITY.match(rest)
    return match[0] if match else ""


def _parts(scheme: str, rest: str) -> tuple[str, str, str]:
    """User and address, path, query."""
    authority = _authority(rest)
    path, _, query = rest[len(authority) :].partition("?")
    cut = "@" in query or ("@" in path and (authority or scheme != "unix"))
    if cut or "#" in rest or re.search(r"[\x00-\x20\x7f]", rest):
        raise ValueError(
            f"a special character of the password or path is not percent-encoded: {ENCODE}"
        )
    return authority, path, query


def _options(scheme: str, query: str) -> dict[str, str]:
    known = [*OPTIONS]
    known += TLS_OPTIONS if scheme in ("rediss", "sentinel") else ()
    known += SENTINEL_OPTIONS if scheme == "sentinel" else ()
    options: dict[str, str] = {}
    for name, value in parse_qsl(query):
        if name not in known:
            shown = repr(name) if re.fullmatch("[a-z_]{1,40}", name) else "of another name"
            raise ValueError(
                f"option {shown} is not supported in a {scheme}:// URL: use {', '.join(known)}"
            )
        options.setdefault(name, value)  # the first counts, as for redis-py
    return options


def _server(scheme: str, address: str, path: str, options: dict[str, str]) -> dict[str, Any]:
    return {"hosts": (_host(scheme, address, PORT),), "db": _database(path, options)}


def _socket(scheme: str, address: str, path: str, options: dict[str, str]) -> dict[str, Any]:
    if address or len(path) < 2:
        raise ValueError(f"no absolute path of a socket: write {FORMS[scheme]}")
    return {"path": unquote(path), "db": _database("", options)}


def _sentinels(scheme: str, address: str, path: str, options: dict[str, str]) -> dict[str, Any]:
    master, _, db = path.strip("/").partition("/")
    if not master or (master.isdecimal() and not db):
        raise ValueError(f"no name of the master: write {FORMS[scheme]}")
    hosts = tuple(_host(scheme, host, SENTINEL_PORT) for host in address.split(","))
    return {"hosts": hosts, "master": unquote(master), "db": _database(db, options)}


def _host(scheme: str, text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or int(match[3] or 1) not in range(1, 65536):
        _refuse_address(scheme)
    return unquote(match[1] or match[2] or DEFAULT_HOST), int(match[3] or default_port)


def _refuse_address(scheme: str) -> NoReturn:
    raise ValueError(
        f"no host and port that can be read: write {FORMS[scheme]}, an IPv6 address in brackets, "
        f"and special characters of a password percent-encoded: {ENCODE}"
    )


def _database(path: str, options: dict[str, str]) -> int:
    """`?db=`, or else the path, as redis-py reads them."""
    text = options.get("db", unquote(path).strip("/") or "0")
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(f"{text!r:.80} is not a database: write its number, 0 for the first")
    return int(text)


def _tls(scheme: str, options: dict[str, str]) -> tuple[tuple[str, Any], ...] | None:
    given: dict[str, Any] = {name: options[name] for name in TLS_OPTIONS if name in options}
    wanted = scheme == "rediss" or options.get("ssl", "0").lower() not in FALSE
    if not wanted:
        if given:
            raise ValueError(f"option {next(iter(given))} needs ssl=true in a sentinel:// URL")
        return None
    checks = given.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if checks not in CHECKS:
        raise ValueError(f"ssl_cert_reqs {checks!r:.80}: use {', '.join(CHECKS)}")
    given["ssl_cert_reqs"] = checks
    hostname = given.get("ssl_check_hostname", "true").lower() not in FALSE
    given["ssl_check_hostname"] = hostname and checks != "none"
    return tuple(sorted(given.items()))
