"""Two sets of pictures as distributions of features, as the evaluator of ADM (Dhariwal and Nichol, 2021) compares them.

Everything here works on features alone, float64, whatever network they are of. Features are read as a stream of blocks
and never all kept, except by `precision_recall`, which compares every one with every other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3  # whose distance is the radius of a point, in precision and recall
BLOCK = 1024  # rows that are summed at once; fixed, so that sums do not depend on how the rows arrive


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution fitted to features: `mean` (width,) and `covariance` (width, width), float64."""

    mean: Tensor
    covariance: Tensor


def blocks(parts: Iterable[Tensor], rows: int = BLOCK) -> Iterator[Tensor]:
    """The rows of `parts` (n, ...) in order, in blocks of `rows` but for the last."""
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= rows:
            joined = torch.cat(held)
            whole = count - count % rows
            yield from joined[:whole].split(rows)
            held, count = [joined[whole:]], count - whole
    if count:
        yield torch.cat(held)


def fit(parts: Iterable[Tensor]) -> Gaussian:
    """Mean and covariance (with n - 1) of features that come as parts (n, width).

    The result depends on the rows and their order alone, to the last bit, and not on the size of the parts.

    Raises:
        ValueError: fewer than two rows, or a feature that is not finite.
    """
    count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
    for block in blocks(parts):
        rows = block.double()
        if not rows.isfinite().all():
            raise ValueError(f"features {count} to {count + len(rows) - 1} are not all finite")
        centre = rows.mean(0)
        spread = (rows - centre).mT @ (rows - centre)
        if not count:
            count, mean, scatter = len(rows), centre, spread
            continue
        total = count + len(rows)
        apart = centre - mean
        scatter = scatter + spread + torch.outer(apart, apart) * (count * len(rows) / total)
        mean = mean + apart * (len(rows) / total)
        count = total
    if count < 2:
        raise ValueError(f"a distribution needs two samples at least, got {count}")
    return Gaussian(mean, scatter / (count - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance of two normal distributions.

    With InceptionV3's pooled features this is FID, with the first seven channels of its mixed_6 features sFID. With
    other features it is neither, and must not be called so. Biased upwards where samples are not many times the width.

    Raises:
        ValueError: features of different widths.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of widths {len(first.mean)} and {len(second.mean)} cannot be compared")
    # The trace of the root of the covariances' product, by a symmetric matrix with the same eigenvalues: stable where
    # they are singular, as those of fewer samples than features are.
    values, vectors = torch.linalg.eigh(first.covariance.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    between = torch.linalg.eigvalsh(root @ second.covariance.double() @ root).clamp(min=0).sqrt().sum()
    means = (first.mean - second.mean).double().square().sum()
    distance = means + first.covariance.trace() + second.covariance.trace() - 2 * between
    return max(0.0, float(distance))


def inception_score(parts: Iterable[Tensor], split: int = 5000) -> float:
    """exp of the mean divergence of the classes of a picture from those of all, in nats (Salimans et al., 2016).

    Args:
        parts: probabilities of the classes (n, classes), in order.
        split: the score is the mean of the scores of so many pictures at a time, as ADM's evaluator has it.
    """
    scores = []
    for block in blocks(parts, split):
        each = block.double()
        mean = each.mean(0, keepdim=True)
        divergence = torch.special.xlogy(each, each) - torch.special.xlogy(each, mean)
        scores.append(math.exp(divergence.sum(1).mean()))
    if not scores:
        raise ValueError("an Inception score needs at least one sample")
    return sum(scores) / len(scores)


def precision_recall(references: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019) of `samples` (n, width) against `references`.

    Precision is the share of samples that lie in the balls which reach from each reference to its third nearest, recall
    the share of references in the balls of the samples. Needs memory for one block of distances, not for all.

    Raises:
        ValueError: no more samples than `neighbours` on one side.
    """
    if min(len(references), len(samples)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need more samples on each side, got {len(references)} and {len(samples)}"
        )
    return (
        _covered(samples, references, _radii(references, neighbours)),
        _covered(references, samples, _radii(samples, neighbours)),
    )


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of each of `points` to its `neighbours`-th nearest other one."""
    nearest = [
        torch.cdist(block.double(), points.double()).kthvalue(neighbours + 1, 1).values for block in points.split(BLOCK)
    ]  # the nearest of all is the point itself
    return torch.cat(nearest)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of `points` that lie within the radius of at least one of `centres`."""
    inside = [(torch.cdist(block.double(), centres.double()) <= radii).any(1) for block in points.split(BLOCK)]
    return float(torch.cat(inside).double().mean())
