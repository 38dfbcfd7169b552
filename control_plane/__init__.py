"""The control plane: who may call, what they used; never on the path of a call."""
