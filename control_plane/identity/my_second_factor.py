"""Enabling and disabling one's second factor. Each ends all sessions and opens a new one."""

import os
from typing import Final

import asyncpg
import msgspec

from control_plane.errors import BadArgument, Refused
from control_plane.identity.mails import told_mail
from control_plane.identity.second_factor import METHODS, code_failures, seed_place, wrong_code
from control_plane.identity.sessions import (
    Code,
    SignedIn,
    audit_account,
    renew_session,
)
from control_plane.identity.sign_in import PASSWORD, Proof
from control_plane.identity.totp import (
    SEED_BYTES,
    find_step,
    make_recovery_codes,
    provisioning_url,
    recovery_digest,
    seed_text,
)
from control_plane.throttle import RateClass, give_back, take
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Route
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "second_factor.sql")
_SEED = _QUERIES["seed"]
_ENROL = _QUERIES["enrol"]
_ENABLE = _QUERIES["enable"]
_DISABLE = _QUERIES["disable"]
_IS_ENABLED = _QUERIES["is_enabled"]
_FORGET_RECOVERY_CODES = _QUERIES["forget_recovery_codes"]
_KEEP_RECOVERY_CODES = _QUERIES["keep_recovery_codes"]
_PASSWORD_HASH = _QUERIES["password_hash"]


class TotpEnrolment(msgspec.Struct, frozen=True, kw_only=True):
    """A seed for an authenticator app, told this once; it counts once a code confirms it."""

    secret: str
    otpauth_url: str


class TotpConfirmation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code of the app that has the new seed."""

    code: Code


class TotpEnabled(msgspec.Struct, frozen=True, kw_only=True):
    """Recovery codes, each good once and told this once; and the session that goes on."""

    recovery_codes: list[str]
    session: SignedIn


class RecoveryCodes(msgspec.Struct, frozen=True, kw_only=True):
    """Recovery codes, each good once and told this once; earlier ones are void."""

    recovery_codes: list[str]


async def enrol(request: ApiRequest) -> TotpEnrolment:
    """Make a seed, to be confirmed by its first code."""
    account_id = request.signed_in.account_id
    seed = os.urandom(SEED_BYTES)
    sealed = request.services.control_keys.seal(seed, seed_place(account_id))
    async with request.transaction() as connection:
        email = await connection.fetchval(_ENROL, account_id, sealed)
        if email is None:
            raise Refused("You have a second factor already: disable that one first.")
        await audit_account(request, connection, "account.enrol_totp", account_id)
    url = provisioning_url(seed, account=email)
    return TotpEnrolment(secret=seed_text(seed), otpauth_url=url)


async def confirm(request: ApiRequest) -> TotpEnabled:
    """Enable the second factor, by the first code of its seed."""
    services = request.services
    account_id = request.signed_in.account_id
    code = request.body_as(TotpConfirmation).code
    failures = [code_failures(account_id)]
    async with services.database.connection() as connection:
        await take(connection, failures)
    async with request.transaction() as connection:
        row = await connection.fetchrow(_SEED, account_id)
        if row is None or row["totp_enabled_at"] is not None:
            raise Refused("There is nothing to confirm: enrol first.")
        seed = services.control_keys.open(row["totp_sealed"], seed_place(account_id))
        step = find_step(seed, code, unix_seconds=row["now"])
        if step is None:
            raise BadArgument(wrong_code().message, field="code", code="bad_code")
        if not await connection.fetchval(_ENABLE, account_id, row["totp_sealed"], step):
            raise Refused("Another request has confirmed or changed this meanwhile.")
        codes = await _renew_recovery_codes(connection, request)
        await audit_account(request, connection, "account.enable_totp", account_id)
        session = await _renewed(connection, request, methods=METHODS)
        await give_back(connection, failures)
    _tell(request, "Your second factor is on", "Signing in asks for a code from now on.")
    return TotpEnabled(recovery_codes=codes, session=session)


async def disable(request: ApiRequest) -> SignedIn:
    """Forget the second factor, and its recovery codes."""
    account_id = request.signed_in.account_id
    async with request.transaction() as connection:
        if not await connection.fetchval(_DISABLE, account_id):
            raise Refused("You have no second factor.")
        await connection.execute(_FORGET_RECOVERY_CODES, account_id)
        await audit_account(request, connection, "account.disable_totp", account_id)
        session = await _renewed(connection, request, methods=())
    _tell(request, "Your second factor is off", "Signing in takes your password alone now.")
    return session


async def renew_recovery_codes(request: ApiRequest) -> RecoveryCodes:
    """Make new recovery codes in the place of the old ones."""
    account_id = request.signed_in.account_id
    async with request.transaction() as connection:
        if not await connection.fetchval(_IS_ENABLED, account_id):
            raise Refused("You have no second factor that they could stand in for.")
        codes = await _renew_recovery_codes(connection, request)
        await audit_account(request, connection, "account.renew_recovery_codes", account_id)
    _tell(request, "You have new recovery codes", "The earlier ones are void.")
    return RecoveryCodes(recovery_codes=codes)


async def _renew_recovery_codes(connection: asyncpg.Connection, request: ApiRequest) -> list[str]:
    account_id = request.signed_in.account_id
    codes = make_recovery_codes(os.urandom)
    await connection.execute(_FORGET_RECOVERY_CODES, account_id)
    digests = [recovery_digest(code) for code in codes]
    await connection.execute(_KEEP_RECOVERY_CODES, account_id, digests)
    return codes


async def _renewed(
    connection: asyncpg.Connection, request: ApiRequest, *, methods: tuple[str, ...]
) -> SignedIn:
    """End every session of the asker, and open one by which the asker goes on."""
    actor = request.signed_in
    proof = Proof(
        account_id=actor.account_id,
        email=actor.email,
        methods=(PASSWORD, *methods),
        password_hash=await connection.fetchval(_PASSWORD_HASH, actor.account_id),
    )
    return await renew_session(request, connection, proof, reason="second factor changed")


def _tell(request: ApiRequest, subject: str, what: str) -> None:
    request.services.outbox.send(told_mail(to=request.signed_in.email, subject=subject, what=what))


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/me/totp",
        summary="Make a seed for an authenticator app",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=enrol,
        answer=TotpEnrolment,
        status=201,
        errors=(409,),
        tells_once=frozenset({"secret", "otpauth_url"}),
        needs_fresh=True,
    ),
    Route(
        method="POST",
        path="/api/v1/me/totp/confirm",
        summary="Enable your second factor, by the first code of the app",
        access=Access.SIGNED_IN,
        rate_class=RateClass.SIGN_IN,
        handler=confirm,
        body=TotpConfirmation,
        answer=TotpEnabled,
        errors=(409,),
        tells_once=frozenset({"recovery_codes", "session"}),
        needs_fresh=True,
    ),
    Route(
        method="DELETE",
        path="/api/v1/me/totp",
        summary="Disable your second factor",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=disable,
        answer=SignedIn,
        errors=(409,),
        needs_fresh=True,
    ),
    Route(
        method="POST",
        path="/api/v1/me/recovery-codes",
        summary="Make new recovery codes; earlier ones are void",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=renew_recovery_codes,
        answer=RecoveryCodes,
        status=201,
        errors=(409,),
        tells_once=frozenset({"recovery_codes"}),
        needs_fresh=True,
    ),
)
