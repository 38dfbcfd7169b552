"""What the mails about an account say. Nothing in a header comes from anybody but us."""

from datetime import timedelta
from typing import Final

from control_plane.mail import Mail

SIGN_OFF: Final = "\n\nIf this was not you, nothing happens unless you use the link.\n"


def verify_mail(*, to: str, link: str, life: timedelta) -> Mail:
    """Return the mail to who asked for an account."""
    text = (
        "Welcome to kAIxU. Confirm your address with the password that you chose:\n\n"
        f"{link}\n\nThe link works once, for {_told(life)}."
    )
    return Mail(to=to, subject="Confirm your e-mail address", text=text + SIGN_OFF, link=link)


def exists_mail(*, to: str, link: str) -> Mail:
    """Return the mail to who asked for an account and has one."""
    text = (
        "Somebody asked for a kAIxU account with this address. You have one already: sign in, or\n"
        f"choose a new password at\n\n{link}\n\nIf this was not you, you need not do anything.\n"
    )
    return Mail(to=to, subject="You have an account already", text=text)


def reset_mail(*, to: str, link: str, life: timedelta) -> Mail:
    """Return the mail to who forgot the password."""
    text = f"Choose a new password:\n\n{link}\n\nThe link works once, for {_told(life)}."
    return Mail(to=to, subject="Choose a new password", text=text + SIGN_OFF, link=link)


def change_mail(*, to: str, link: str, life: timedelta) -> Mail:
    """Return the mail to an address that an account is to have."""
    text = (
        "Confirm that your kAIxU account is to have this address:\n\n"
        f"{link}\n\nThe link works once, for {_told(life)}."
    )
    return Mail(to=to, subject="Confirm your new e-mail address", text=text + SIGN_OFF, link=link)


def told_mail(*, to: str, subject: str, what: str) -> Mail:
    """Return the mail that tells someone what has happened to their account."""
    text = f"{what}\n\nIf this was not you, choose a new password and tell who runs your gateway.\n"
    return Mail(to=to, subject=subject, text=text)


def _told(life: timedelta) -> str:
    hours, rest = divmod(int(life.total_seconds()), 3600)
    return f"{hours} hours" if hours > 1 else f"{(hours * 3600 + rest) // 60} minutes"
