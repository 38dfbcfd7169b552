"""What has to hold after a fault, as numbers: the vendor's tally against the ledger.

The tally is the oracle. Each of its calls has exactly one row; a row that no tallied call belongs
to says why: `interrupted` and open at a kill, `no_answer`, or ended by someone before the vendor
had read the request. No client has the whole answer of a call that counts as interrupted, and what
is metered is what the vendor says.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final

from tests.faults.load import Sent
from tests.faults.world import Token

Row = dict[str, Any]
Span = tuple[float, float]

MARGIN_SECONDS: Final = 0.05  # between a client's clock readings and what they are of
UNANSWERED: Final = frozenset({"vendor_error", "vendor_broke", "deadline"})
ENDED_BY_SOMEONE: Final = frozenset({"client_closed", "revoked", "deadline"})
STATUSES: Final = frozenset({0, 200, 429, 503})
REFUSED: Final = 401  # where the token was revoked by then
VENDOR_STATUSES: Final = frozenset({500, 502, 504, 529})  # where the vendor is what fails
EXPLAINED_MAX: Final = 5


@dataclass(kw_only=True)
class Verdict:
    """What a run added up to. All but the counts are to be 0."""

    calls: int = 0
    whole: int = 0
    tallied: int = 0
    rows: int = 0
    interrupted: int = 0
    lost: int = 0  # tallied calls without a row
    double: int = 0  # rows too many
    unexplained: int = 0  # rows without a tallied call, and without a reason for that
    misjudged: int = 0  # whole at the client, and not so in the ledger
    mismetered: int = 0  # other usage than the vendor's
    odd: int = 0  # answers that nothing should have caused
    stuck: int = 0  # calls that did not end
    over_limit: int = 0  # counted beyond a limit
    unusable: int = 0  # units that nobody can use any more
    unsettled: int = 0  # units by which blocks and rows differ
    missummed: int = 0  # calls by which rows and hourly sums differ
    rejected: int = 0  # rows that were put aside
    late: int = 0  # revocations that took longer than promised
    unrecovered: int = 0  # what did not come back by itself in time
    other: int = 0  # what only this fault promises
    explained: list[str] = field(default_factory=list)

    FAULTY: ClassVar[tuple[str, ...]] = (
        "lost", "double", "unexplained", "misjudged", "mismetered", "odd", "stuck", "over_limit",
        "unusable", "unsettled", "missummed", "rejected", "late", "unrecovered", "other",
    )  # fmt: skip

    @property
    def faulty(self) -> dict[str, int]:
        """What is not as it has to be."""
        return {name: getattr(self, name) for name in self.FAULTY if getattr(self, name)}

    def blame(self, name: str, number: int, why: object) -> None:
        """Add to one of the counts that are to be 0, and say for what."""
        if number:
            setattr(self, name, getattr(self, name) + number)
            if len(self.explained) < EXPLAINED_MAX:
                self.explained.append(f"{name} {number}: {why}")


def check_metering(
    verdict: Verdict,
    *,
    sent: Sequence[Sent],
    tallied: Mapping[str, Sequence[Row]],
    rows: Iterable[Row],
    kills: Mapping[str, Sequence[Span]],
    vendor_fails: bool,
    revoked: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Hold calls, tally and ledger against each other.

    `kills` are those of each machine; `revoked` says of tokens by id when they were.
    """
    by_session: defaultdict[str, list[Row]] = defaultdict(list)
    for row in settled_rows(rows):
        by_session[row["session_id"]].append(row)
    verdict.calls = len(sent)
    verdict.tallied = sum(map(len, tallied.values()))
    verdict.rows = sum(map(len, by_session.values()))
    allowed = STATUSES | VENDOR_STATUSES if vendor_fails else STATUSES
    for one in sent:
        verdict.whole += one.is_whole
        verdict.blame("stuck", one.stuck, one)
        is_refused = one.status == REFUSED and one.ended > revoked.get(one.token.id, float("inf"))
        verdict.blame("odd", one.status not in allowed and not is_refused, one)
        is_open_at_kill = any(
            one.began - MARGIN_SECONDS <= ended and one.ended + MARGIN_SECONDS >= began
            for began, ended in kills.get(one.machine, ())
        )
        of_call = by_session.get(one.session_id, [])
        check_call(
            verdict,
            one,
            tallied=tallied.get(one.session_id, ()),
            rows=of_call,
            is_open_at_kill=is_open_at_kill,
        )


