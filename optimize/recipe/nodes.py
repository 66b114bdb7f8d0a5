"""Strict YAML to a tree of values that know where they were written."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from optimize import foreign_files
from optimize.errors import Fault, RecipeError, UsageError

MAXIMUM_BYTES = 1 << 20
"""A recipe is a page or two; a file above this is something else."""

MAXIMUM_NODES = 20_000
"""Values after aliases are expanded: what stops a "billion laughs" file."""

MAXIMUM_DEPTH = 64

MAXIMUM_BITS = 4096
"""Of a whole number."""

_CORE = "tag:yaml.org,2002:"
_SCALARS = {_CORE + name for name in ("str", "int", "float", "bool", "null")}

Scalar = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where something was written.

    Attributes:
        file: As the user gave it; "" when it came from no file.
        line: 1-based; 0 when unknown.
        column: 1-based; 0 when unknown.
        folder: What relative paths written here start from.
    """

    file: str = ""
    line: int = 0
    column: int = 0
    folder: Path = Path(".")


@dataclasses.dataclass(frozen=True)
class Node:
    """A value and where it was written.

    Attributes:
        value: A scalar, a tuple of nodes, or a mapping of nodes by key.
        place: Where the value starts.
        keys: Where each key of a mapping starts.
    """

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    place: Place
    keys: dict[str, Place] = dataclasses.field(default_factory=dict)

    @property
    def mapping(self) -> dict[str, Node]:
        """The entries when it is a mapping, else none."""
        return self.value if isinstance(self.value, dict) else {}

    def plain(self) -> Any:
        """The value as plain Python data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value

    def kind(self) -> str:
        """What it is, in words for a message: "a list", "a mapping", "12", "'text'"."""
        return describe(self.plain())


def describe(value: Any) -> str:
    """A value in words for a message; short however long the value is."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "…" + text[-1]


def node_of(value: Any, place: Place) -> Node:
    """A tree of values that were not read from a file."""
    if isinstance(value, dict):
        entries = {str(key): node_of(item, place) for key, item in value.items()}
        return Node(entries, place, dict.fromkeys(entries, place))
    if isinstance(value, list | tuple):
        return Node(tuple(node_of(item, place) for item in value), place)
    return Node(value, place)


def read(path: Path, shown: str) -> Node:
    """Read one YAML 1.2 file; `shown` is its name in messages. An empty file is an empty mapping.

    Raises:
        UsageError: When the file cannot be read.
        RecipeError: When it is not the strict YAML that recipes are written in.
    """
    try:
        content = foreign_files.content(path, MAXIMUM_BYTES)
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL, errno.EISDIR):
            raise UsageError(
                f"{shown}: not a recipe: {error.strerror}.", hint="Give a recipe's YAML file."
            ) from None
        raise UsageError(f"{shown}: cannot be read: {error.strerror}.", hint="Check the path.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError([Fault("", "not UTF-8 text", file=shown, line=line, column=1)]) from None
    return parse(text, Place(shown, 1, 1, path.parent))


def parse(text: str, origin: Place) -> Node:
    """Parse YAML 1.2 text whose first character stands at `origin`.

    Raises:
        RecipeError: When it is not valid, or uses tags, merge keys, duplicate keys or directives.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        message = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise RecipeError(
            [Fault("", f"not valid YAML: {message}", file=origin.file, line=line, column=column)]
        ) from None
    except YAMLError as error:
        message = " ".join(str(error).split())
        raise RecipeError([Fault("", f"not valid YAML: {message}", file=origin.file, line=1, column=1)]) from None
    except (ValueError, OverflowError) as error:  # an escape such as "\\U00110000", which no character has
        message = f"not valid YAML: {error}"
        raise RecipeError([Fault("", message, file=origin.file, line=1, column=1)]) from None
    except RecursionError:
        raise RecipeError([Fault("", _TOO_DEEP, file=origin.file, line=1, column=1)]) from None
    if root is None:
        return Node({}, origin)
    reader = _Reader(yaml, origin)
    tree = reader.convert(root, "", 0)
    if text.lstrip().startswith("%"):
        reader.fault("", "a YAML directive (%…) is not taken; recipes are YAML 1.2", root)
    if reader.faults:
        raise RecipeError(reader.faults)
    return tree


_TOO_DEEP = f"nested more than {MAXIMUM_DEPTH} levels deep"


class _Reader:
    """Turns ruamel's nodes into ours, collecting what recipes do not take."""

    def __init__(self, yaml: YAML, origin: Place) -> None:
        self.yaml = yaml
        self.origin = origin
        self.faults: list[Fault] = []
        self.count = 0

    def place(self, node: Any) -> Place:
        mark = node.start_mark
        return dataclasses.replace(self.origin, line=mark.line + 1, column=mark.column + 1)

    def fault(self, path: str, message: str, node: Any) -> None:
        place = self.place(node)
        self.faults.append(Fault(path, message, file=place.file, line=place.line, column=place.column))

    def convert(self, node: Any, path: str, depth: int) -> Node:
        """Convert a node and all below it; what is refused becomes null, with a fault."""
        self.count += 1
        place = self.place(node)
        if depth > MAXIMUM_DEPTH or self.count > MAXIMUM_NODES:
            message = _TOO_DEEP if depth > MAXIMUM_DEPTH else f"more than {MAXIMUM_NODES} values"
            self.fault(path, f"{message} (an alias that repeats itself?)", node)
            raise RecipeError(self.faults)
        if isinstance(node, MappingNode) and node.tag == _CORE + "map":
            return self.convert_mapping(node, path, depth, place)
        if isinstance(node, SequenceNode) and node.tag == _CORE + "seq":
            items = (self.convert(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value))
            return Node(tuple(items), place)
        if isinstance(node, ScalarNode) and node.tag in _SCALARS:
            return Node(self.scalar(node, path), place)
        if isinstance(node, ScalarNode) and node.tag == _CORE + "timestamp":
            return Node(node.value, place)
        tag = str(node.tag).replace(_CORE, "!!")
        self.fault(path, f"the tag '{tag}' is not taken; recipes hold plain data only", node)
        return Node(None, place)

    def scalar(self, node: ScalarNode, path: str) -> Scalar:
        """The value of a scalar; a whole number that Python could not write out again is refused."""
        try:
            value: Scalar = self.yaml.constructor.construct_object(node)
        except ValueError:  # Python reads no more than some thousand decimal digits
            value = 1 << MAXIMUM_BITS
        if isinstance(value, int) and value.bit_length() > MAXIMUM_BITS:
            self.fault(path, f"a whole number of more than {MAXIMUM_BITS:,} bits", node)
            return None
        return value

    def convert_mapping(self, node: MappingNode, path: str, depth: int, place: Place) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.fault(path, "a key must be text", key)
                continue
            if key.tag == _CORE + "merge":
                self.fault(path, "the merge key '<<' is not taken; use 'extends'", key)
                continue
            name = str(key.value)
            below = f"{path}.{name}" if path else name
            if name in entries:
                self.fault(below, f"written twice; first on line {keys[name].line}", key)
                continue
            keys[name] = self.place(key)
            entries[name] = self.convert(value, below, depth + 1)
        return Node(entries, place, keys)
