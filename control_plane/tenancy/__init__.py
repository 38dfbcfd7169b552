"""Whom the gateway serves, and whom it calls: tokens, vendors, aliases."""