def check_call(
    verdict: Verdict,
    one: Sent,
    *,
    tallied: Sequence[Row],
    rows: Sequence[Row],
    is_open_at_kill: bool,
) -> None:
    """Check one call: its lines in the tally against its rows."""
    told = {line["id"]: line for line in tallied}
    named = [row for row in rows if row["vendor_request_id"] in told]
    others = [row for row in rows if row["vendor_request_id"] not in told]
    story = (one.session_id, one.model, [(row["status"], row["reason"]) for row in rows], tallied)
    # Each row with a vendor's id is of that call; of the rest any may be of a call left over.
    twice = len(named) - len({row["vendor_request_id"] for row in named})
    verdict.blame("double", twice, story)
    left_over = len(told) - (len(named) - twice)
    verdict.blame("lost", max(0, left_over - len(others)), story)
    untold = sorted(others, key=lambda row: is_explained(row, one, is_open_at_kill))
    for row in untold[left_over:]:
        if not is_explained(row, one, is_open_at_kill):
            verdict.blame("unexplained", 1, story)
    for row in rows:
        verdict.interrupted += row["status"] == "interrupted"
        if row["status"] == "interrupted" and not is_open_at_kill:
            verdict.blame("unexplained", 1, ("interrupted, but open at no kill", story))
    if one.is_whole:
        whole = [row for row in rows if row["status"] == "complete"]
        verdict.blame("misjudged", len(whole) != 1, story)
    for row in named:
        usage = told[row["vendor_request_id"]].get("usage")
        if row["status"] == "complete" and usage is not None:
            metered = {name: row[name] for name in usage}
            verdict.blame("mismetered", metered != usage, (story, metered, usage))


def is_explained(row: Row, one: Sent, is_open_at_kill: bool) -> bool:  # noqa: FBT001 - a sort's key
    """Whether a row says why the vendor knows nothing of its call."""
    if row["status"] == "interrupted":
        return is_open_at_kill
    if row["status"] in UNANSWERED and row["reason"] == "no_answer":
        return True
    return row["status"] in ENDED_BY_SOMEONE and row["http_status"] is None and not one.is_whole


def settled_rows(rows: Iterable[Row]) -> list[Row]:
    """Return each call's row as it finally is: a correction is in the place of what it corrects."""
    final: dict[str, Row] = {}
    corrections: list[Row] = []
    for row in rows:
        if row["corrects"] is None:
            final[row["id"]] = row
        else:
            corrections.append(row)
    for row in corrections:
        final[row["corrects"]] = row
    return list(final.values())


def check_limit(
    verdict: Verdict,
    token: Token,
    *,
    counted: int,
    tallied: int,
    used: int,
    is_over: bool = False,
    burned: bool = False,
) -> None:
    """Hold a limited token's counted rows of a month against its limit and its settled blocks.

    `used` is what its blocks say after all of them are settled and, but for a month that `is_over`,
    nobody could take a unit more. Of `burned` blocks units are neither counted nor usable.
    """
    assert token.limit is not None
    story = f"limit {token.limit}: {counted} counted, {tallied} at the vendor, {used} in blocks"
    verdict.blame("over_limit", max(0, counted - token.limit, tallied - token.limit), story)
    if not is_over:
        verdict.blame("unusable", max(0, token.limit - max(counted, used)), story)
    off = max(0, counted - used) if burned else abs(used - counted)
    verdict.blame("unsettled", off, story)
