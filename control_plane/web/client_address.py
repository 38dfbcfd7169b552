"""Which address a request came from: by the same rule as the gateway's."""

from gateway.client_address import Network, client_address

__all__ = ["Network", "client_address"]
