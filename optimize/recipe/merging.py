"""`extends:`: a recipe on top of others, each value remembering the file that said it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from optimize import foreign_files
from optimize.errors import UsageError
from optimize.recipe.engine_section import ENGINE, in_full
from optimize.recipe.faults import Faults
from optimize.recipe.gate_list import GATES, flatten
from optimize.recipe.nodes import MAXIMUM_DEPTH, Node, read

EXTENDS = "extends"
BASE = "base"
NAMED_IN = "file"
"""`base: {file: NAME}`: the folder is the first line of a file beside the recipe."""

LONGEST_NAMING = 1 << 16
"""Bytes of such a file; systems take a sixteenth of that for a path."""


def compose(path: Path, faults: Faults) -> Node:
    """The recipe at `path` merged over everything it extends; syntax errors are raised, others noted."""
    return _Composer(faults).load(path, str(path), ())


def merge(below: Node, above: Node) -> Node:
    """`above` over `below`: mappings key by key, everything else replaced.

    A mapping with another `kind` than the one below is another thing and replaces it whole, so that a
    recipe may swap a torch source for an ONNX file without unsaying each key.
    """
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    kinds = [node.mapping["kind"].value for node in (below, above) if "kind" in node.mapping]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return above
    entries = dict(below.value)
    for key, node in above.value.items():
        entries[key] = merge(entries[key], node) if key in entries else node
    return Node(entries, above.place, {**below.keys, **above.keys})


class _Composer:
    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.finished: dict[Path, Node] = {}

    def load(self, path: Path, shown: str, open_files: tuple[Path, ...]) -> Node:
        real = path.resolve()
        if real in self.finished:
            return self.finished[real]
        node = read(path, shown)
        if not isinstance(node.value, dict):
            self.faults.add((), f"expected a mapping of keys, got {node.kind()}", node.place)
            self.faults.raise_any()
        node = self.rebased(node)
        merged = Node({}, node.place)
        for parent in self.parents(node):
            place = parent.place
            folder = path.parent
            below = folder / str(parent.value)
            if len(open_files) == MAXIMUM_DEPTH:
                self.faults.add((EXTENDS,), f"more than {MAXIMUM_DEPTH} recipes on top of each other", place)
                self.faults.raise_any()
            if below.resolve() in (*open_files, real):
                chain = " → ".join(item.name for item in (*open_files, real, below.resolve()))
                self.faults.add((EXTENDS,), f"extends itself: {chain}", place)
                continue
            try:
                merged = merge(merged, self.load(below, _shown(below), (*open_files, real)))
            except UsageError as error:
                if not below.is_file():
                    self.faults.add((EXTENDS,), f"{error.message} Looked at {_shown(below)}", place)
                    continue
                raise
        own = {key: value for key, value in node.mapping.items() if key not in (EXTENDS, BASE)}
        if GATES in own:
            own[GATES] = flatten(own[GATES], self.faults)
        if ENGINE in own:
            own[ENGINE] = in_full(own[ENGINE])
        result = merge(merged, Node(own, node.place, node.keys))
        self.finished[real] = result
        return result

    def parents(self, node: Node) -> tuple[Node, ...]:
        """The entries of `extends`, in the order they are laid over each other."""
        listed = node.mapping.get(EXTENDS)
        if listed is None or listed.value is None:
            return ()
        entries = listed.value if isinstance(listed.value, tuple) else (listed,)
        found: list[Node] = []
        for entry in entries:
            if not isinstance(entry.value, str):
                message = f"expected a file name or a list of them, got {entry.kind()}"
                self.faults.add((EXTENDS,), message, entry.place)
            elif "${" in entry.value:
                self.faults.add((EXTENDS,), "variables cannot be used here", entry.place)
            elif "\0" in entry.value:
                self.faults.add((EXTENDS,), f"no file can be called {entry.kind()}", entry.place)
            else:
                found.append(entry)
        return tuple(found)

    def rebased(self, node: Node) -> Node:
        """The tree with `base:`, a folder from the file's own, as what its relative paths start from."""
        base = node.mapping.get(BASE)
        if base is None:
            return node
        folder = self._named_folder(base) if set(base.mapping) == {NAMED_IN} else base.value
        if isinstance(folder, str):
            return _moved(node, node.place.folder / folder)
        if folder is not None:
            self.faults.add((BASE,), f"expected a folder, got {base.kind()}", base.place)
        return node

    def _named_folder(self, base: Node) -> str | None:
        """The folder in the first line of the file that `base: {file: NAME}` names; None when it is not there."""
        named = base.mapping[NAMED_IN]
        if not isinstance(named.value, str):
            self.faults.add((BASE, NAMED_IN), f"expected a file's name, got {named.kind()}", named.place)
            return None
        file = base.place.folder / named.value
        try:
            text = foreign_files.content(file, LONGEST_NAMING).decode("utf-8")
            return text.partition("\n")[0].strip() or "."
        except (OSError, ValueError):  # no text, or a name that no file can have
            what = f"there is no readable file '{file}' that names the folder; write the folder here instead"
            self.faults.add((BASE,), what, base.place)
            return None


def _moved(node: Node, folder: Path) -> Node:
    place = dataclasses.replace(node.place, folder=folder)
    keys = {key: dataclasses.replace(at, folder=folder) for key, at in node.keys.items()}
    if isinstance(node.value, dict):
        return Node({key: _moved(item, folder) for key, item in node.value.items()}, place, keys)
    if isinstance(node.value, tuple):
        return Node(tuple(_moved(item, folder) for item in node.value), place)
    return Node(node.value, place)


def _shown(path: Path) -> str:
    return os.path.normpath(path)
