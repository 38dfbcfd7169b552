"""Stands in for the gateway where only its being started, kept and stopped matters."""

import json
import os
import signal
import sys
from pathlib import Path

environment = dict(os.environ)  # noqa: TID251 - what it was started with is the point
port = int(environment["KAIXU_PORT"]) or 18_080
facts = {
    "gateway_url": f"http://127.0.0.1:{port}",
    "ops_url": "http://127.0.0.1:18090",
    "supervisor_pid": os.getpid(),
}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with Path(sys.argv[1]).open("a") as starts:
    starts.write(json.dumps(environment) + "\n")
print(json.dumps(facts), flush=True)
sys.stdin.read()
