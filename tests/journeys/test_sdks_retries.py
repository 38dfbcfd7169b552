"""What the SDKs repeat by themselves: as told by `retry-after`, and one row for each call that went
to the vendor, held against the vendor's own tally.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import anthropic
import cohere
import openai
import pytest
from cohere.core.api_error import ApiError
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from mistralai.client.models import UserMessage
from mistralai.client.utils import BackoffStrategy, RetryConfig

from tests.journeys.product import Product, Row

pytestmark = pytest.mark.journey

SECONDS: Final = 30
RETRY_AFTER_SECONDS: Final = 1.0  # the simulator's

# Makes one small call of a model in a session, with retries as a client of that SDK has them.
Caller = Callable[[str, str], None]


class Clients:
    """Each SDK's call, by name; the clients live as long as the stack that is handed in."""

    def __init__(self, product: Product, stack: ExitStack, token: str) -> None:
        self._url = product.url
        self._token = token
        self._stack = stack

    def openai(self) -> Caller:
        client = self._stack.enter_context(
            openai.OpenAI(base_url=f"{self._url}/v1", api_key=self._token, timeout=SECONDS)
        )

        def call(model: str, session: str) -> None:
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "hello"}],
                max_completion_tokens=2,
                extra_headers={"x-session-id": session},
            )

        return call

    def openai_stream(self) -> Caller:
        client = self._stack.enter_context(
            openai.OpenAI(base_url=f"{self._url}/v1", api_key=self._token, timeout=SECONDS)
        )

        def call(model: str, session: str) -> None:
            stream = client.responses.create(
                model=model,
                input="hello",
                max_output_tokens=2,
                stream=True,
                extra_headers={"x-session-id": session},
            )
            *_, last = stream
            assert last.type == "response.incomplete"

        return call

    def anthropic(self) -> Caller:
        client = self._stack.enter_context(
            anthropic.Anthropic(base_url=self._url, api_key=self._token, timeout=SECONDS)
        )

        def call(model: str, session: str) -> None:
            client.messages.create(
                model=model,
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=2,
                extra_headers={"x-session-id": session},
            )

        return call

    def gemini(self) -> Caller:
        # Without options it repeats nothing.
        retries = genai_types.HttpRetryOptions(attempts=3, initial_delay=0.1, jitter=0.1)
        client = genai.Client(
            api_key=self._token,
            http_options=genai_types.HttpOptions(
                base_url=self._url, timeout=SECONDS * 1000, retry_options=retries
            ),
        )
        self._stack.callback(client.close)

        def call(model: str, session: str) -> None:
            headers = genai_types.HttpOptions(headers={"x-session-id": session})
            config = genai_types.GenerateContentConfig(max_output_tokens=2, http_options=headers)
            client.models.generate_content(model=model, contents="hello", config=config)

        return call

    def mistral(self) -> Caller:
        # Without a configuration it repeats nothing. The total bounds how often it does.
        backoff = BackoffStrategy(100, 1_000, 1.5, 1_500)
        client = self._stack.enter_context(
            Mistral(
                api_key=self._token,
                server_url=f"{self._url}/sim-mistral",
                timeout_ms=SECONDS * 1000,
                retry_config=RetryConfig("backoff", backoff, retry_connection_errors=False),
            )
        )

        def call(model: str, session: str) -> None:
            client.chat.complete(
                model=model,
                messages=[UserMessage(content="hello")],
                max_tokens=2,
                http_headers={"x-session-id": session},
            )

        return call

    def cohere(self) -> Caller:
        client = self._stack.enter_context(
            cohere.ClientV2(
                api_key=self._token, base_url=f"{self._url}/sim-cohere", timeout=SECONDS
            )
        )

        def call(model: str, session: str) -> None:
            client.chat(
                model=model,
                messages=[cohere.UserChatMessageV2(content="hello")],
                max_tokens=2,
                request_options={"additional_headers": {"x-session-id": session}},
            )

        return call


