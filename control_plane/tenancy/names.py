"""What orgs, workspaces and members may be called."""

from typing import Final

from control_plane.errors import BadArgument

NAME_CHARS_MAX: Final = 200


def check_name(name: str, *, field: str = "name") -> None:
    """Raise BadArgument for what would not be seen, or not as it is: it goes into mails too."""
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise BadArgument(
            f"A name has 1 to {NAME_CHARS_MAX} printable characters, no spaces around them.",
            field=field,
        )
