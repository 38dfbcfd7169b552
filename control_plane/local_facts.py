"""What `kaixu up` is told, and what it says when everything runs."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.database import DatabasePlace
from control_plane.identity.first_owner import FirstOwner
from control_plane.local_plane import COMMAND as CONTROL_PLANE


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """How to run. A port 0 is any free one; `workers` None: one for each core."""

    place: DatabasePlace
    host: str
    port: int
    ops_port: int
    workers: int | None
    admin_port: int = 0
    environment: Mapping[str, str] = field(repr=False)
    gateway: tuple[str, ...] = (sys.executable, "-P", "-m", "gateway")  # how it is started
    control_plane: tuple[str, ...] = CONTROL_PLANE


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What runs now. `simulated` are the vendors that the simulator stands in for."""

    gateway_url: str
    ops_url: str
    admin_url: str | None  # None: the control plane runs on other machines
    data_dir: str
    database_url: str = field(repr=False)
    supervisor_pid: int
    simulator_tally: str | None
    token: str | None = field(repr=False)
    owner: FirstOwner | None
    simulated: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the line that scripts read."""
        return {
            "gateway_url": self.gateway_url,
            "ops_url": self.ops_url,
            "admin_url": self.admin_url,
            "data_dir": self.data_dir,
            "database_url": self.database_url,
            "supervisor_pid": self.supervisor_pid,
            "simulator_tally": self.simulator_tally,
            "token": self.token,
            "owner_email": None if self.owner is None else self.owner.email,
            "owner_password": None if self.owner is None else self.owner.password,
        }
