import json
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.journeys.node_sdks import node_with_sdks
from tests.journeys.product import VISIBLE_SECONDS_MAX, Product, Simulator, eventually

LOOKS: Final = 12  # on connections that spread over two workers


@pytest.fixture(scope="session")
def shared_folder() -> Iterator[Path]:
    # Not pytest's: PostgreSQL's paths and its user want a short way that can be opened.
    folder = Path(tempfile.mkdtemp(prefix="kaixu-journey-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def product(shared_folder: Path) -> Iterator[Product]:
    """One product for the journeys that leave it as they found it."""
    started = Product.start(shared_folder / "data")
    yield started
    started.destroy()


@pytest.fixture(scope="session")
def spent(product: Product) -> str:
    """A token whose month holds no call."""
    return product.new_token("--limit", "0")[0]


@pytest.fixture(scope="session")
def more_vendors(product: Product) -> None:
    """Vendors of more kinds, on the product's simulator: `sim-mistral`, `-cohere`, `-ollama`.

    Each is named by the path, or by a model whose name begins with the vendor's.
    """
    vendors = product.kaixu("vendor", "list")
    openai_url = next(one["base_url"] for one in vendors if one["name"] == "openai")
    root = openai_url.removesuffix("/v1")
    for name, kind, base_url, *options in (
        ("sim-mistral", "openai", f"{root}/mistral/v1", "--usage-unasked"),
        ("sim-cohere", "cohere", root),
        ("sim-ollama", "ollama", root),
    ):
        more = [*options, "--models", f"{name}*"]
        product.add_vendor(name, kind=kind, base_url=base_url, key=f"key-of-{name}", options=more)
    # Each worker asks for their models in the background.
    for path in ("sim-mistral/v1/models", "sim-cohere/v1/models", "sim-ollama/api/tags"):
        eventually(
            lambda path=path: all(_lists(product, path) for _ in range(LOOKS)),  # type: ignore[misc]
            seconds=VISIBLE_SECONDS_MAX,
            what=f"/{path} lists models, whichever worker is asked",
        )


def _lists(product: Product, path: str) -> bool:
    """Return whether a list of models has any in it; each question is on a connection anew."""
    request = urllib.request.Request(  # noqa: S310 - our own
        f"{product.url}/{path}", headers={"authorization": f"Bearer {product.token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        listed = json.load(answer)
    return bool(listed.get("data") or listed.get("models"))


@pytest.fixture(scope="session")
def node() -> str:
    """Node's program, with the SDKs that the scripts in `node/` need."""
    return node_with_sdks()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kaixu-journey-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Product]]:
    """Starts products of the test's own, in `folder / "data"`, and leaves none behind."""
    started: list[Product] = []

    def starter(**options: Any) -> Product:
        product = Product.start(folder / "data", **options)
        started.append(product)
        return product

    yield starter
    for product in started:
        product.destroy()


@pytest.fixture
def simulator(folder: Path) -> Iterator[Simulator]:
    """A simulated vendor of the test's own."""
    started = Simulator(folder / "simulator.jsonl")
    yield started
    started.stop()
