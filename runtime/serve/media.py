"""Images of requests as bytes: of data URLs, and from hosts that an allow-list names. No path is ever read."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from divprune_edge.errors import UserError
from divprune_edge.runtime.serve.limits import ServerLimits

_DATA = re.compile(r"data:image/(jpeg|jpg|png|gif|webp);base64,", re.IGNORECASE)


def bytes_of(url: str, limits: ServerLimits, fetch: Callable[[str], bytes]) -> bytes:
    """Return the bytes of an image's file; what kind of image they are, they say themselves.

    Raises:
        UserError: another kind of address, not base64, or too large.
    """
    if url[:8].lower() == "https://":
        return fetch(url)
    found = _DATA.match(url)
    if found is None:
        kind = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}:[a-zA-Z0-9/+.-]{0,40}", url)
        said = f"begins with '{kind[0]}'" if kind else "is no address"
        raise UserError(
            f"An image's url {said}, expected data:image/jpeg;base64,… (or png, webp, gif): put the image itself into "
            "the request.",
            code="image-url-unsupported",
        )
    if (len(url) - found.end()) * 3 // 4 > limits.image_bytes + 2:
        raise UserError(
            f"An image has some {(len(url) - found.end()) * 3 // 4} bytes, at most {limits.image_bytes} are read: make "
            "it smaller.",
            code="image-too-large",
        )
    try:
        data = base64.b64decode(url[found.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise UserError("An image's url is not valid base64.", code="image-not-base64") from None
    if not data:
        raise UserError("An image's url is empty.", code="image-not-base64")
    return data
