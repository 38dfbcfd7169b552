"""Uploads in several requests, as Google's SDKs make them, kept on their way through the gateway.

The vendor answers the first request with the address that the file goes to: its own host, and in
the query the upload's id. Who knows it can go on with the upload, without any key. So the client
gets the same address at the gateway instead, the id is recorded as its org's before it sees it, and
whatever comes with an id goes to the vendor that gave it, with the gateway's key.

Some SDKs send no key to that address. For them it has a ticket in it: the digest of the token that
began the upload, sealed for this one upload. The token itself is not in it, and has to be good
still.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from gateway.connect_guard import PORTS, BaseUrl
from gateway.errors import RequestInvalid, VendorBroke
from gateway.proxy.headers import TICKET_PARAMETER, upstream_query
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_paths import Kind, find_stored

Headers = list[tuple[bytes, bytes]]
Keys = Callable[[], Sequence[bytes]]

PARAMETERS_MAX: Final = 32  # of a query
UPLOAD_ID_CHARS_MAX: Final = 2_048  # Google's have 100 to 300
DIGEST_BYTES: Final = 32

_UPLOAD_ID: Final = "upload_id"
_TICKET: Final = TICKET_PARAMETER.decode()
# Where an answer says how the upload goes on.
_ADDRESSES: Final = (b"x-goog-upload-url", b"x-goog-upload-control-url")
_ASTRAY: Final = "The vendor's address for this upload leads elsewhere, or can't be read."


def upload_id_of(query: bytes) -> str | None:
    """Return the upload that a query names, None for none. Raises RequestInvalid for several."""
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX
        )
    except ValueError as error:
        raise RequestInvalid("The query has too many parameters.") from error
    found = [value for name, value in pairs if name == _UPLOAD_ID]
    if len(found) > 1 or (found and len(found[0]) > UPLOAD_ID_CHARS_MAX):
        raise RequestInvalid("The request does not plainly name one upload.", param=_UPLOAD_ID)
    return found[0] if found else None


def object_id_of(upload_id: str) -> str:
    """Return what an upload is recorded under: who reads the record can't go on with it."""
    return "upload/" + sha256(upload_id.encode()).hexdigest()


class UploadTickets:
    """Stand for a token in the address of one upload, and nowhere else."""

    def __init__(self, keys: Keys = tuple) -> None:
        """`keys` gives the secrets that all gateways share, the current one first.

        Without any there are no tickets: clients then have to send their token each time.
        """
        self._keys = keys

    def issue(self, digest: bytes, upload_id: str) -> str | None:
        """Return the ticket of a token's digest for an upload."""
        keys = self._keys()
        if not keys:
            return None
        ticket = digest + _seal(keys[0], digest, upload_id)
        return urlsafe_b64encode(ticket).rstrip(b"=").decode()

    def open(self, query: bytes) -> bytes | None:
        """Return the digest in a query's ticket, None where there is none that is good."""
        upload_id = upload_id_of(query)
        if upload_id is None:
            return None
        named = TICKET_PARAMETER + b"="
        carried = [part[len(named) :] for part in query.split(b"&") if part.startswith(named)]
        if len(carried) != 1:
            return None
        try:
            ticket = urlsafe_b64decode(carried[0] + b"=" * (-len(carried[0]) % 4))
        except (Base64Error, ValueError):
            return None
        digest, seal = ticket[:DIGEST_BYTES], ticket[DIGEST_BYTES:]
        for key in self._keys():
            if hmac.compare_digest(seal, _seal(key, digest, upload_id)):
                return digest
        return None


def _seal(key: bytes, digest: bytes, upload_id: str) -> bytes:
    return hmac.digest(key, digest + upload_id.encode(), "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunUpload:
    """An upload that a request begins.

    - `vendor`: the base URL of the vendor that it begins at;
    - `root`: where the client called the gateway, with the vendor's name if the path has it;
    - `digest`: of its token.
    """

    vendor: BaseUrl
    root: str
    digest: bytes = field(repr=False)
    tickets: UploadTickets = field(repr=False)

    def point_back(self, headers: Headers) -> tuple[Headers, list[Stored]]:
        """Return an answer's headers with the gateway's address, and the upload to be recorded.

        Raises VendorBroke where the vendor's address is not the vendor's own.
        """
        passed: Headers = []
        found: dict[str, None] = {}
        for name, value in headers:
            if name in _ADDRESSES:
                upload_id, address = self._address(value)
                found[upload_id] = None
                value = address.encode()  # noqa: PLW2901 - the header's
            passed.append((name, value))
        if len(found) > 1:
            raise VendorBroke(_ASTRAY)
        return passed, [Stored(object_id_of(one), Kind.UPLOAD) for one in found]

    def _address(self, value: bytes) -> tuple[str, str]:
        """Return the upload's id in a vendor's address, and the address at the gateway."""
        try:
            url = urlsplit(value.decode("ascii"))
            port = url.port or PORTS.get(url.scheme)
            origin = (url.scheme, url.hostname, port)
            upload_id = upload_id_of(url.query.encode())
        except (ValueError, RequestInvalid) as error:
            raise VendorBroke(_ASTRAY) from error
        own = (self.vendor.scheme, self.vendor.host, self.vendor.port)
        path = url.path.removeprefix(self.vendor.path)
        is_served = any(one.body == "upload" for one, _ in find_stored(path))
        has_more = url.username is not None or url.fragment
        if origin != own or has_more or not is_served or not upload_id:
            raise VendorBroke(_ASTRAY)
        query = upstream_query(url.query.encode()).decode()
        ticket = self.tickets.issue(self.digest, upload_id)
        if ticket is not None:
            query += f"&{_TICKET}={ticket}"
        return upload_id, f"{self.root}{path}?{query}"


def without_addresses(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return headers without the vendor's addresses: who has one needs no key."""
    return [header for header in headers if header[0] not in _ADDRESSES]
