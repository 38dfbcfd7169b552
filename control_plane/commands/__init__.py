"""What an operator types: each module has the commands about one thing."""
