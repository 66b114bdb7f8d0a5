"""Repositories on a real Triton Inference Server, asked over HTTP and gRPC by several clients at once."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from optimize.bundle.triton import repository
from optimize.bundle.triton.options import ServingOptions
from optimize.engines.onnxruntime import OnnxRuntimeEngine
from tests.bundle.test_triton import ENCODER, RANGES
from tests.support import runs
from tests.support.triton.server import Server, serve

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
WORDS = {"[UNK]": 0, "one": 1, "two": 2, "three": 3}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("triton")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of `tiny` (the second's weights are doubled), one of a text encoder, and a repository of them."""
    folder = tmp_path_factory.mktemp("triton")
    runs.finish(folder / "first", source=RANGES)
    runs.finish(
        folder / "second", runs.TINY.replace("1, 2, 3, 4, 5, 6, 7, 8", "2,4,6,8,10,12,14,16"), source=RANGES
    )
    runs.finish(folder / "encoder", ENCODER, source=RANGES)
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    tiny = ServingOptions(name="tiny", backend="python", preferred_batches=(4, 8), queue_delay_us=500)
    repository.write(folder / "first", folder / "tiny", tiny)
    text = ServingOptions(
        name="encoder", backend="python", tokenizer=folder / "tokenizer.json", pooling="mean", pad_to=4
    )
    repository.write(folder / "encoder", folder / "encoders", text)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    control = (
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--model-repository={folder / 'encoders/models'}",
    )
    with serve(folder / "tiny" / "models", folder / "log", *control) as server:
        yield server


def ask(server: Server, protocol: str, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """One request for `tiny`; returns y and the version that answered."""
    module = CLIENTS[protocol]
    with module.InferenceServerClient(getattr(server, protocol)) as client:
        tensor = module.InferInput("x", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        result = client.infer("tiny", [tensor])
        response = result.get_response()
        version = response["model_version"] if protocol == "http" else response.model_version
        return result.as_numpy("y"), version


def test_many_clients_over_both_protocols_get_the_engines_outputs(server: Server, folder: Path) -> None:
    rng = np.random.default_rng(0)
    asked = [rng.standard_normal((1 + index % 5, 4), dtype=np.float32) for index in range(60)]
    with ThreadPoolExecutor(6) as clients:
        futures = [
            clients.submit(ask, server, ("http", "grpc")[index % 2], rows) for index, rows in enumerate(asked)
        ]
        answers = [future.result()[0] for future in futures]
    engine = next((folder / "first" / "engine").glob("*.onnx"))
    with OnnxRuntimeEngine().open(engine) as session:
        for rows, answer in zip(asked, answers, strict=True):
            # One float32 rounding a product and a sum of four: batching may change their order.
            np.testing.assert_allclose(answer, session.run({"x": rows})["y"], rtol=2**-20, atol=2**-18)


def test_requests_of_several_clients_shared_batches(server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        statistics = client.get_inference_statistics("tiny")["model_stats"][0]
    assert statistics["inference_stats"]["success"]["count"] >= 60
    assert statistics["execution_count"] < statistics["inference_stats"]["success"]["count"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_text_goes_in_and_pooled_vectors_come_out(server: Server, protocol: str) -> None:
    module = CLIENTS[protocol]
    texts = np.array([["one two"], ["three"], ["one two three two one"]], dtype=object)
    with module.InferenceServerClient(getattr(server, protocol)) as client:
        tensor = module.InferInput("text", [3, 1], "BYTES")
        tensor.set_data_from_numpy(texts)
        pooled = client.infer("encoder_text", [tensor]).as_numpy("pooled")
    table = np.array([[0, 0], [1, 2], [3, 4], [5, 6]], np.float64)
    for row, line in zip(pooled, texts[:, 0], strict=True):
        mean = table[[WORDS[word] for word in line.split()]].mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=2**-20)


def test_a_faulty_request_is_answered_with_an_error_and_the_next_one_is_served(server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        ids = np.full((1, 2), 99, np.int64)
        tensors = []
        for name in ("input_ids", "attention_mask"):
            tensor = tritonclient.http.InferInput(name, [1, 2], "INT64")
            tensor.set_data_from_numpy(ids)
            tensors.append(tensor)
        with pytest.raises(tritonclient.utils.InferenceServerException, match="indices element out of data bounds"):
            client.infer("encoder", tensors)
    assert ask(server, "http", np.ones((1, 4), np.float32))[0].tolist() == [[16, 20]]


def test_versions_swap_under_load_without_a_failed_request(server: Server, folder: Path) -> None:
    stop = threading.Event()
    answers: list[tuple[str, float]] = []
    failures: list[Exception] = []

    def load(protocol: str) -> None:
        while not stop.is_set():
            try:
                answer, version = ask(server, protocol, np.ones((2, 4), np.float32))
                answers.append((version, float(answer[0, 0])))
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=load, args=(protocol,)) for protocol in ("http", "grpc", "http", "grpc")]
    for client in clients:
        client.start()
    try:
        while not answers and not failures:
            stop.wait(0.01)
        options = ServingOptions(name="tiny", backend="python", preferred_batches=(4, 8), queue_delay_us=500)
        repository.write(folder / "second", folder / "tiny", dataclasses.replace(options, version=2))
        with tritonclient.http.InferenceServerClient(server.http) as client:
            client.load_model("tiny")
        before = len(answers)
        while len(answers) < before + 20 and not failures:
            stop.wait(0.01)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert failures == []
    assert set(answers) == {("1", 16.0), ("2", 32.0)}, "each version gave its own answer"
    assert answers[-1] == ("2", 32.0)


def test_an_engine_of_another_runtime_version_never_becomes_ready(folder: Path, tmp_path: Path) -> None:
    repository.write(folder / "first", tmp_path / "repo", ServingOptions(name="tiny", backend="python"))
    serving = tmp_path / "repo" / "models" / "tiny" / "1" / "serving.json"
    facts = json.loads(serving.read_text())
    serving.write_text(json.dumps({**facts, "version": "1.2.3"}))
    with (
        pytest.raises(RuntimeError, match=r"saved by onnxruntime 1\.2\.3"),
        serve(tmp_path / "repo" / "models", tmp_path / "log"),
    ):
        pass
