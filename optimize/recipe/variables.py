"""`variables:` and `${name}`: values said once and set from the command line."""

from __future__ import annotations

import re
from pathlib import Path as FilePath

from optimize.errors import RecipeError
from optimize.recipe.faults import Faults, Path, did_you_mean
from optimize.recipe.nodes import MAXIMUM_BYTES, MAXIMUM_DEPTH, MAXIMUM_NODES, Node, Place, parse

VARIABLES = "variables"
_REFERENCE = re.compile(r"\$(?:\$\{|\{([^{}]*)\})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def substitute(root: Node, given: dict[str, str], faults: Faults) -> Node:
    """The tree with every `${name}` replaced and `variables:` taken out.

    A text that is nothing but `${name}` becomes the variable's value with its type; within a longer text
    the value is written out. `$${` stands for a plain `${`. A path starts from the folder of whoever wrote
    its beginning: a value from the command line starts from the working folder.
    """
    declared = root.mapping.get(VARIABLES)
    if declared is not None and not isinstance(declared.value, dict):
        faults.add((VARIABLES,), f"expected a mapping of names to values, got {declared.kind()}", declared.place)
    known = dict(declared.mapping) if declared is not None else {}
    for name in known:
        if not _NAME.fullmatch(name):
            faults.add((VARIABLES, name), "a name holds letters, digits and _ only", known[name].place)
    known.update({name: _from_command_line(name, text, known.get(name)) for name, text in given.items()})
    substitution = _Substitution(known, faults)
    entries = {key: substitution.walk(node, (key,), ()) for key, node in root.mapping.items() if key != VARIABLES}
    names = [*(declared.mapping if declared is not None else ()), *substitution.used]
    for name in given:
        if name not in names:
            message = f"--set {name}: the recipe has no variable '{name}'{did_you_mean(name, names)}"
            faults.add((VARIABLES, name), message, Place())
    keys = {key: place for key, place in root.keys.items() if key != VARIABLES}
    return Node(entries, root.place, keys)


def escaped(text: str) -> str:
    """Text as a recipe must write it so that it comes back unchanged."""
    return text.replace("${", "$${")


def _from_command_line(name: str, text: str, declared: Node | None) -> Node:
    """The value of `--set name=text`: a number, true, false or null where it reads as one, else text.

    A list or a mapping is taken as one where the recipe's own value of the variable is one.
    """
    here = Place(f"--set {name}", 1, 1, FilePath.cwd())
    try:
        node = parse(text, here)
    except RecipeError:
        return Node(text, here)
    is_alike = declared is not None and type(node.value) is type(declared.value)
    is_taken = is_alike or not isinstance(node.value, dict | tuple)
    return node if text.strip() and is_taken else Node(text, here)


class _Substitution:
    def __init__(self, known: dict[str, Node], faults: Faults) -> None:
        self.known = known
        self.faults = faults
        self.used: set[str] = set()
        self.look_ups = 0
        self.written = 0

    def walk(self, node: Node, path: Path, within: tuple[str, ...]) -> Node:
        """The node with its references replaced; `within` are the variables being replaced around it."""
        if isinstance(node.value, dict):
            entries = {key: self.walk(item, (*path, key), within) for key, item in node.value.items()}
            return Node(entries, node.place, node.keys)
        if isinstance(node.value, tuple):
            items = (self.walk(item, (*path, index), within) for index, item in enumerate(node.value))
            return Node(tuple(items), node.place)
        if isinstance(node.value, str) and "${" in node.value:
            return self.replace(node, node.value, path, within)
        return node

    def replace(self, node: Node, text: str, path: Path, within: tuple[str, ...]) -> Node:
        whole = _REFERENCE.fullmatch(text)
        if whole and whole.group(1) is not None:
            found = self.look_up(whole.group(1), node, path, within)
            return found if found is not None else node
        folder = node.place
        pieces: list[str] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            pieces.append(text[end : match.start()])
            end = match.end()
            if match.group(1) is None:
                pieces.append("${")
                continue
            found = self.look_up(match.group(1), node, path, within)
            if found is None:
                continue
            if isinstance(found.value, dict | tuple) or found.value is None:
                message = f"'{match.group(1)}' is {found.kind()} and cannot be written into text"
                self.faults.add(path, message, node.place)
                continue
            if match.start() == 0:
                folder = Place(node.place.file, node.place.line, node.place.column, found.place.folder)
            pieces.append(str(found.value) if not isinstance(found.value, bool) else found.kind())
        pieces.append(text[end:])
        self.written += sum(map(len, pieces))
        self.stop_when(self.written > MAXIMUM_BYTES, f"more than {MAXIMUM_BYTES:,} characters of", path, node)
        if "${" in _REFERENCE.sub("", text):
            self.faults.add(path, "'${' without '}'; write '$${' for a plain one", node.place)
        return Node("".join(pieces), folder)

    def look_up(self, name: str, node: Node, path: Path, within: tuple[str, ...]) -> Node | None:
        """The variable's value, itself with references replaced; None, with a fault, when it has none."""
        self.used.add(name)
        self.look_ups += 1
        self.stop_when(self.look_ups > MAXIMUM_NODES, f"more than {MAXIMUM_NODES:,} uses of", path, node)
        self.stop_when(len(within) > MAXIMUM_DEPTH, f"more than {MAXIMUM_DEPTH} levels of", path, node)
        if name in within:
            chain = " → ".join((*within, name))
            self.faults.add(path, f"the variable '{name}' uses itself: {chain}", node.place)
            return None
        found = self.known.get(name)
        if found is None:
            near = did_you_mean(name, self.known)
            message = f"no variable is called '{name}'{near or '; add it to variables: or give --set'}"
            self.faults.add(path, message, node.place)
            return None
        value = self.walk(found, path, (*within, name))
        at = Place(node.place.file, node.place.line, node.place.column, found.place.folder)
        return Node(value.value, at, dict.fromkeys(value.mapping, at))

    def stop_when(self, is_too_much: bool, what: str, path: Path, node: Node) -> None:
        """Variables that use variables twice each double with every level: end before memory or patience does.

        Raises:
            RecipeError: With all faults so far.
        """
        if is_too_much:
            self.faults.add(path, f"{what} variables within variables", node.place)
            self.faults.raise_any()
