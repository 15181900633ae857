"""Batches of pictures in .npz files of ADM's evaluator, read in pieces."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from relcache.bench.files import reading
from relcache.bench.quality.metrics.distribution import Gaussian

STATISTICS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class Batch:
    """An .npz file of uint8 pictures (n, height, width, 3) under `arr_0`, statistics of their features, or both.

    ADM's reference batches hold statistics of the whole training set and some of its pictures. `mu` and `sigma` are of
    InceptionV3's pooled features, `mu_s` and `sigma_s` of its mixed_6 features.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no pictures or statistics of the right kind and shape.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        if "arr_0" in self.names:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
                shape, dtype = self._header(file)
            if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
                raise ValueError(f"arr_0 in {self.path} is {dtype} {shape}; expected uint8 (n, height, width, 3)")
        for kind, known in self.statistics.items():
            width = (len(known.mean),) if known.mean.ndim else ()
            if known.mean.shape != width or known.covariance.shape != 2 * width:
                raise ValueError(
                    f"the statistics of {kind} in {self.path} are {tuple(known.mean.shape)} and "
                    f"{tuple(known.covariance.shape)}; expected (n,) and (n, n)"
                )
            if not (known.mean.isfinite().all() and known.covariance.isfinite().all()):
                raise ValueError(f"the statistics of {kind} in {self.path} are not all finite")
        if "arr_0" not in self.names and not self.statistics:
            names = ", ".join(self.names) or "nothing"
            raise ValueError(f"{self.path} holds {names}; expected pictures as arr_0, or mu and sigma")

    @property
    def names(self) -> list[str]:
        """The names of its arrays."""
        with self._reading(), zipfile.ZipFile(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    @property
    def statistics(self) -> dict[str, Gaussian]:
        """The statistics in it, under "features" and "spatial"; a kind may be missing."""
        return {
            kind: Gaussian(self._whole(mean), self._whole(covariance))
            for kind, (mean, covariance) in STATISTICS.items()
            if {mean, covariance} <= set(self.names)
        }

    def pictures(self, rows: int = 256) -> Iterator[np.ndarray]:
        """Yield the pictures, at most `rows` at a time, as uint8 (n, height, width, 3)."""
        if "arr_0" not in self.names:
            return
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            shape, _ = self._header(file)
            for start in range(0, shape[0], rows):
                part = (min(rows, shape[0] - start), *shape[1:])
                with self._reading():
                    pictures = np.frombuffer(file.read(math.prod(part)), np.uint8).reshape(part)
                yield pictures

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self.path, "get the whole file again", "is damaged or cut short")

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        """Return the shape and dtype of the array that `file` begins with."""
        with self._reading():
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
        if fortran:
            raise ValueError(f"an array in {self.path} is in Fortran order; save it in C order")
        return shape, dtype

    def _whole(self, name: str) -> torch.Tensor:
        with self._reading(), np.load(self.path, allow_pickle=False) as arrays:
            return torch.from_numpy(np.asarray(arrays[name], np.float64))
