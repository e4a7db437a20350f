"""How a server is reached: checked before anything heavy is loaded."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from divprune_edge.errors import UserError

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.IGNORECASE)
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """How a server is reached.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        key: what clients have to know; None: nothing.
        open_to_all: listen on other addresses than loopback without a key.
        url_hosts: hosts that images may be fetched from.
        name: of the model; None: the bundle's folder.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    open_to_all: bool = False
    url_hosts: tuple[str, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}, expected 0 to 65535.", code="port-out-of-range")
        if self.name is not None and not self.name.strip():
            raise UserError(
                "--name is empty: say what clients are to call the model, or leave it out.", code="name-empty"
            )
        for host in self.url_hosts:
            if not _HOST.fullmatch(host):
                raise UserError(
                    f"--url-host is '{host}', expected the name of a host alone, such as images.example.org.",
                    code="url-host-invalid",
                )
        if not self.is_local and self.key is None and not self.open_to_all:
            raise UserError(
                f"--host is '{self.host}', where others can reach the server, but there is no API key: set "
                "DIVPRUNE_API_KEY or --api-key-file, or say --open-to-all.",
                code="serve-without-key",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names by which the server may be called; None: any, where a key or ``open_to_all`` decides who may ask."""
        local = self.key is None and self.is_local
        return frozenset((*_LOCAL, self.host.lower())) if local else None


def read_key(file: Path | None, environment: str | None) -> str | None:
    """Return the API key: of a file, or of the environment.

    Raises:
        UserError: the file cannot be read, or holds no key.
    """
    if file is None:
        text = environment
        where = "DIVPRUNE_API_KEY"
    else:
        where = f"'{file}'"
        try:
            text = file.read_text(encoding="utf-8")[:4096]
        except (OSError, ValueError) as error:
            raise UserError(
                f"The API key cannot be read from {where} ({getattr(error, 'strerror', None) or error}).",
                code="api-key-file",
            ) from None
    if text is None:
        return None
    if len(text.strip()) < 8 or not text.strip().isascii() or not text.strip().isprintable():
        raise UserError(
            f"{where} holds no API key: expected 8 or more printable ASCII characters.", code="api-key-file"
        )
    return text.strip()