SDKS: Final = ("openai", "openai_stream", "anthropic", "gemini", "mistral", "cohere")
OBEYS_RETRY_AFTER: Final = ("openai", "openai_stream", "anthropic", "mistral", "cohere")
OBEYS_SHOULD_RETRY: Final = ("openai", "openai_stream", "anthropic")
ERRORS: Final = (
    openai.APIStatusError,
    anthropic.APIStatusError,
    genai_errors.APIError,
    SDKError,
    ApiError,
)


PLAYS: Final = (
    *(("sim-flaky-503", sdk) for sdk in SDKS),
    *(("sim-status-503", sdk) for sdk in SDKS),
    *(("sim-badkey", sdk) for sdk in OBEYS_SHOULD_RETRY),
)


def session_of(model: str, sdk: str) -> str:
    return f"retries/{model}/{sdk}"


@pytest.fixture(scope="module")
def outcomes(product: Product, more_vendors: None) -> dict[tuple[str, str], Exception | None]:
    """What became of a call of each model by each SDK, all made at once: most of it is waiting."""

    def play(model: str, sdk: str) -> Exception | None:
        with ExitStack() as stack:
            call: Caller = getattr(Clients(product, stack, product.token), sdk)()
            try:
                call(model, session_of(model, sdk))
            except ERRORS as error:
                return error
        return None

    with ThreadPoolExecutor(len(PLAYS)) as pool:
        return dict(zip(PLAYS, pool.map(lambda one: play(*one), PLAYS), strict=True))


def check_one_row_each(
    product: Product, session: str, *, calls: int
) -> tuple[list[Row], list[Row]]:
    """Check that the vendor and the ledger tell of the same calls; return what each says."""
    tallied = [line for line in product.tallied() if line["session_id"] == session]
    rows = product.events_of(count=calls, session_id=session)
    rows.sort(key=lambda row: str(row["time"]))
    assert [line["id"] for line in tallied] == [row["vendor_request_id"] for row in rows]
    assert len(tallied) == calls
    return tallied, rows


@pytest.mark.parametrize("sdk", SDKS)
def test_a_call_is_repeated_when_the_vendor_says_so(
    product: Product, outcomes: dict[tuple[str, str], Exception | None], sdk: str
) -> None:
    model = "sim-flaky-503"
    assert outcomes[model, sdk] is None
    tallied, rows = check_one_row_each(product, session_of(model, sdk), calls=2)
    assert [row["http_status"] for row in rows] == [503, 200]
    assert [row["counted"] for row in rows] == [True, True]
    if sdk in OBEYS_RETRY_AFTER:
        assert tallied[1]["at"] - tallied[0]["at"] >= RETRY_AFTER_SECONDS


@pytest.mark.parametrize("sdk", SDKS)
def test_each_attempt_in_vain_has_its_row(
    product: Product, outcomes: dict[tuple[str, str], Exception | None], sdk: str
) -> None:
    model = "sim-status-503"
    assert "answers 503, as it was asked to" in str(outcomes[model, sdk])
    _, rows = check_one_row_each(product, session_of(model, sdk), calls=3)
    assert {row["status"] for row in rows} == {"vendor_error"}


@pytest.mark.parametrize("sdk", OBEYS_SHOULD_RETRY)
def test_a_call_is_not_repeated_where_that_cannot_help(
    product: Product, outcomes: dict[tuple[str, str], Exception | None], sdk: str
) -> None:
    model = "sim-badkey"
    assert isinstance(outcomes[model, sdk], openai.APIStatusError | anthropic.APIStatusError)
    check_one_row_each(product, session_of(model, sdk), calls=1)


@pytest.mark.parametrize("sdk", OBEYS_SHOULD_RETRY)
def test_a_spent_month_is_refused_once(product: Product, sdk: str, spent: str) -> None:
    session = session_of("spent", sdk)
    before = product.metric("kaixu_refusals_total", reason="monthly_limit")
    with ExitStack() as stack:
        call: Caller = getattr(Clients(product, stack, spent), sdk)()
        with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)):
            call("gpt-spent", session)
    assert product.metric("kaixu_refusals_total", reason="monthly_limit") == before + 1
    assert [line for line in product.tallied() if line["session_id"] == session] == []
