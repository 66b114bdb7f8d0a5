"""Steps 3 to 9 of a run, forward only: each reads earlier steps' results and adds its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optimize import errors
from optimize.facts import AccuracyResult, Roofline, StageRecord, ThroughputResult
from optimize.pipeline import environment, opening, outputs, preflight
from optimize.pipeline.executing import Executor
from optimize.pipeline.store import Entry
from optimize.recipe.model import Recipe
from optimize.report.model import Blame
from passes import lessons, names, registry

Until = Literal["passes", "build"]
"""Steps a user may ask a run to stop after."""


class Steps:
    """The state of one run: results of finished steps, None for those to come."""

    def __init__(
        self,
        recipe: Recipe,
        plan: preflight.Plan,
        executor: Executor,
        output: Path,
        *,
        until: Until | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self.recipe = recipe
        self.plan = plan
        self.executor = executor
        self.output = output
        self.until = until
        self.allow_pickle = allow_pickle
        self.store = executor.store
        self.capture: Entry | None = None
        self.feeds: Entry | None = None
        self.passes: Entry | None = None
        self.engine: Entry | None = None
        self.lessons: dict[str, Entry] = {}
        self.accuracy: tuple[AccuracyResult, ...] = ()
        self.throughput: ThroughputResult | None = None
        self.roofline: Roofline | None = None
        self.blame: Blame | None = None
        self.notes: list[str] = []

    def run(self) -> None:
        """Steps 3 to 9."""
        recipe, stage = self.recipe, self.executor.stage
        base = opening.recipe_payload(recipe, allow_pickle=self.allow_pickle)
        spec = recipe.source.model_dump(mode="json")
        files = opening.source_of(recipe, allow_pickle=self.allow_pickle).files()
        source_files = {str(number): path for number, path in enumerate(files)}
        digests = self.store.digests.of_all(source_files)
        known = {str(path.resolve()): digests[label] for label, path in source_files.items()}
        self.capture = capture = stage("capture", {"source": spec, "files": digests}, {**base, "digests": known})
        model = str(opening.local(capture.directory, capture.facts["model"]))
        shapes = {"inputs": capture.facts["inputs"], "ranges": capture.facts["ranges"]}

        if self.until == "passes" and not self._passes_need_data():
            self._place_passes(self._passes(capture, model, shapes, None, None, base))
            return
        self.feeds = feeds = stage(
            "feeds",
            {**self._data_inputs(), **shapes, "model": capture.facts["sha256"] if self._is_random() else None},
            {**base, **shapes, "model": model},
        )
        data = {"feeds": str(feeds.directory)}
        reference = stage(
            "reference",
            {"capture": capture.key, "feeds": feeds.facts["evaluation"], "kind": recipe.evaluate.kind},
            {**base, **data},
        )
        compared = {**base, **data, "reference": str(reference.directory)}

        optimized = self._passes(capture, model, shapes, feeds, reference, compared)
        self._place_passes(optimized)
        optimized_model = str(optimized.directory / optimized.facts["model"])
        if self.until == "passes":
            return

        if recipe.evaluate.attribution != "off":
            wanted = {"export": model, "model": optimized_model}
            keys = {"optimized": optimized.facts["sha256"], "capture": capture.key, "reference": reference.key}
            found = self._accuracy("accuracy of models", keys, compared, wanted)
            per_pass = [AccuracyResult.model_validate(item["accuracy"]) for item in self._passes_with_accuracy()]
            self.accuracy = (found[0], *per_pass, *found[1:])
        baseline = self._baseline(capture, model, shapes, base) if self.until is None else None
        self.engine = engine = self._build("build", optimized.facts["sha256"], optimized_model, shapes, base)
        outputs.place_engine(engine, self.output)
        engine_path = str(engine.directory / engine.facts["path"])
        if self.until == "build":
            return

        keys = {"engine": engine.key, "reference": reference.key}
        self.accuracy += self._accuracy("accuracy", keys, compared, {"engine": engine_path})
        self._throughput(base, data, shapes, capture, baseline, engine)
        applied = self._pass_payload(compared, shapes, model, feeds)
        self._find_blame(applied, capture, optimized, optimized_model)

    def _passes_need_data(self) -> bool:
        return self.plan.needs_calibration or self.recipe.evaluate.attribution == "passes"

    def _place_passes(self, optimized: Entry) -> None:
        self.passes = optimized
        for record in optimized.facts["passes"]:
            told = [note for note in record["notes"] if note.startswith(names.SKIPS_NOTHING)]
            self.notes += [f"{record['name']}, {note}" for note in told]
            self.notes += _quantized_nothing(record)
        outputs.place_model(optimized, self.output)

    def _evaluate_inputs(self) -> dict[str, Any]:
        """What decides how outputs are compared."""
        return self.recipe.evaluate.model_dump(mode="json", exclude={"throughput"})

    def _is_random(self) -> bool:
        specs = (self.recipe.calibration, self.recipe.evaluate)
        return any(spec is not None and spec.data == "random" for spec in specs)

    def _data_inputs(self) -> dict[str, Any]:
        recipe = self.recipe
        files = {}
        for label, spec in (("calibration", recipe.calibration), ("evaluation", recipe.evaluate)):
            path = preflight.data_file(spec.data, recipe.base) if spec is not None else None
            if path is not None:
                files[label] = path
        wanted = {"data", "samples", "batch", "arguments", "labels"}
        return {
            "calibration": recipe.calibration.model_dump(mode="json") if recipe.calibration else None,
            "evaluation": recipe.evaluate.model_dump(mode="json", include=wanted),
            "files": self.store.digests.of_all(files),
            "seed": recipe.seed,
        }

    def _passes(
        self,
        capture: Entry,
        model: str,
        shapes: Mapping[str, Any],
        feeds: Entry | None,
        reference: Entry | None,
        compared: Mapping[str, Any],
    ) -> Entry:
        recipe = self.recipe
        per_pass = recipe.evaluate.attribution == "passes"
        searches = any(item.name == "quantize.auto" for item in recipe.passes)
        calibration = feeds.facts["calibration"] if feeds is not None else None
        self.lessons = self._lessons(capture, feeds, compared)
        inputs: dict[str, Any] = {
            "model": capture.facts["sha256"],
            "passes": [[item.name, item.options, registry.find(item.name).version] for item in recipe.passes],
            "target": self.plan.target.model_dump(mode="json"),
            "calibration": calibration and calibration["sha256"],
            "seed": recipe.seed,
            "reference": reference.key if per_pass and reference is not None else None,
            "evaluate": self._evaluate_inputs() if per_pass else None,
            "engine": [*self._engine_inputs().values()] if searches else None,
            "lessons": {asked: entry.key for asked, entry in self.lessons.items()},
        }
        payload = self._pass_payload(compared, shapes, model, feeds)
        has_metric = per_pass and recipe.evaluate.metric is not None
        return self.executor.stage("passes", inputs, payload, runs_user_code=has_metric or None)

    def _pass_payload(
        self, compared: Mapping[str, Any], shapes: Mapping[str, Any], model: str, feeds: Entry | None
    ) -> dict[str, Any]:
        return {
            **compared,
            **shapes,
            "model": model,
            "target": self.plan.target.model_dump(mode="json"),
            "calibration": feeds.facts["calibration"] if feeds is not None else None,
            "accuracy_per_pass": self.recipe.evaluate.attribution == "passes",
            "lessons": {asked: str(entry.directory / entry.facts["file"]) for asked, entry in self.lessons.items()},
        }

    def _lessons(self, capture: Entry, feeds: Entry | None, payload: Mapping[str, Any]) -> dict[str, Entry]:
        """What passes want to know of the source's own module, by what they ask."""
        found: dict[str, Entry] = {}
        for item in self.recipe.passes:
            asked = registry.find(item.name)(**item.options).lesson()
            if asked is None or lessons.key(asked) in found:
                continue
            assert feeds is not None  # such passes need calibration data
            inputs = {"capture": capture.key, "calibration": feeds.facts["calibration"]["sha256"], "asked": asked}
            sent = {**payload, "feeds": str(feeds.directory), "asked": asked}
            found[lessons.key(asked)] = self.executor.stage("learn", inputs, sent)
        return found

    def _passes_with_accuracy(self) -> list[Mapping[str, Any]]:
        assert self.passes is not None
        return [item for item in self.passes.facts["passes"] if item["accuracy"] is not None]

    def _engine_inputs(self) -> dict[str, Any]:
        """What decides which engine comes out of a model."""
        return {
            "engine": self.recipe.engine,
            "engine_files": self.store.digests.of_all(opening.engine_files(self.recipe)),
            "device": environment.identity(),
        }

    def _build(
        self, label: str, sha256: str, model: str, shapes: Mapping[str, Any], base: Mapping[str, Any]
    ) -> Entry:
        assert self.feeds is not None
        return self.executor.stage(
            label,
            {
                "model": sha256,
                **self._engine_inputs(),
                "ranges": shapes["ranges"],
                "sample": self.feeds.facts["evaluation"]["sha256"],
            },
            {
                **base,
                "feeds": str(self.feeds.directory),
                "model": model,
                "ranges": shapes["ranges"],
                "cache": str(self.store.root / "build-cache"),
            },
        )

    def _accuracy(
        self, label: str, keys: Mapping[str, str], compared: Mapping[str, Any], wanted: Mapping[str, str]
    ) -> tuple[AccuracyResult, ...]:
        """Compare the wanted stages ({"export": path, …}) with the reference, in the order given."""
        entry = self.executor.stage(
            "accuracy",
            {**keys, "compare": list(wanted), "evaluate": self._evaluate_inputs()},
            {**compared, "compare": wanted},
            label=label,
        )
        return tuple(AccuracyResult.model_validate(item) for item in entry.facts["accuracy"])

    def _baseline(
        self, capture: Entry, model: str, shapes: Mapping[str, Any], base: Mapping[str, Any]
    ) -> Entry | None:
        spec = self.recipe.evaluate.throughput
        if spec is None or "exported" not in spec.contenders:
            return None
        try:
            return self._build("build baseline", capture.facts["sha256"], model, shapes, base)
        except errors.StageFailed as failure:
            self.executor.records[-1] = StageRecord(name="build baseline", outcome="not run", notes=(str(failure),))
            self.notes.append(f"The exported model could not be built as it is, so it was not timed: {failure}")
            return None

    def _throughput(
        self,
        base: Mapping[str, Any],
        data: Mapping[str, Any],
        shapes: Mapping[str, Any],
        capture: Entry,
        baseline: Entry | None,
        engine: Entry,
    ) -> None:
        spec = self.recipe.evaluate.throughput
        if spec is None:
            return
        paths: dict[str, str | None] = {"original": None, "compiled": None}
        if baseline is not None:
            paths["exported"] = str(baseline.directory / baseline.facts["path"])
        paths["optimized"] = str(engine.directory / engine.facts["path"])
        contenders = {str(name): paths[name] for name in spec.contenders if name in paths}
        assert self.feeds is not None
        inputs = {
            "contenders": sorted(contenders),
            "capture": capture.key,
            "baseline": baseline and baseline.key,
            "engine": engine.key,
            "feeds": self.feeds.facts["evaluation"],
            "spec": spec.model_dump(mode="json"),
            "device": environment.identity(),
        }
        assert self.passes is not None
        payload = {
            **base,
            **data,
            **shapes,
            "exported": str(opening.local(capture.directory, capture.facts["model"])),
            "optimized": str(self.passes.directory / self.passes.facts["model"]),
            "target": self.plan.target.model_dump(mode="json"),
        }
        entry = self.executor.stage("throughput", inputs, {**payload, "contenders": contenders})
        found = entry.facts["roofline"]
        self.roofline = Roofline.model_validate(found) if found else None
        measured = ThroughputResult.model_validate(entry.facts["throughput"])
        latencies = []
        for latency in measured.contenders:
            footprint = self.executor.stage(
                "footprint",
                {**inputs, "contender": latency.contender},
                {**payload, "contender": latency.contender, "path": contenders[latency.contender]},
                label=f"memory of {latency.contender}",
            )
            latencies.append(latency.model_copy(update={"peak_memory_bytes": footprint.facts["peak_memory_bytes"]}))
        self.throughput = measured.model_copy(update={"contenders": tuple(latencies)})

    def _find_blame(
        self, applied: Mapping[str, Any], capture: Entry, optimized: Entry, optimized_model: str
    ) -> None:
        """When an accuracy gate is missed: the pass, the layers, and the recipe lines that mend it.

        Args:
            applied: What the step "passes" was sent.
        """
        failed = [gate for gate in outputs.judged(self) if not gate.passed]
        missed = {gate.gate: gate.limit for gate in failed if gate.gate.startswith(("accuracy", "metric", "drop"))}
        if not self.accuracy[-1].failures and not missed:
            return
        known: dict[str, Any] = {
            result.stage: result.model_dump(mode="json")
            for result in self.accuracy
            if result.stage in ("export", "model")
        }
        per_pass = enumerate(item["accuracy"] for item in optimized.facts["passes"])
        known |= {str(place): accuracy for place, accuracy in per_pass if accuracy is not None}
        try:
            entry = self.executor.stage(
                "blame",
                {
                    "capture": capture.key,
                    "optimized": optimized.key,
                    "feeds": self.feeds.facts if self.feeds is not None else None,
                    "evaluate": self._evaluate_inputs(),
                    "gates": missed,
                },
                {**applied, "optimized": optimized_model, "gates": missed, "known": known},
            )
        except errors.StageFailed as failure:
            # The verdict stands without it: a gate is missed, wherever that came from.
            self.executor.records[-1] = StageRecord(name="blame", outcome="not run", notes=(str(failure),))
            self.notes.append(f"Where accuracy was lost could not be traced: {failure}")
            return
        self.blame = Blame.model_validate(entry.facts["blame"])
        further = tuple(AccuracyResult.model_validate(item) for item in entry.facts["accuracy"])
        stages = [result.stage for result in self.accuracy]
        after = stages.index("export") + 1 if "export" in stages else 0
        self.accuracy = (*self.accuracy[:after], *further, *self.accuracy[after:])

    def mark_rest_not_run(self) -> None:
        """Add a record for each main step that was never reached."""
        seen = {record.name for record in self.executor.records}
        for name in ("capture", "feeds", "reference", "passes", "build", "accuracy", "throughput"):
            if name not in seen and not (name == "throughput" and self.recipe.evaluate.throughput is None):
                self.executor.records.append(StageRecord(name=name, outcome="not run"))


def _quantized_nothing(record: Mapping[str, Any]) -> list[str]:
    """The sentence for a quantizing pass that left everything as it was, for the first reason; a search's own."""
    left = record["skips"]
    if not record["name"].startswith("quantize.") or any(found["found"] for found in record["patterns"]):
        return []
    if record["name"] == "quantize.auto":
        return [f"quantize.auto: {record['notes'][-1]}"] if record["notes"] else []
    if not left:
        return []
    where = left[0]["module"] or left[0]["node"]
    return [
        f"{record['name']} quantized nothing: {len(left)} left alone, the first '{where}': {left[0]['reason']}."
    ]
