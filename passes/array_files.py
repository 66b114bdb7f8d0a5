"""Arrays in one .npz file, whatever their names.

`numpy.savez` takes names as its own arguments: an array called "file" is refused, and before NumPy 2.1 the argument
`allow_pickle` became an array.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write a file that `numpy.load` reads without pickles; the same arrays give the same bytes.

    Raises:
        ValueError: When an array holds Python objects.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
