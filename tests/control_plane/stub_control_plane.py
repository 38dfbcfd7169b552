"""Stands in for the control plane where only its being started, kept and stopped matters."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

environment = dict(os.environ)  # noqa: TID251 - what it was started with is the point
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with Path(sys.argv[1]).open("a") as starts:
    starts.write(json.dumps(environment) + "\n")
port = int(environment["KAIXU_ADMIN_PORT"]) or 18_081
print(json.dumps({"admin_url": f"http://127.0.0.1:{port}"}), flush=True)
threading.Event().wait()
