"""Batches of pictures in .npz files, as ADM's evaluator takes them; read in pieces."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from relcache.bench.quality.metrics.distribution import Gaussian

STATISTICS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class Batch:
    """An .npz file of uint8 pictures (n, height, width, 3) under `arr_0`, with statistics of their features or without.

    ADM's reference batches hold `mu`, `sigma` (InceptionV3's pooled features) and `mu_s`, `sigma_s` (its mixed_6
    features), made from the whole training set, and fewer pictures than that.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds neither pictures nor statistics, or those of another kind or shape.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        self._check_pictures()
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
            held = ", ".join(self.names) or "nothing"
            raise ValueError(f"{self.path} holds {held}; expected pictures as arr_0, or mu and sigma")

    @property
    def names(self) -> list[str]:
        """The arrays in it."""
        with self._archive() as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    @property
    def statistics(self) -> dict[str, Gaussian]:
        """The statistics that it holds: of "features", of "spatial" features, of both or of none."""
        found = {}
        for kind, (mean, covariance) in STATISTICS.items():
            if {mean, covariance} <= set(self.names):
                found[kind] = Gaussian(self._whole(mean), self._whole(covariance))
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pictures, (n, height, width, 3); of none where there are none."""
        if "arr_0" not in self.names:
            return (0,)
        with self._archive() as archive, archive.open("arr_0.npy") as file:
            return self._header(file)[0]

    def pictures(self, rows: int = 256) -> Iterator[np.ndarray]:
        """The pictures, uint8 (at most `rows`, height, width, 3) at a time.

        Raises:
            ValueError: damaged or cut short.
        """
        if "arr_0" not in self.names:
            return
        with self._archive() as archive, archive.open("arr_0.npy") as file:
            shape, _ = self._header(file)
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                content = self._read(file, count * size)
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])

    def _check_pictures(self) -> None:
        if "arr_0" not in self.names:
            return
        with self._archive() as archive, archive.open("arr_0.npy") as file:
            shape, dtype = self._header(file)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"arr_0 in {self.path} is {dtype} {shape}; expected uint8 (n, height, width, 3)")

    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path} is damaged or cut short ({error})") from error

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"an array in {self.path} is damaged ({error})") from error
        if fortran:
            raise ValueError(f"an array in {self.path} is in Fortran order; save it in C order")
        return shape, dtype

    def _read(self, file: IO[bytes], size: int) -> bytes:
        try:
            content = file.read(size)
        except (EOFError, zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{self.path} is damaged ({error})") from error
        if len(content) < size:
            raise ValueError(f"{self.path} is cut short: an array ends {size - len(content)} bytes too early")
        return content

    def _whole(self, name: str) -> torch.Tensor:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return torch.from_numpy(np.asarray(arrays[name], np.float64))
        except Exception as error:
            raise ValueError(f"{name} in {self.path} is damaged ({error})") from error
