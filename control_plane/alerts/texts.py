"""Alerts in words, for mails: no names in the subject, and no link that lets anyone in."""

from collections.abc import Mapping
from typing import Any, Final

_SUBJECTS: Final[Mapping[tuple[str, int], str]] = {
    ("limit", 1): "A monthly limit is nearly spent",
    ("limit", 2): "A monthly limit is spent",
    ("token_expiring", 1): "A gateway token ends within 7 days",
    ("token_expiring", 2): "A gateway token ends within a day",
    ("vendor_key", 2): "A vendor refuses the gateway's key",
}


def subject_of(kind: str, level: int) -> str:
    """Return the subject of a mail about an alert."""
    return f"kAIxU: {_SUBJECTS[kind, level]}"


def text_of(alert: Mapping[str, Any]) -> str:
    """Return the text of a mail; `alert` has the columns of a row, `detail` as a mapping."""
    detail = alert["detail"]
    if alert["kind"] == "limit":
        what = (
            f"The {alert['subject_kind']} '{detail['name']}' has used {detail['used']} of its "
            f"{detail['limit']} calls of {alert['period']}."
        )
        fix = (
            "Calls are refused until the month is over, or the limit is raised."
            if alert["level"] > 1
            else "When it is spent, calls are refused until the month is over."
        )
    elif alert["kind"] == "token_expiring":
        what = f"The token '{detail['name']}' ({detail['hint']}) ends at {alert['period']}."
        fix = "Rotate it, and give its new secret to whoever calls with it."
    else:
        vendor = detail["vendor"] or "A vendor"
        what = f"{vendor} refuses the key that the gateway calls it with."
        fix = "Calls to it fail until whoever runs the gateway gives it a key that works."
    return f"{what}\n{fix}\n\nWhat this is about: {alert['subject_kind']} {alert['subject']}\n"
