"""A plan opened on a GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from optimize.engines import tensorrt_layers, tensorrt_telemetry
from optimize.engines.base import Feeds, TensorSpec
from optimize.engines.tensorrt_device import Device
from optimize.engines.tensorrt_lane import Lane
from optimize.engines.tensorrt_library import Library
from optimize.engines.tensorrt_log import Messages, logger
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.engines.tensorrt_plan import Manifest
from optimize.engines.tensorrt_timing import GpuTimings
from optimize.errors import StageFailed


class TensorRTSession:
    """Runs a plan. Opened by `TensorRTEngine.open`, which has checked its manifest."""

    def __init__(
        self, library: Library, options: TensorRTOptions, plan: Path, manifest: Manifest, device: Device
    ) -> None:
        self.device = device
        self._library, self._options, self._manifest = library, options, manifest
        self._messages = Messages()
        self._log = logger(library.api, self._messages)
        self._runtime = library.api.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            said = self._messages.last_error("it gives no reason")
            raise StageFailed(f"{library.title} cannot load {plan.name}: {said}", hint="Build it again here.")
        if manifest.is_stripped:
            self._refit(plan)
        if options.weight_streaming:
            budget = options.weight_streaming_budget
            automatic = self._engine.get_weight_streaming_automatic_budget
            self._engine.weight_streaming_budget_v2 = automatic() if budget is None else budget
        self._lane: Lane | None = self._new_lane()

    def _refit(self, plan: Path) -> None:
        """Put the weights of the ONNX file into a stripped engine."""
        given = self._options.refit_from
        beside = (plan.with_name(self._manifest.model), plan.parent.with_name(self._manifest.model))
        model = Path(given) if given else next((path for path in beside if path.is_file()), beside[0])
        if not model.is_file():
            raise StageFailed(
                f"{plan.name} holds no weights, and {model} to take them from is not there.",
                hint="Name the ONNX file with `refit_from` under `engine:`.",
            )
        api = self._library.api
        refitter = api.Refitter(self._engine, self._log)
        parser = api.OnnxParserRefitter(refitter, self._log)
        if not (parser.refit_from_file(str(model)) and refitter.refit_cuda_engine()):
            said = self._messages.last_error("no reason given")
            raise StageFailed(f"the weights of {model.name} do not fit {plan.name}: {said}")

    def _new_lane(self) -> Lane:
        made = self._manifest
        return Lane(self._library.api, self._engine, self._messages, made.inputs, made.outputs, made.profiles)

    @property
    def title(self) -> str:
        """What runs where: "TensorRT for RTX 1.6.1.120, NVIDIA H200"."""
        return f"{self._library.title}, {self.device.name}"

    @property
    def lane(self) -> Lane:
        """The execution context in use."""
        if self._lane is None:
            raise StageFailed("the TensorRT session is closed.")
        return self._lane

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._manifest.outputs

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on host arrays."""
        lane = self.lane
        lane.bind(feeds)
        lane.upload()
        lane.enqueue()
        lane.download()
        lane.stream.synchronize()
        return lane.results()

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """One inference on bound feeds, as a CUDA graph unless options say otherwise; synchronized."""
        lane = self.lane
        lane.bind(feeds)
        lane.upload()
        replay = lane.replayed(self._options.cuda_graph)

        def call() -> None:
            replay()
            lane.stream.synchronize()

        return call

    def placement(self) -> Mapping[str, int]:
        """Layers per executor: all of them run in TensorRT."""
        return {self._library.flavour.title: int(self._engine.num_layers)}

    def timings(self, feeds: Feeds, *, runs: int = 100, warmup: int = 20) -> GpuTimings:
        """Time copies, inference and results apart, with CUDA events.

        Args:
            runs: Timed inferences.
            warmup: Inferences before them, not counted.
        """
        lane = self.lane
        lane.bind(feeds)
        lane.upload()
        replay = lane.replayed(self._options.cuda_graph)
        for _ in range(warmup):
            replay()
        lane.stream.synchronize()
        enqueue, events = [], []
        with tensorrt_telemetry.recorded() as recording:
            started = time.perf_counter()
            for _ in range(runs):
                marks = [lane.stream.event()]
                lane.upload()
                marks.append(lane.stream.event())
                before = time.perf_counter()
                replay()
                enqueue.append((time.perf_counter() - before) * 1e3)
                marks.append(lane.stream.event())
                lane.download()
                marks.append(lane.stream.event())
                events.append(marks)
            lane.stream.synchronize()
            wall = time.perf_counter() - started
        elapsed = lane.stream.elapsed_ms
        parts = [tuple(elapsed(row[part], row[part + 1]) for row in events) for part in range(3)]
        return GpuTimings(
            enqueue_ms=tuple(enqueue),
            h2d_ms=parts[0],
            compute_ms=parts[1],
            d2h_ms=parts[2],
            wall_s=wall,
            cuda_graph=self._options.cuda_graph,
            telemetry=recording.telemetry,
        )

    def concurrent(self, feeds: Feeds, *, streams: int, runs: int = 100) -> float:
        """Inferences per second with several streams in flight, each with a context of its own."""
        lanes = [self.lane, *(self._new_lane() for _ in range(streams - 1))]
        replays = []
        for lane in lanes:
            lane.bind(feeds)
            lane.upload()
            replays.append(lane.replayed(self._options.cuda_graph))
        started = time.perf_counter()
        for _ in range(runs):
            for replay in replays:
                replay()
        for lane in lanes:
            lane.stream.synchronize()
        return runs * streams / (time.perf_counter() - started)

    def layer_times(self, feeds: Feeds, *, runs: int = 20) -> dict[str, float]:
        """Mean milliseconds per layer. The profiler slows the engine down, so the sum exceeds the latency."""
        api: Any = self._library.api
        totals: dict[str, float] = defaultdict(float)

        class Profiler(api.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                api.IProfiler.__init__(self)

            def report_layer_time(self, layer: str, milliseconds: float) -> None:
                totals[layer] += milliseconds

        lane = self._new_lane()
        lane.bind(feeds)
        lane.upload()
        lane.enqueue()
        lane.stream.synchronize()
        lane.context.profiler = Profiler()
        for _ in range(runs):
            lane.enqueue()
            lane.stream.synchronize()
        return {name: total / runs for name, total in totals.items()}

    def layers(self) -> tuple[tensorrt_layers.Layer, ...]:
        """The loaded engine's layers, as its inspector tells them."""
        api = self._library.api
        told = self._engine.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON)
        return tensorrt_layers.from_inspector(told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lane is not None:
            self._lane.stream.synchronize()
        self._lane = None
        self._engine = None
