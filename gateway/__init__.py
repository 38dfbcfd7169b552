"""The data plane: check the token, forward the call, stream it back, count it."""
