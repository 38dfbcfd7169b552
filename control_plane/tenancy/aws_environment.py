"""AWS credentials from the environment in which a Bedrock vendor is added."""

import json
from collections.abc import Mapping
from typing import Final

from control_plane.errors import BadArgument

_BEDROCK: Final = "bedrock"
_API_KEY: Final = "AWS_BEARER_TOKEN_BEDROCK"
_MEMBERS: Final = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "region": "AWS_REGION",
}
_NEEDED: Final = ("access_key_id", "secret_access_key")
_DEFAULT_REGION: Final = "AWS_DEFAULT_REGION"


def aws_key(environment: Mapping[str, str], kind: str) -> str:
    """Return the key of a Bedrock vendor as a key file has it, "" where nothing is set.

    `kind` is what was said of the vendor; any other than bedrock has no key here. Raises
    BadArgument where one half of a key pair is missing.
    """
    if kind != _BEDROCK:
        return ""
    if environment.get(_API_KEY):
        return environment[_API_KEY]
    members = {name: environment.get(variable, "") for name, variable in _MEMBERS.items()}
    members["region"] = members["region"] or environment.get(_DEFAULT_REGION, "")
    missing = [_MEMBERS[name] for name in _NEEDED if not members[name]]
    if len(missing) == len(_NEEDED):
        return ""
    if missing:
        raise BadArgument(f"{missing[0]} is missing beside its other half.", field=missing[0])
    return json.dumps({name: value for name, value in members.items() if value})
