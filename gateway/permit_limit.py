"""What bounds how often and how many at once: who is limited, to what."""

from dataclasses import dataclass, field

PermitKey = tuple[str, str]  # what is limited of whom, and its id: ("rate-token", "0193…")


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitLimit:
    """So many calls of a subject may begin within a window, or be open at once.

    `subject_kind`: token, org or address; `subject` its id, or an address' network.
    `window_seconds`: None where `calls` bounds those that are open.
    """

    subject_kind: str
    subject: str
    calls: int
    window_seconds: int | None
    key: PermitKey = field(init=False)

    def __post_init__(self) -> None:
        what = "open" if self.window_seconds is None else "rate"
        object.__setattr__(self, "key", (f"{what}-{self.subject_kind}", self.subject))
