"""Who is calling: the bearer token, its lookup, and how soon a change to it is known."""
