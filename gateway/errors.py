"""Why a call is refused: every reason a caller may read, with its status.

Raised anywhere in the gateway, answered only in `proxy/error_responses.py`, in the shape of the
caller's wire format. `message` is safe to show to a caller; causes are chained and logged.
"""

from collections.abc import Mapping
from math import ceil


class GatewayError(Exception):
    """A call is refused.

    `status` is the HTTP status, `reason` the value of `x-kaixu-reason`, `headers` further answer
    headers (lower-case names), `retry` whether trying again unchanged can help (sent to official
    SDKs as `x-should-retry: false` when it cannot and they would try by themselves).
    """

    status: int = 500
    reason: str = "internal"
    retry: bool = True
    message: str = "The gateway could not handle this call."

    def __init__(
        self,
        message: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        """`message` replaces the class's; `param` names the field of the request at fault."""
        if message is not None:
            self.message = message
        super().__init__(self.message)
        self.headers: Mapping[str, str] = headers or {}
        self.param = param
        self.limit_kind: str | None = None  # of a limit that is reached: whose it is


class TokenMissing(GatewayError):
    status = 401
    reason = "token_missing"
    message = (
        "No gateway token in this request. Send it as 'Authorization: Bearer kxg_…', 'x-api-key', "
        "'x-goog-api-key', 'api-key' or '?key='."
    )


class TokenInvalid(GatewayError):
    status = 401
    reason = "token_invalid"
    message = "This gateway token is not valid. Check that it was copied whole."


class TokenExpired(GatewayError):
    status = 401
    reason = "token_expired"
    message = "This gateway token has expired. Create a new one."


class TokenRevoked(GatewayError):
    status = 401
    reason = "token_revoked"
    message = "This gateway token was revoked."


class TwoTokens(GatewayError):
    status = 400
    reason = "token_invalid"
    retry = False
    message = "This request carries two different gateway tokens. Send one."


class TooManyFailedLookups(GatewayError):
    status = 429
    reason = "rate_window"
    message = (
        "Too many unknown gateway tokens came from this address. Check the tokens in use there, "
        "then try again."
    )

    def __init__(self, *, wait_seconds: float) -> None:
        super().__init__(headers={"retry-after": str(ceil(wait_seconds))})


class ScopeNotAllowed(GatewayError):
    status = 403
    reason = "model_not_allowed"
    retry = False
    message = "This token may read usage only, it may not make calls."


class ModelNotAllowed(GatewayError):
    status = 403
    reason = "model_not_allowed"
    retry = False
    message = "This token may not use this model."


class VendorNotAllowed(GatewayError):
    status = 403
    reason = "vendor_not_allowed"
    retry = False
    message = "This token may not call the vendor that this request leads to."


class ClientAddressNotAllowed(GatewayError):
    status = 403
    reason = "address_not_allowed"
    retry = False
    message = "This token may not be used from this network address."


class BatchesNotAllowed(GatewayError):
    """A batch is one call with many in it, whose models are named where nobody looks."""

    status = 403
    reason = "model_not_allowed"
    retry = False
    message = (
        "A token with a limit or a list of models may not begin batches, unless it has the scope "
        "'batches'."
    )


class MonthlyLimitReached(GatewayError):
    """A spent month. `headers` carry x-kaixu-limit, x-kaixu-remaining and x-kaixu-reset."""

    status = 429
    reason = "monthly_limit"
    retry = False
    message = "The monthly call limit is reached."


class RateWindowReached(GatewayError):
    """A full window. `headers` carry retry-after, x-kaixu-limit, -remaining and -reset."""

    status = 429
    reason = "rate_window"
    message = "Too many calls began within the window. Wait as long as retry-after says."


class ConcurrencyReached(GatewayError):
    """As many calls are open as may be. `headers` carry retry-after and x-kaixu-limit."""

    status = 429
    reason = "concurrency"
    message = "Too many calls are open. Wait until one has ended."


class TooManyOpenCalls(GatewayError):
    status = 429
    reason = "concurrency"
    message = "This organization has as many open calls here as it may. Try again in a moment."

    def __init__(self, *, calls_max: int) -> None:
        super().__init__(
            headers={"retry-after": "1", "x-kaixu-limit": str(calls_max), "x-kaixu-remaining": "0"}
        )


class BodyInvalid(GatewayError):
    status = 400
    reason = "body_invalid"
    retry = False
    message = "The request body is not valid JSON."


class RequestInvalid(GatewayError):
    """The request's head breaks HTTP or our rules; the connection is closed."""

    status = 400
    reason = "body_invalid"
    retry = False
    message = "The request is not valid HTTP/1.1."


class VersionNotSupported(RequestInvalid):
    status = 505
    message = "This is HTTP/1.1 only."


class Misdirected(RequestInvalid):
    status = 421
    reason = "no_route"
    message = "This gateway is not served under the name in the Host header."


class HeadTooLarge(RequestInvalid):
    status = 431
    message = "The request's headers are too large."


class TargetTooLong(RequestInvalid):
    status = 414
    message = "The request's target is too long."


class RequestTooSlow(RequestInvalid):
    status = 408
    retry = True
    message = "The request did not arrive in time."


class BodyTooLarge(GatewayError):
    status = 413
    reason = "body_too_large"
    retry = False
    message = "The request body is larger than this endpoint takes."


class BodyBudgetSpent(GatewayError):
    status = 503
    reason = "body_too_large"
    message = "The gateway holds as many request bodies as it may at this moment. Try again."


class UnsupportedBody(GatewayError):
    status = 415
    reason = "body_invalid"
    retry = False
    message = "This endpoint takes a JSON body."


class NoRoute(GatewayError):
    status = 404
    reason = "no_route"
    retry = False
    message = "The gateway has no such path."


class MethodNotAllowed(GatewayError):
    status = 405
    reason = "no_route"
    retry = False
    message = "This path does not take this method."


class UpgradeRefused(GatewayError):
    """426 makes clients that try a WebSocket first fall back to HTTP at once."""

    status = 426
    reason = "no_route"
    retry = False
    message = "WebSocket is not served here. Use HTTP."


class NotYours(GatewayError):
    status = 404
    reason = "not_yours"
    retry = False
    message = "No such object."


class VendorUnreachable(GatewayError):
    status = 502
    reason = "vendor_unreachable"
    message = "The vendor could not be reached."


class VendorBroke(GatewayError):
    """The vendor's connection died, or what it sent is not HTTP, before an answer began."""

    status = 502
    reason = "vendor_unreachable"
    message = "The vendor broke the connection before it answered."


class VendorKeyRefused(GatewayError):
    status = 502
    reason = "vendor_key"
    retry = False
    message = (
        "The vendor refused the gateway's own key for it. Tell the gateway's operator; "
        "your token is fine."
    )


class VendorTimeout(GatewayError):
    status = 504
    reason = "vendor_timeout"
    message = "The vendor did not answer in time."


class DatabaseAway(GatewayError):
    status = 503
    reason = "database_away"
    message = "The gateway can't check this token now. Try again in a moment."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"retry-after": "1"})


class JournalFull(GatewayError):
    status = 503
    reason = "journal_full"
    message = "The gateway can't record another call now. Try again in a moment."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"retry-after": "1"})


class Draining(GatewayError):
    status = 503
    reason = "draining"
    message = "This gateway process is shutting down. Try again."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"retry-after": "1"})
