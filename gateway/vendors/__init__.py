"""The vendors: what the proxy must know of each API, and how their keys are kept."""
