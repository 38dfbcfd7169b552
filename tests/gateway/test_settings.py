from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsInvalid

URL = "postgresql://gateway:s3cret-pw@db/kaixu"
LEAST = {"KAIXU_GATEWAY_DATABASE_URL": URL, "KAIXU_JOURNAL_DIR": "/var/lib/kaixu/journal"}


def read(**more: str) -> Settings:
    return Settings.from_env({**LEAST, **more})


def problems(environ: Mapping[str, str]) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as caught:
        Settings.from_env(environ)
    assert all(one.problem and one.fix for one in caught.value.problems)
    return {one.setting: f"{one.problem} {one.fix}" for one in caught.value.problems}


def test_the_least_that_can_be_set_gives_the_defaults() -> None:
    settings = read()
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.ops_host, settings.ops_port) == ("127.0.0.1", 9090)
    assert settings.workers >= 1
    assert settings.machine
    assert settings.feed_database_url == settings.gateway_database_url == URL
    assert settings.journal_dir == Path("/var/lib/kaixu/journal")
    assert settings.journal_keep_bytes == 1024**3
    assert settings.lease_seconds == 15
    assert settings.offline_stream_grace_seconds == 300
    assert settings.drain_timeout_seconds == 120
    assert settings.stream_total_seconds == 86_400
    assert settings.connections_per_worker == 16_384
    assert settings.connections_per_address is None
    assert settings.calls_per_org is None
    assert settings.hosts is None
    assert settings.vendor_hosts is None
    assert settings.cors_origins == ()
    assert settings.vault_keys == ()


@pytest.mark.parametrize(
    ("name", "text", "attribute", "value"),
    [
        ("KAIXU_HOST", "[::]", "host", "::"),
        ("KAIXU_PORT", "0", "port", 0),
        ("KAIXU_WORKERS", "3", "workers", 3),
        ("KAIXU_MACHINE", "box-1.example", "machine", "box-1.example"),
        ("KAIXU_FEED_DATABASE_URL", "postgres://db2/x", "feed_database_url", "postgres://db2/x"),
        ("KAIXU_JOURNAL_KEEP_BYTES", "512MiB", "journal_keep_bytes", 512 * 1024**2),
        ("KAIXU_JOURNAL_KEEP_BYTES", "1000", "journal_keep_bytes", 1000),
        ("KAIXU_LEASE", "2500ms", "lease_seconds", 2.5),
        ("KAIXU_OFFLINE_STREAM_GRACE", "0", "offline_stream_grace_seconds", 0),
        ("KAIXU_DRAIN_TIMEOUT", "2m", "drain_timeout_seconds", 120),
        ("KAIXU_STREAM_TOTAL", "1h", "stream_total_seconds", 3600),
        ("KAIXU_FIRST_BYTE", "1.5s", "first_byte_seconds", 1.5),
        ("KAIXU_IDLE", "90s", "idle_seconds", 90),
        ("KAIXU_CONNECTIONS_PER_WORKER", "10", "connections_per_worker", 10),
        ("KAIXU_CONNECTIONS_PER_ADDRESS", "64", "connections_per_address", 64),
        ("KAIXU_RATE_PER_ADDRESS", "600/1m", "rate_per_address", (600, 60)),
        ("KAIXU_CALLS_PER_ORG", "500", "calls_per_org", 500),
        ("KAIXU_HOSTS", "AI.example.com, ai:8443", "hosts",
         frozenset({"ai.example.com", "ai:8443"})),
        ("KAIXU_CORS_ORIGINS", "https://a.example, http://b:80/", "cors_origins",
         ("https://a.example", "http://b:80")),
        ("KAIXU_VENDOR_HOSTS", "api.openai.com, [::1]:8000", "vendor_hosts",
         frozenset({"api.openai.com", "[::1]:8000"})),
        ("KAIXU_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.7", "trusted_proxies",
         (ip_network("10.0.0.0/8"), ip_network("192.0.2.7"))),
        ("KAIXU_VAULT_KEY", "kxvault1_a\nkxvault1_b\n", "vault_keys", ("kxvault1_a", "kxvault1_b")),
        ("KAIXU_LEASE", "  ", "lease_seconds", 15),
    ],
)  # fmt: skip
def test_each_setting_is_read(name: str, text: str, attribute: str, value: object) -> None:
    assert getattr(read(**{name: text}), attribute) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KAIXU_HOST", "a b"),
        ("KAIXU_PORT", "65536"),
        ("KAIXU_PORT", "-1"),
        ("KAIXU_OPS_PORT", "http"),
        ("KAIXU_WORKERS", "0"),
        ("KAIXU_MACHINE", "-x"),
        ("KAIXU_GATEWAY_DATABASE_URL", "mysql://x"),
        ("KAIXU_FEED_DATABASE_URL", "db"),
        ("KAIXU_JOURNAL_KEEP_BYTES", "2GiB"),
        ("KAIXU_LEASE", "15"),
        ("KAIXU_LEASE", "1s"),
        ("KAIXU_LEASE", "5m"),
        ("KAIXU_DRAIN_TIMEOUT", "-1s"),
        ("KAIXU_STREAM_TOTAL", "25h"),
        ("KAIXU_FIRST_BYTE", "601s"),
        ("KAIXU_IDLE", "601s"),
        ("KAIXU_CONNECTIONS_PER_WORKER", "16385"),
        ("KAIXU_CONNECTIONS_PER_ADDRESS", "0"),
        ("KAIXU_RATE_PER_ADDRESS", "600"),
        ("KAIXU_RATE_PER_ADDRESS", "0/1m"),
        ("KAIXU_RATE_PER_ADDRESS", "600/1ms"),
        ("KAIXU_CALLS_PER_ORG", "0"),
        ("KAIXU_HOSTS", "*"),
        ("KAIXU_CORS_ORIGINS", "*"),
        ("KAIXU_VENDOR_HOSTS", "https://api.openai.com"),
        ("KAIXU_TRUSTED_PROXIES", "*"),
        ("KAIXU_TRUSTED_PROXIES", "0.0.0.0/0"),
        ("KAIXU_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("KAIXU_VAULT_KEY", "a b c"),
    ],
)
def test_what_can_t_be_used_names_its_setting(name: str, text: str) -> None:
    assert list(problems({**LEAST, name: text})) == [name]


