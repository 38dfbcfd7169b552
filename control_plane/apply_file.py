"""The file of `kaixu apply`: from YAML to what is wanted; a refusal names the line and the field.

What the file does not say stays as it is. Keys are never in it: it names where they are.
"""

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
import yaml

from control_plane.errors import BadArgument
from control_plane.tenancy.rbac import Role

FILE_BYTES_MAX: Final = 1024 * 1024
DEPTH_MAX: Final = 20
ANCHORED: Final = "A file has no anchors and aliases of YAML."

_PATH_PART: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_PLACE: Final = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Unset = msgspec.UnsetType
UNSET: Final = msgspec.UNSET


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be called; null takes a limit away."""

    limit: Count | Unset | None = UNSET
    rate: Text | Unset | None = UNSET
    concurrency: Count | Unset | None = UNSET


class OrgPart(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The org, by its name, and what it asks of members."""

    name: Text
    requires_totp: bool | Unset = UNSET
    token_days_max: Annotated[int, msgspec.Meta(ge=1, le=90)] | Unset = UNSET


class WorkspacePart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workspace, by its name."""

    name: Text
    limit: Count | Unset | None = UNSET


class MemberPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A member, by the e-mail address, and the roles in workspaces, by their names."""

    email: Text
    role: Role | Unset = UNSET
    workspaces: dict[Text, Role] = {}


class KeyPlace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a vendor's key is: in a variable of the environment, or in a file."""

    env: Text | None = None
    file: Text | None = None


class VendorPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vendor, by its name."""

    name: Text
    kind: Text | Unset = UNSET
    base_url: Text | Unset = UNSET
    preset: Text | Unset = UNSET
    private: bool | Unset = UNSET
    default: bool | Unset = UNSET
    models: list[Text] | Unset | None = UNSET
    usage_unasked: bool | Unset = UNSET
    disabled: bool | Unset = UNSET
    key: KeyPlace | Unset = UNSET


class ApplyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. Without an org, vendors and aliases are the operator's, for every org."""

    org: OrgPart | Unset = UNSET
    workspaces: list[WorkspacePart] | Unset = UNSET
    members: list[MemberPart] | Unset = UNSET
    vendors: list[VendorPart] | Unset = UNSET
    aliases: dict[Text, Text] | Unset = UNSET


class Source:
    """A file that was read: what it wants, and at which line it says so."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Raises BadArgument."""
        self._path = path
        if len(content) > FILE_BYTES_MAX:
            raise BadArgument(f"{path} is larger than {FILE_BYTES_MAX} bytes.", field="file")
        try:
            text = content.decode()
            events = yaml.parse(text, Loader=yaml.SafeLoader)
            if any(isinstance(one, yaml.AliasEvent) for one in events):  # they multiply
                raise BadArgument(f"{path}: {ANCHORED}", field="file")
            self._node = yaml.compose(text, Loader=yaml.SafeLoader)
            document = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = 1 if mark is None else mark.line + 1
            raise BadArgument(f"{path}:{line}: {error.problem}.", field="file") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise BadArgument(f"{path} is not YAML.", field="file") from error
        except (ValueError, KeyError, AttributeError) as error:  # how the parser fails on these
            raise BadArgument(
                f"{path} has a number, date or truth value that is none: quote it.", field="file"
            ) from error
        self._check_twice(self._node, "")
        try:
            self.wanted = msgspec.convert(document, ApplyFile)
        except msgspec.ValidationError as error:
            match = _PLACE.fullmatch(str(error))
            assert match is not None, "everything matches"
            place = (match["path"] or "").lstrip(".")
            if named := _FIELD.fullmatch(match["what"]):
                place = f"{place}.{named['name']}" if place else named["name"]
            raise self.refusal(f"{match['what']}.", place) from error

    def refusal(self, message: str, place: str) -> BadArgument:
        """Return a refusal of what the file says at a place, such as `vendors[0].key`."""
        return BadArgument(f"{self._path}:{self.line(place)}: {place}: {message}", field=place)

    def line(self, place: str) -> int:
        """Return the line of a place, or of the nearest thing around it that is there."""
        node = self._node
        line = 1
        for name, index in _PATH_PART.findall(f".{place}"):
            if isinstance(node, yaml.MappingNode) and name:
                found = [(k, v) for k, v in node.value if k.value == name]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and index.isdigit():
                if int(index) >= len(node.value):
                    break
                node = node.value[int(index)]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def _check_twice(self, node: yaml.Node | None, place: str, depth: int = 0) -> None:
        """Refuse a name that a mapping has twice: the second would silently win."""
        if depth > DEPTH_MAX:
            raise BadArgument(f"{self._path} is too deep.", field="file")
        if isinstance(node, yaml.SequenceNode):
            for index, one in enumerate(node.value):
                self._check_twice(one, f"{place}[{index}]", depth + 1)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                inner = f"{place}.{key.value}" if place else str(key.value)
                if str(key.value) in seen:
                    line = key.start_mark.line + 1
                    message = f"{self._path}:{line}: {inner}: This is there twice."
                    raise BadArgument(message, field=inner)
                seen.add(str(key.value))
                self._check_twice(value, inner, depth + 1)


def read_source(path: Path) -> Source:
    """Return what a file wants. Raises BadArgument."""
    try:
        with path.open("rb") as file:
            return Source(path, file.read(FILE_BYTES_MAX + 1))
    except OSError as error:
        raise BadArgument(f"{path} can't be read: {error.strerror}.", field="file") from error
