"""Compare two sets of pictures as distributions of features, as ADM's evaluator does (Dhariwal and Nichol, 2021).

All functions compute in float64, on the features of any network. They read features as a stream of blocks. Only
`precision_recall`, which compares all pairs, keeps all features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3  # in precision and recall, a point's radius is the distance to its third nearest neighbour
BLOCK = 1024  # rows that are summed at once; fixed, so that sums do not depend on the size of the parts


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution fitted to features: `mean` (width,) and `covariance` (width, width), float64."""

    mean: Tensor
    covariance: Tensor


def blocks(parts: Iterable[Tensor], rows: int = BLOCK) -> Iterator[Tensor]:
    """Yield the rows of `parts` (n, …) in order, in blocks of `rows`; the last may have fewer."""
    pending: list[Tensor] = []
    count = 0
    for part in parts:
        pending.append(part)
        count += len(part)
        if count >= rows:
            joined = torch.cat(pending)
            whole = count - count % rows
            yield from joined[:whole].split(rows)
            pending, count = [joined[whole:]], count - whole
    if count:
        yield torch.cat(pending)


def fit(parts: Iterable[Tensor]) -> Gaussian:
    """Fit mean and covariance, divided by n - 1, to features in parts (n, width).

    The result is bit-equal for parts of any size.

    Raises:
        ValueError: there are fewer than two rows, or a feature is not finite.
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
        shift = centre - mean
        scatter = scatter + spread + torch.outer(shift, shift) * (count * len(rows) / total)
        mean = mean + shift * (len(rows) / total)
        count = total
    if count < 2:
        raise ValueError(f"a distribution needs at least two samples, got {count}")
    return Gaussian(mean, scatter / (count - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return the Fréchet distance of two normal distributions.

    It is FID for InceptionV3's pooled features, and sFID for the first seven channels of its mixed_6 features; for
    others it is neither. It is biased upwards unless the samples are many times the width.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of widths {len(first.mean)} and {len(second.mean)} cannot be compared")
    # Compute the trace of the root of the covariances' product from a symmetric matrix with the same eigenvalues. It is
    # stable for singular covariances, which fewer samples than features have.
    values, vectors = torch.linalg.eigh(first.covariance.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    between = torch.linalg.eigvalsh(root @ second.covariance.double() @ root).clamp(min=0).sqrt().sum()
    means = (first.mean - second.mean).double().square().sum()
    distance = means + first.covariance.trace() + second.covariance.trace() - 2 * between
    return max(0.0, float(distance))


def inception_score(parts: Iterable[Tensor], split: int = 5000) -> float:
    """Return exp of the mean divergence, in nats, of pictures' classes from their mean (Salimans et al., 2016).

    Args:
        parts: class probabilities (n, classes), in order.
        split: pictures in a group; the score is the mean over the groups, as in ADM's evaluator.
    """
    scores = []
    for block in blocks(parts, split):
        probabilities = block.double()
        mean = probabilities.mean(0, keepdim=True)
        divergence = torch.special.xlogy(probabilities, probabilities) - torch.special.xlogy(probabilities, mean)
        scores.append(math.exp(divergence.sum(1).mean()))
    if not scores:
        raise ValueError("an Inception score needs at least one sample")
    return sum(scores) / len(scores)


def precision_recall(references: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al., 2019) of `samples` against `references`, (n, width).

    A ball around each reference reaches to its `neighbours`-th nearest reference. Precision is the share of samples in
    such balls, recall the share of references in the balls of the samples.

    Raises:
        ValueError: one side has no more than `neighbours` points.
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
    """Return the distance of each of `points` (n, width) to its `neighbours`-th nearest other point, (n,)."""
    nearest = [
        torch.cdist(block.double(), points.double()).kthvalue(neighbours + 1, 1).values for block in points.split(BLOCK)
    ]  # the first is the point itself
    return torch.cat(nearest)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Return the share of `points` within the radius of at least one of `centres`."""
    inside = [(torch.cdist(block.double(), centres.double()) <= radii).any(1) for block in points.split(BLOCK)]
    return float(torch.cat(inside).double().mean())
