"""What a gateway takes for requests, by the ids that the proxy in front of it gave them."""

import re
from collections import Counter, deque
from typing import Final

from gateway.errors import GatewayError
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.lane import Lane
from tests.fuzz.fronts import FRONT_ID_HEADER

_NAME: Final = FRONT_ID_HEADER.lower().encode()
_ID_LINE: Final = re.compile(rb"\r\n" + _NAME + rb": ([0-9a-f-]+)\r\n", re.IGNORECASE)
_ID_LINE_BYTES_MAX: Final = 64  # one that two reads cut apart


class Taken:
    """The requests that a gateway took, over all of a run."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.unnamed: list[str] = []  # those that are no request of the proxy's, told in words
        self.arrived: set[str] = set()  # read from a connection, whatever it was taken for

    @property
    def count(self) -> int:
        """How many there were."""
        return self.times.total() + len(self.unnamed)


class WatchedConnection(ClientConnection):
    """A client's connection that tells what it takes for a request, answered or refused."""

    def __init__(self, lane: Lane, taken: Taken) -> None:
        super().__init__(lane)
        self._taken = taken
        self._unread = b""
        self._came: deque[str] = deque()  # ids of which no request was taken yet
        self._owed: deque[str] = deque()  # requests refused before their id had come

    def data_received(self, data: bytes) -> None:
        self._unread += data
        end = 0
        for found in _ID_LINE.finditer(self._unread):
            self._came.append(found[1].decode())
            self._taken.arrived.add(found[1].decode())
            end = found.end() - len(b"\r\n")
        self._unread = self._unread[end:][-_ID_LINE_BYTES_MAX:]
        super().data_received(data)
        while self._owed and self._came:
            self._owed.popleft()
            self._taken.times[self._came.popleft()] += 1

    def on_headers_complete(self) -> None:
        waiting = len(self._waiting)
        super().on_headers_complete()
        if len(self._waiting) == waiting:
            return
        exchange = self._waiting[-1]
        names = [value.decode() for name, value in exchange.headers if name == _NAME]
        if len(names) == 1 and names[0] in self._came:
            self._came.remove(names[0])
            self._taken.times[names[0]] += 1
        else:
            what = f"{exchange.method!r} {exchange.path} with the ids {names}"
            self._taken.unnamed.append(what)

    def _refuse(self, error: GatewayError) -> None:
        if self._reading is None:  # a head, not a body
            self._owed.append(f"a head that was refused, {error!r}: {self._unread!r}")
        super()._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._taken.unnamed += self._owed
        self._owed.clear()
        super().connection_lost(exc)


def differences(*, lines: dict[str, bytes], passed_on: set[str], taken: Taken) -> list[str]:
    """Tell what was not passed on once and taken once, and what came although it was not passed on.

    `lines`: the proxy's log, `passed_on`: the ids of which it says that something was sent.
    """
    if taken.arrived == taken.times.keys() == passed_on and taken.count == len(passed_on):
        return []
    told = [f"taken, and no request of the proxy's: {what}" for what in taken.unnamed]
    for front_id in taken.arrived | taken.times.keys() | passed_on:
        line = lines[front_id].decode("latin-1") if front_id in lines else f"not told of {front_id}"
        times = taken.times[front_id]
        sent = "" if front_id in passed_on else ", but not passed on"
        came = "came" if front_id in taken.arrived else "never came"
        if times > 1 or (times and sent):
            told.append(f"taken {times} times{sent}: {line}")
        elif not times:
            told.append(f"{came}, was not taken{sent}: {line}")
    return told
