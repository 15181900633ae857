"""Read Fashion-MNIST from its four IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzipped, as an array of its stored shape.

    Raises:
        ValueError: the magic number or the length does not fit an IDX file of unsigned bytes.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {raw[:4].hex()}, expected 000008xx"
        )
    dimensions = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    if body.size != int(np.prod(shape)):
        raise ValueError(f"{path} holds {body.size} bytes of data, its header announces {shape}")
    return body.reshape(shape)


def load(split: str, folder: Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images (n, 1, 28, 28) uint8 and labels (n,) int64 of `split` ("train" or "test").

    Raises:
        FileNotFoundError: a file is missing; the message names the source of the data.
    """
    folder = folder or DEBIAN_FOLDER
    arrays = []
    for kind in ("images", "labels"):
        name = FILES[split, kind]
        found = [path for path in (folder / f"{name}.gz", folder / name) if path.exists()]
        if not found:
            raise FileNotFoundError(
                f"no {name}[.gz] in {folder}: install Debian's package dataset-fashion-mnist, "
                "or give the folder of the four original IDX files with --data"
            )
        arrays.append(torch.from_numpy(read_idx(found[0]).copy()))
    return arrays[0][:, None], arrays[1].long()
