import json

import pytest

from control_plane.errors import BadArgument
from control_plane.tenancy.aws_environment import aws_key

PAIR = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "s"}


def test_a_key_pair_becomes_a_key_file() -> None:
    members = json.loads(aws_key({**PAIR, "AWS_REGION": "eu-west-1", "PATH": "x"}, "bedrock"))
    assert members == {
        "access_key_id": "AKIA1",
        "secret_access_key": "s",
        "region": "eu-west-1",
    }
    session = {**PAIR, "AWS_SESSION_TOKEN": "t", "AWS_DEFAULT_REGION": "us-east-1"}
    members = json.loads(aws_key(session, "bedrock"))
    assert (members["session_token"], members["region"]) == ("t", "us-east-1")


def test_an_api_key_goes_first() -> None:
    assert aws_key({**PAIR, "AWS_BEARER_TOKEN_BEDROCK": "ABSK1"}, "bedrock") == "ABSK1"


def test_nothing_is_taken_for_another_kind_or_from_an_empty_environment() -> None:
    assert aws_key(PAIR, "openai") == ""
    assert aws_key({"AWS_REGION": "eu-west-1"}, "bedrock") == ""


@pytest.mark.parametrize("name", list(PAIR))
def test_half_a_pair_is_refused(name: str) -> None:
    with pytest.raises(BadArgument) as refused:
        aws_key({name: "canary"}, "bedrock")
    assert refused.value.field in set(PAIR) - {name}
    assert "canary" not in str(refused.value)
