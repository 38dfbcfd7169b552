"""Limits that more than one module keeps: sizes in bytes, waits in seconds.

A limit that one module keeps alone stands at the top of that module. A setting may lower a limit,
never lift it.
"""

from typing import Final

REQUEST_LINE_BYTES_MAX: Final = 8190  # as the common HTTP servers
REQUEST_HEADERS_MAX: Final = 64  # SDKs send about 25
REQUEST_HEAD_BYTES_MAX: Final = 32 * 1024  # long `anthropic-beta` lists fit many times
REQUEST_BODY_BYTES_MAX: Final = 64 * 1024 * 1024  # IDE bodies run to several MB, images to tens
RESPONSE_HEADERS_MAX: Final = 256  # vendors send 20 to 60
RESPONSE_HEAD_BYTES_MAX: Final = 128 * 1024  # a hostile vendor must not fill memory
BODY_BUDGET_BYTES: Final = 1024 * 1024 * 1024  # request bodies that one worker holds at once
BODY_SHARE_MAX: Final = 0.25  # of the budget that one org or one address may hold

REQUEST_HEAD_SECONDS_MAX: Final = 10.0  # slowloris
REQUEST_BODY_BYTES_PER_SECOND_MIN: Final = 16_000  # below it for a while: 408
KEEP_ALIVE_SECONDS: Final = 75.0  # idle client connections
CLIENT_STALL_SECONDS_MAX: Final = 60.0  # a client that stops reading
CONNECT_SECONDS_MAX: Final = 10.0  # to a vendor
FIRST_BYTE_SECONDS_MAX: Final = 600.0  # reasoning models think for minutes
IDLE_SECONDS_MAX: Final = 600.0  # between two reads from a vendor
STREAM_TOTAL_SECONDS_MAX: Final = 24 * 3600.0  # no stream outlives it

PIPELINED_REQUESTS_MAX: Final = 32  # waiting on one connection; one more is a 400
WRITE_BUFFER_BYTES_MAX: Final = 64 * 1024  # per stream, then reading from the vendor pauses
UNSENT_BYTES_MAX: Final = 128 * 1024  # in the kernel for a client who reads nothing; else 4 MB
READ_BUFFER_BYTES: Final = 64 * 1024  # of one read from a vendor
READ_AT_ONCE_BYTES: Final = 128 * 1024  # from one connection, before the others have their turn
SWEPT_AT_ONCE: Final = 64  # connections or calls looked at for deadlines, before others run
CONNECTIONS_PER_WORKER_MAX: Final = 16_384
CONNECTIONS_PER_ADDRESS_MAX: Final = 1_024  # office NATs; loopback exempt unless set
