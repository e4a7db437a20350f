"""Images from addresses: of hosts that an allow-list names, over https, from public addresses alone.

The name is looked up once, what it says is checked, and that very address is called, so that a second answer of the
name server changes nothing. A redirect is an error, whatever it says. An address that a request names often is called
once, all of them share one time, and what comes is counted among the bytes of all requests.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from divprune_edge.errors import UserError
from divprune_edge.runtime.serve.limits import ServerLimits

_ADDRESS = re.compile(
    r"https://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)(?::443)?(?P<path>/[\x21\x24-\x5b\x5d-\x7e]*)?",
    re.IGNORECASE,
)
PORT = 443
SECONDS = 20.0
"""From a request's first call to the last byte of its images."""
_PART = 64 << 10
Resolve = Callable[[str], list[str]]


class Fetcher:
    """Gets images from the hosts of an allow-list; of none, if there is none.

    Args:
        hosts: their names.
        limits: of an image's bytes.
        resolve: looks a name up.
        trust: whom to believe that a host is the one it says it is.
    """

    def __init__(
        self,
        hosts: Collection[str],
        limits: ServerLimits,
        resolve: Resolve | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts, self._limits = {host.lower() for host in hosts}, limits
        self._resolve = resolve or _look_up
        self._trust = trust or ssl.create_default_context()

    def errand(self, hold: Callable[[int], None]) -> Errand:
        """Return what gets one request's images; ``hold`` counts their bytes, or raises where they are too many."""
        return Errand(self, hold)

    def place_of(self, url: str) -> tuple[str, str]:
        """Return the host and path of an address.

        Raises:
            UserError: nothing is fetched from there.
        """
        if not self._hosts:
            raise UserError(
                "This server fetches no images from addresses: put the image itself into the request, as "
                "data:image/jpeg;base64,….",
                code="image-url-unsupported",
            )
        found = _ADDRESS.fullmatch(url) if len(url) <= 2048 else None
        if found is None:
            raise UserError(
                "An image's address is not of the form https://HOST/PATH: leave out user names, ports and fragments, "
                "and escape other characters.",
                code="image-url-unsupported",
            )
        host = found["host"].lower()
        if host not in self._hosts:
            raise UserError(
                f"Images are not fetched from '{host}', but from {', '.join(sorted(self._hosts))}.",
                code="image-host-refused",
            )
        return host, found["path"] or "/"

    def call(self, host: str, seconds: float) -> _Pinned:
        """Return a connection to an address of a host; all must be public, or one could be hidden among others."""
        addresses = self._resolve(host)
        if not addresses or not all(map(_is_public, addresses)):
            raise UserError(
                f"'{host}' is not at a public address: no image is fetched from it.",
                code="image-host-refused",
            )
        return _Pinned(host, addresses[0], self._trust, seconds)

    @property
    def most_bytes(self) -> int:
        """Of an image."""
        return self._limits.image_bytes


class Errand:
    """The images of one request, in a thread of its own; another one may cut it short."""

    def __init__(self, fetcher: Fetcher, hold: Callable[[int], None]) -> None:
        self._fetcher, self._hold = fetcher, hold
        self._ends = time.monotonic() + SECONDS
        self._found: dict[str, bytes] = {}
        self._calling: _Pinned | None = None
        self._was_cut = False

    @property
    def left(self) -> float:
        """Seconds of its time."""
        return max(self._ends - time.monotonic(), 0.0)

    def __call__(self, url: str) -> bytes:
        """Return what lies at an address.

        Raises:
            UserError: the address, the host or its answer is not allowed.
        """
        if url not in self._found:
            host, path = self._fetcher.place_of(url)
            try:
                self._found[url] = self._get(host, path)
            except (OSError, http.client.HTTPException) as error:
                raise UserError(
                    f"The image cannot be fetched from '{host}' ({type(error).__name__}).",
                    code="image-fetch-failed",
                ) from None
        return self._found[url]

    def late(self) -> UserError:
        """Return what is said where the time is over, and its thread hangs in a look-up."""
        return UserError(f"The images did not come within {SECONDS:g} s.", code="image-fetch-failed")

    def cut(self) -> None:
        """End it from another thread, as nobody waits for it, or a host sends a byte a second for ever."""
        self._was_cut = True  # First: who reads is woken by what follows, and takes the end for the image's.
        if (calling := self._calling) is not None:
            calling.cut()

    def _get(self, host: str, path: str) -> bytes:
        connection = self._calling = self._fetcher.call(host, self.left)
        timer = threading.Timer(self.left, self.cut)
        timer.daemon = True
        timer.start()
        try:
            self._go_on()
            connection.connect()
            self._go_on()
            connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise UserError(
                    f"'{host}' answers with status {answer.status}, expected 200; redirects are not followed.",
                    code="image-fetch-failed",
                )
            data = bytearray()
            while part := answer.read1(_PART):
                self._hold(len(part))
                data += part
                if len(data) > self._fetcher.most_bytes:
                    raise UserError(
                        f"The image at '{host}' has more than {self._fetcher.most_bytes} bytes.",
                        code="image-too-large",
                    )
            self._go_on()
            return bytes(data)
        finally:
            self._calling = None
            timer.cancel()
            connection.close()

    def _go_on(self) -> None:
        if self._was_cut or not self.left:
            raise TimeoutError


class _Pinned(http.client.HTTPSConnection):
    """A connection to one address, with the certificate of the host that it is for."""

    def __init__(self, host: str, address: str, trust: ssl.SSLContext, seconds: float) -> None:
        super().__init__(
            host, PORT, timeout=max(seconds, 0.001), context=trust
        )  # of 0, sockets would not wait
        self._address, self._trust = address, trust
        self._held: ssl.SSLSocket | None = None

    def connect(self) -> None:
        """Call the address, whatever the name says by now."""
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self._held = self._trust.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self._held.do_handshake()
        self.sock = self._held

    def cut(self) -> None:
        """Wake who reads from it."""
        if self._held is not None:
            with suppress(OSError):
                self._held.shutdown(socket.SHUT_RDWR)


def _look_up(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(place[4][0]) for place in found]


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        # 64:ff9b::/96 leads to IPv4 addresses as well.
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and not _is_public(str(inner)):
            return False
    return found.is_global and not found.is_multicast
