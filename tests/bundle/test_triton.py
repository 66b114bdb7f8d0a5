"""A repository is what Triton's own messages say it is, and is refused where it could not be served."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from optimize.bundle import verifying
from optimize.bundle.triton import batching, repository
from optimize.bundle.triton.options import ServingOptions
from optimize.bundle.triton.tensors import Interface, Tensor
from optimize.engines.tensorrt import TensorRTEngine
from optimize.errors import UsageError
from tests.support import runs

RANGES = {
    "ranges": {
        "batch": {"minimum": 1, "typical": 4, "maximum": 16},
        "tokens": {"minimum": 1, "typical": 8, "maximum": 64},
    }
}
ENCODER = """
    <ir_version: 10, opset_import: ["" : 20]>
    encoder (int64[batch,tokens] input_ids, int64[batch,tokens] attention_mask) => (float[batch,tokens,2] vectors)
    <float[4,2] table = {0, 0, 1, 2, 3, 4, 5, 6}> {
        rows = Gather(table, input_ids)
        mask = Cast<to = 1>(attention_mask)
        last = Constant<value_ints = [-1]>()
        column = Unsqueeze(mask, last)
        vectors = Mul(rows, column)
    }
"""


def read(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    runs.finish(tmp_path / "run", source=RANGES)
    return tmp_path / "run"


def test_the_configuration_says_batch_types_shapes_versions_and_warm_up(run: Path, tmp_path: Path) -> None:
    options = ServingOptions(
        name="tiny", preferred_batches=(4, 8), queue_delay_us=300, instances=2, versions_kept=3
    )
    repository.write(run, tmp_path / "repo", options)
    config = read(tmp_path / "repo" / "models" / "tiny" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 16)
    assert (config.input[0].name, config.input[0].data_type, list(config.input[0].dims)) == ("x", 11, [4])
    assert list(config.output[0].dims) == [2]
    assert config.version_policy.latest.num_versions == 3
    assert config.instance_group[0].count == 2
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert [item.batch_size for item in config.model_warmup] == [1, 4, 8]
    data = config.model_warmup[0].inputs["x"].input_data_file
    assert (tmp_path / "repo" / "models" / "tiny" / "warmup" / data).stat().st_size == 4 * 4
    # The saved graph is optimised already; optimising it again is what nobody measured.
    assert config.optimization.graph.level == 2
    assert (tmp_path / "repo" / "models" / "tiny" / "1" / config.default_model_filename).is_file()


def test_the_repository_is_a_bundle_that_verifies(run: Path, tmp_path: Path) -> None:
    manifest = repository.write(run, tmp_path / "repo", ServingOptions(backend="python"))
    assert verifying.verify(tmp_path / "repo").problems == ()
    assert manifest.verdict == "PASS"
    assert {"report.json", "Containerfile"} <= {entry.path for entry in manifest.files}
    (tmp_path / "repo" / "models" / "minilm-int8-cpu" / "1" / "model.py").write_text("import os")
    assert "model.py: changed" in verifying.verify(tmp_path / "repo").problems[0]


def test_the_container_file_pins_what_was_measured(run: Path, tmp_path: Path) -> None:
    repository.write(run, tmp_path / "repo", ServingOptions(backend="python", version=7))
    text = (tmp_path / "repo" / "Containerfile").read_text()
    assert "pip install --no-cache-dir" in text
    assert "onnxruntime==1.32.0" in text
    assert 'org.opencontainers.image.version="7"' in text
    assert "USER triton-server" in text


def test_a_version_is_added_beside_the_old_one_and_never_over_it(run: Path, tmp_path: Path) -> None:
    options = ServingOptions(name="tiny", backend="python")
    repository.write(run, tmp_path / "repo", options)
    second = dataclasses.replace(options, version=2)
    manifest = repository.write(run, tmp_path / "repo", second)
    assert {"models/tiny/1/model.py", "models/tiny/2/model.py"} <= {entry.path for entry in manifest.files}
    assert verifying.verify(tmp_path / "repo").problems == ()
    with pytest.raises(UsageError, match="version 2 exists"):
        repository.write(run, tmp_path / "repo", second)
    with pytest.raises(UsageError, match="serves no model called 'other'"):
        repository.write(run, tmp_path / "repo", dataclasses.replace(second, name="other"))


def test_a_repository_keeps_as_many_versions_as_was_said_last(run: Path, tmp_path: Path) -> None:
    def kept(**changes: int) -> int:
        repository.write(run, tmp_path / "repo", ServingOptions(name="tiny", backend="python", **changes))
        config = read(tmp_path / "repo" / "models" / "tiny" / "config.pbtxt")
        return int(config.version_policy.latest.num_versions)

    assert kept() == 1
    assert kept(version=2, versions_kept=2) == 2
    assert kept(version=3) == 2
    assert verifying.verify(tmp_path / "repo").problems == ()


def test_a_version_with_another_interface_is_refused_and_leaves_the_repository_as_it_was(
    run: Path, tmp_path: Path
) -> None:
    repository.write(run, tmp_path / "repo", ServingOptions(name="tiny"))
    runs.finish(
        tmp_path / "other",
        runs.TINY.replace("batch,2", "batch,1").replace("4,2", "4,1").replace(", 5, 6, 7, 8", ""),
        source=RANGES,
    )
    with pytest.raises(UsageError, match="other inputs, outputs, batch or backend"):
        repository.write(tmp_path / "other", tmp_path / "repo", ServingOptions(name="tiny", version=2))
    assert verifying.verify(tmp_path / "repo").problems == ()


def test_text_models_get_an_ensemble_of_tokenizer_engine_and_pooling(tmp_path: Path) -> None:
    runs.finish(tmp_path / "run", ENCODER, source=RANGES)
    (tmp_path / "tokenizer.json").write_text("{}")
    options = ServingOptions(name="e", backend="python", tokenizer=tmp_path / "tokenizer.json", pooling="mean")
    repository.write(tmp_path / "run", tmp_path / "repo", options)
    models = tmp_path / "repo" / "models"
    config = read(models / "e_text" / "config.pbtxt")
    assert config.platform == "ensemble"
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["e_tokenizer", "e", "e_pooling"]
    assert (config.output[0].name, list(config.output[0].dims)) == ("pooled", [2])
    tokenizer = read(models / "e_tokenizer" / "config.pbtxt")
    assert tokenizer.parameters["maximum_tokens"].string_value == "64"
    assert [item.name for item in tokenizer.output] == ["input_ids", "attention_mask"]


def test_what_cannot_be_served_is_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    def refused(**fields: Any) -> str:
        with pytest.raises(UsageError) as caught:
            repository.write(run, tmp_path / "repo", ServingOptions(**fields))
        assert not (tmp_path / "repo").exists()
        return str(caught.value)

    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot serve a onnxruntime engine" in refused(backend="tensorrt")
    assert "the engine takes at most 16" in refused(max_batch=32)
    assert "a tokenizer cannot feed x" in refused(tokenizer=tmp_path / "tokenizer.json")
    assert "letters, digits" in refused(name="../evil")
    assert "name a tokenizer.json, too" in refused(pooling="mean")
    runs.finish(tmp_path / "unknown")
    with pytest.raises(UsageError, match="nobody says how large axis 'batch' may be"):
        repository.write(tmp_path / "unknown", tmp_path / "repo", ServingOptions())


def test_measuring_times_the_engine_at_every_size_and_keeps_the_curve(run: Path, tmp_path: Path) -> None:
    repository.write(run, tmp_path / "repo", ServingOptions(name="tiny"), measure=True)
    text = (tmp_path / "repo" / "batch-latency-ms.json").read_text()
    assert all(f'"{size}"' in text for size in (1, 2, 4, 8, 16))


def test_batching_is_preferred_only_where_it_pays() -> None:
    assert batching.preferred({1: 1.0, 2: 2.0, 4: 4.0}) == ()
    assert batching.preferred({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.5, 16: 6.0}) == (4, 8)
    assert batching.preferred({}) == ()
    assert batching.queue_delay_us({1: 1.0, 4: 1.3}, (4,)) == 130
    assert batching.queue_delay_us({1: 1.0}, ()) == 0


@given(st.dictionaries(st.integers(1, 256), st.floats(0.01, 1e4), min_size=1))
def test_every_preferred_size_is_within_a_tenth_of_the_best_throughput(curve: dict[int, float]) -> None:
    best = max(size / latency for size, latency in curve.items())
    for size in batching.preferred(curve):
        assert size > 1
        assert size / curve[size] >= 0.9 * best * (1 - 1e-12)
    assert 0 <= batching.queue_delay_us(curve, batching.preferred(curve)) <= 5000


@given(st.integers(1, 500))
def test_sizes_start_at_one_double_and_end_at_the_largest(largest: int) -> None:
    found = batching.sizes(largest)
    assert found[0] == 1
    assert found[-1] == largest
    assert all(after <= 2 * before for before, after in itertools.pairwise(found))


class SlowSession:
    """A session whose calls take 20 ms a row: the stand-in for an engine that is too slow to time at every size."""

    def prepare(self, feeds: dict[str, Any]) -> Any:
        rows = len(feeds["x"])
        return lambda: time.sleep(0.02 * rows)


def test_sizes_that_would_take_too_long_are_not_timed() -> None:
    tensor = Tensor("x", "float32", ("batch", 4), (4,), (4,))
    seen: list[str] = []
    found = batching.curve(
        SlowSession(),  # type: ignore[arg-type]
        Interface((tensor,), (), 64),
        lambda what, done, total: seen.append(what),
        seconds=1.0,
    )
    assert list(found) == [1, 2]
    assert seen == ["timing batches of 1", "timing batches of 2", "timing batches of 4"]


def test_a_run_whose_libraries_are_trusted_is_timed_from_its_recipes_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = {"kind": "tensorrt", "plugins": ["./own.so"]}
    runs.finish(tmp_path / "run", source=RANGES, recipe={"engine": engine})
    (tmp_path / "run" / "recipe.base").write_text("../recipes\n")
    opened: list[tuple[str, ...]] = []

    def remember(self: TensorRTEngine, artifact: Path) -> Any:
        opened.append(self.options.plugins)
        raise UsageError("seen")

    monkeypatch.setattr(TensorRTEngine, "open", remember)
    options = ServingOptions(name="tiny")
    with pytest.raises(UsageError, match="seen"):
        repository.write(tmp_path / "run", tmp_path / "repo", options, measure=True, allow_libraries=True)
    assert opened == [(str(tmp_path / "recipes" / "own.so"),)]