def test_all_problems_are_told_at_once() -> None:
    told = problems({"KAIXU_PORT": "x", "KAIXU_LEASE": "y"})
    assert set(told) == {
        "KAIXU_GATEWAY_DATABASE_URL",
        "KAIXU_JOURNAL_DIR",
        "KAIXU_PORT",
        "KAIXU_LEASE",
    }


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("kxvault1_current\nkxvault1_previous\n")
    url = tmp_path / "url"
    url.write_text(URL + "\n")
    settings = Settings.from_env(
        {
            "KAIXU_GATEWAY_DATABASE_URL_FILE": str(url),
            "KAIXU_JOURNAL_DIR": "journal",
            "KAIXU_VAULT_KEY_FILE": str(file),
        }
    )
    assert settings.vault_keys == ("kxvault1_current", "kxvault1_previous")
    assert settings.gateway_database_url == URL
    assert settings.journal_dir.is_absolute()


def test_a_secret_s_file_must_be_there_and_hold_it(tmp_path: Path) -> None:
    missing, empty, binary = tmp_path / "missing", tmp_path / "empty", tmp_path / "binary"
    empty.touch()
    binary.write_bytes(b"\xff\xfe")
    for path in (missing, empty, binary, tmp_path):
        assert set(problems({**LEAST, "KAIXU_VAULT_KEY_FILE": str(path)})) == {
            "KAIXU_VAULT_KEY_FILE"
        }


def test_a_secret_from_two_places_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one")
    environ = {**LEAST, "KAIXU_VAULT_KEY": "two", "KAIXU_VAULT_KEY_FILE": str(file)}
    assert set(problems(environ)) == {"KAIXU_VAULT_KEY"}


def test_no_secret_shows() -> None:
    secret = "kxvault1_c4n4ry"
    assert "s3cret-pw" not in repr(read())
    assert secret not in repr(read(KAIXU_VAULT_KEY=secret))
    told = problems({**LEAST, "KAIXU_VAULT_KEY": f"{secret} b c"})
    assert secret not in repr(told)
    assert "s3cret-pw" not in repr(problems({**LEAST, "KAIXU_FEED_DATABASE_URL": "x:s3cret-pw"}))
