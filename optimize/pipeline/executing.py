"""One step after the other: looked up in the store, or computed in a process of its own and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from optimize.errors import OptimizeError
from optimize.facts import StageRecord
from optimize.pipeline import child, digests, environment
from optimize.pipeline.stages import STAGES, Stage
from optimize.pipeline.store import Entry, Store


class Watcher(Protocol):
    """Who wants to know how a run goes."""

    def started(self, stage: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def finished(self, record: StageRecord) -> None: ...


class Executor:
    """Runs steps and keeps a record of each.

    Args:
        store: Where finished steps are kept.
        watcher: Told how it goes.
        logs: Folder for what the steps' processes print.
        fresh: Steps to compute again even when the store has them.
    """

    def __init__(self, store: Store, watcher: Watcher, logs: Path, fresh: frozenset[str] = frozenset()) -> None:
        self.store = store
        self.records: list[StageRecord] = []
        self._watcher = watcher
        self._logs = logs
        self._fresh = fresh

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        payload: Mapping[str, Any],
        *,
        label: str | None = None,
        runs_user_code: bool | None = None,
    ) -> Entry:
        """The finished step `name` for these inputs.

        Args:
            name: A key of `STAGES`.
            inputs: All that decides the result, JSON data; hashed into the key.
            payload: What the step's process is sent; paths may differ between machines.
            label: The name in records, when it is not `name`.
            runs_user_code: Whether it does this time, when that is not as `STAGES` says.

        Raises:
            OptimizeError: When the step fails; its record is kept first.
        """
        stage, label = STAGES[name], label or name
        if runs_user_code is not None:
            stage = dataclasses.replace(stage, runs_user_code=runs_user_code)
        went_in = {
            "stage": name,
            "code": environment.code_digest(),
            "libraries": environment.versions(stage.libraries),
            **inputs,
        }
        key = digests.of_data(went_in)
        self._watcher.started(label)
        entry = None if name in self._fresh else self.store.lookup(key)
        if entry is not None:
            self._record(StageRecord(name=label, outcome="reused", key=key, **_figures(entry)))
            return entry
        try:
            with self.store.lock(key, on_wait=lambda: self._watcher.progress("waiting for another run", 0, 0)):
                entry = None if name in self._fresh else self.store.lookup(key)
                outcome: Literal["done", "reused"] = "reused"
                if entry is None:
                    entry, outcome = self._compute(key, label, name, stage, went_in, payload), "done"
        except OptimizeError as error:
            self._record(StageRecord(name=label, outcome="failed", key=key, error=str(error)))
            raise
        self._record(StageRecord(name=label, outcome=outcome, key=key, **_figures(entry)))
        return entry

    def _compute(
        self,
        key: str,
        label: str,
        name: str,
        stage: Stage,
        went_in: Mapping[str, Any],
        payload: Mapping[str, Any],
    ) -> Entry:
        workspace = self.store.workspace(key)
        log = self._logs / f"{label.replace(' ', '-')}.log"
        try:
            outcome = child.run(stage, payload, workspace, log, self._watcher.progress, store=self.store.root)
            return self.store.publish(
                key,
                name,
                workspace,
                facts=outcome.facts,
                inputs=went_in,
                record={"seconds": outcome.seconds, "peak_anonymous_bytes": outcome.peak_anonymous_bytes},
                dependencies=outcome.dependencies,
            )
        except BaseException:
            self.store.abandon(workspace)
            raise

    def _record(self, record: StageRecord) -> None:
        self.records.append(record)
        self._watcher.finished(record)


def _figures(entry: Entry) -> dict[str, Any]:
    return {
        "seconds": entry.record.get("seconds", 0.0),
        "peak_anonymous_bytes": entry.record.get("peak_anonymous_bytes"),
    }


@dataclasses.dataclass(frozen=True)
class Silent:
    """A watcher that does not care."""

    def started(self, stage: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def finished(self, record: StageRecord) -> None:
        """Nothing."""
