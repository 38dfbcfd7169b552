"""What the functions behind the routes work with: made once as the control plane starts."""

from collections.abc import Callable
from dataclasses import dataclass

from control_plane.identity.session_keys import SessionKeys
from control_plane.mail import Outbox
from control_plane.secrets import ControlKeys
from control_plane.server_settings import ServerSettings
from control_plane.web.database import ControlDatabase
from gateway.ids import IdMaker
from gateway.log import Log


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """All of them. `now` gives Unix seconds of this machine's clock."""

    settings: ServerSettings
    database: ControlDatabase
    session_keys: SessionKeys
    control_keys: ControlKeys
    outbox: Outbox
    ids: IdMaker
    log: Log
    now: Callable[[], float]
