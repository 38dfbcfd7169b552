import pytest

from gateway.errors import MethodNotAllowed, NoRoute
from gateway.proxy.endpoints import Match, find, in_format
from gateway.proxy.stored_paths import STORED_PATHS, StoredPath

HEADERS = {
    "openai": [],
    "anthropic": [(b"anthropic-version", b"2023-06-01")],
    "gemini": [(b"x-goog-api-client", b"google-genai-sdk/3.4.0")],
}
ids = pytest.mark.parametrize(
    "path",
    STORED_PATHS,
    ids=lambda path: f"{path.wire.name} {path.method.decode()} {path.template}",
)


def read(path: StoredPath, *, vendor: str = "", method: bytes | None = None) -> Match:
    text = path.template.replace("{id}", "an-id_1").replace("{}", "part.2")
    wire = path.wire.name
    return find(vendor + text, method=method or path.method, headers=HEADERS[wire])


@ids
@pytest.mark.parametrize("vendor", ["", "/acme"])
def test_a_path_of_the_table_is_found_with_its_object(path: StoredPath, vendor: str) -> None:
    match = read(path, vendor=vendor)
    assert (match.endpoint.name, match.endpoint.wire) == (path.name, path.wire)
    assert match.endpoint.stored is path.use
    assert match.object_id == (path.prefix + "an-id_1" if path.use.names else None)
    assert match.vendor == (vendor[1:] or None)
    assert not match.endpoint.generates or match.endpoint.counts


@ids
def test_other_methods_are_not_allowed(path: StoredPath) -> None:
    with pytest.raises((MethodNotAllowed, NoRoute)) as caught:
        read(path, method=b"TRACE")
    assert isinstance(caught.value, MethodNotAllowed)
    assert path.method.decode() in caught.value.headers["allow"]


@ids
def test_names_and_templates_are_told_apart(path: StoredPath) -> None:
    same = [
        one
        for one in STORED_PATHS
        if one.wire is path.wire and (one.method, one.template) == (path.method, path.template)
    ]
    assert same == [path]
    assert "{id}" not in path.template or path.use.names


def test_a_path_of_two_formats_is_told_by_who_asks_or_by_the_vendor() -> None:
    by_client = find("/v1/files/f", method=b"GET", headers=HEADERS["anthropic"])
    assert by_client.endpoint.wire.name == "anthropic"
    plain = find("/acme/v1/files/f", method=b"GET", headers=[])
    assert plain.endpoint.wire.name == "openai"
    assert in_format(plain, "anthropic").endpoint is by_client.endpoint
    assert in_format(plain, "openai") == plain
    assert in_format(by_client, "openai").endpoint is plain.endpoint


@pytest.mark.parametrize("header", [(b"x-goog-api-client", b"x"), (b"x-goog-api-key", b"kxg_")])
def test_googles_files_are_told_by_its_headers_below_v1_too(header: tuple[bytes, bytes]) -> None:
    by_client = find("/v1/files/f", method=b"GET", headers=[header])
    assert (by_client.endpoint.wire.name, by_client.object_id) == ("gemini", "files/f")
    named = find("/acme/v1/files/f", method=b"GET", headers=[])
    assert (named.endpoint.wire.name, named.object_id) == ("openai", "f")
    assert in_format(named, "gemini").object_id == "files/f"
    assert in_format(by_client, "openai").object_id == "f"


@pytest.mark.parametrize("name", ["", "a/b", "a%2Fb", "a b", "a:cancel", "..", "x" * 201])
def test_an_id_is_one_plain_part_of_a_path(name: str) -> None:
    with pytest.raises(Exception, match="path") as caught:
        find(f"/v1/files/{name}", method=b"GET", headers=[])
    assert caught.type.__name__ in ("NoRoute", "RequestInvalid")
