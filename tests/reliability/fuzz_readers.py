"""Everything that reads a file made by somebody else, with valid files to start from."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from tests.support import tiny


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        seeds: Valid files, from which cases are made.
        read: Reads the file at a path.
        suffix: Of the file's name.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    suffix: str


def recipes() -> Reader:
    """Recipe files."""
    from optimize.recipe import reading

    rich = tiny.RECIPE + (
        "  speedup.min: 1.5\n  size.max: 40MB\ncalibration: {data: tiny.npz, samples: 8}\nseed: 3\nextends: []\n"
    )
    with_passes = tiny.RECIPE.replace(
        "  - ${passes}", "  - clean\n  - fuse\n  - quantize.int8: {activations: dynamic}"
    )
    seeds = (tiny.RECIPE.encode(), rich.encode(), with_passes.encode())
    return Reader(seeds, reading.load, ".yaml")


def models() -> Reader:
    """ONNX files."""
    from optimize.sources.onnx_file import OnnxSource

    def read(path: Path) -> object:
        return OnnxSource(path=path.name, base=path.parent).capture(lambda *_: None)

    with tempfile.TemporaryDirectory() as folder:
        small = tiny.write_model(Path(folder) / "m.onnx", width=4).read_bytes()
    nested = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 4] x, bool c) => (float[n, 4] y) {
            y = If (c) <then_branch = t () => (float[n, 4] a) { a = Relu(x) },
                        else_branch = e () => (float[n, 4] b) { b = Neg(x) }>
        }"""
    ).SerializeToString()
    outside = onnx.load_from_string(small)
    weight = outside.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=value)
    return Reader((small, nested, outside.SerializeToString()), read, ".onnx")


def data_files() -> Reader:
    """Calibration data in .npz files."""
    from optimize.engines.base import AxisRange, TensorSpec
    from optimize.evaluate import feeds

    inputs = (TensorSpec("x", "float32", ("batch", 4)),)

    def read(path: Path) -> object:
        return list(
            feeds.load_batches(
                path.name,
                samples=None,
                batch=4,
                arguments={},
                base=path.parent,
                inputs=inputs,
                ranges={"batch": AxisRange(1, 4, 64)},
                labels=None,
                seed=0,
            )
        )

    good, pickled = io.BytesIO(), io.BytesIO()
    np.savez(good, x=np.ones((8, 4), np.float32))
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    return Reader((good.getvalue(), pickled.getvalue(), zip_bomb()), read, ".npz")


def zip_bomb() -> bytes:
    """A small archive whose one array says that it has 32 GB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 31, 4)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1 << 24))
    return packed.getvalue()


def reports() -> Reader:
    """Earlier reports."""
    from optimize.report import reading
    from tests.support import reports as built

    return Reader((built.passing().model_dump_json().encode(),), reading.read, ".json")


def safetensors() -> Reader:
    """Weights of a Hugging Face folder."""
    from safetensors.numpy import save

    from optimize.sources import safetensors_header

    return Reader((save({"a": np.ones((2, 3), np.float32)}),), safetensors_header.check, ".safetensors")


def bundles() -> Reader:
    """Bundles as archives, plain and packed."""
    import gzip
    import hashlib
    import shutil
    import tarfile

    from optimize.bundle import archive, manifest
    from tests.support import reports as built

    content = b"content" * 20
    entry = manifest.Entry(
        path="models/model.onnx", role="model", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )
    described = manifest.describe(built.passing(), (entry,)).text().encode()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in ((manifest.NAME, described), (entry.path, content)):
            header = tarfile.TarInfo(f"bundle/{name}")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))

    def read(path: Path) -> object:
        into = path.parent / "unpacked"
        shutil.rmtree(into, ignore_errors=True)
        return archive.unpack(path, into)

    return Reader((plain.getvalue(), gzip.compress(plain.getvalue(), mtime=0)), read, ".tar")


READERS: dict[str, Callable[[], Reader]] = {
    "recipe": recipes,
    "onnx": models,
    "npz": data_files,
    "report": reports,
    "safetensors": safetensors,
    "bundle": bundles,
}
