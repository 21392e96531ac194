"""DPC-kNN: density peaks among the patches of an image.

Du, Ding and Jia, "Study on density peaks clustering based on k-nearest neighbors and principal component analysis"
(Knowledge-Based Systems 2016), with the distances and the density of "Not All Tokens Are Equal: Human-centric Visual
Analysis via Token Clustering Transformer" (Zeng et al., CVPR 2022). Where that adds noise to part equal densities,
the lower index counts as denser here, so that the result is a function of the pixels.

Shape suffixes: L patches, P values of a patch (p * p * 3), K clusters.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.images.patches import IMAGENET_STD

NEIGHBOURS = 5
"""Nearest patches that make a density, the patch itself included."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DensityPeaks:
    """What DPC-kNN knows of L patches; all float64.

    `distance` `[L, L]`; `density` `[L]`: exp(-mean squared distance of the nearest); `separation` `[L]`: distance to
    the nearest denser patch, for the densest one the largest of all distances.
    """

    distance: NDArray[np.float64]
    density: NDArray[np.float64]
    separation: NDArray[np.float64]

    @property
    def score(self) -> NDArray[np.float64]:
        """How much each patch is a cluster's centre, `[L]`: the K highest, ties by index, are the K centres."""
        return self.density * self.separation


def density_peaks(patches_LP: Tensor, *, neighbours: int = NEIGHBOURS) -> DensityPeaks:
    """Density and separation of uint8 patches `[L, P]`; of fewer than `neighbours` patches, all are neighbours."""
    distance = np.sqrt(squared_distances(patches_LP))
    positions = len(distance)
    nearest = np.sort(distance, axis=1)[:, :neighbours]
    density = np.exp(-np.square(nearest).mean(axis=1))
    index = np.arange(positions)
    equal = density[None, :] == density[:, None]
    denser = (density[None, :] > density[:, None]) | (equal & (index[None, :] < index[:, None]))
    separation = np.where(denser, distance, distance.max()).min(axis=1)
    return DensityPeaks(distance=distance, density=density, separation=separation)


def assign_clusters(peaks: DensityPeaks, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`count` centres, most of a centre first, `[K]`, and the cluster (0 .. K - 1) of every patch, `[L]`.

    A centre is in its own cluster, any other patch in that of the nearest centre, the first one of equals. Raises
    ValueError unless there are 1 to L clusters.
    """
    if not 1 <= count <= len(peaks.density):
        raise ValueError(f"{count} clusters of {len(peaks.density)} patches")
    centres = np.argsort(-peaks.score, kind="stable")[:count]
    cluster = np.argmin(peaks.distance[centres], axis=0)
    cluster[centres] = np.arange(count)
    return centres, cluster


def squared_distances(patches_LP: Tensor) -> NDArray[np.float64]:
    """Mean squared difference of ImageNet-normalised uint8 patches `[L, P]`, `[L, L]`.

    The mean over P makes its root the Euclidean distance over sqrt(C), C = P.
    """
    levels = patches_LP.cpu().numpy().astype(np.float64).reshape(len(patches_LP), -1, 3)
    total = np.zeros((len(levels), len(levels)))
    for channel, deviation in enumerate(IMAGENET_STD):
        # Products of levels are whole numbers, and exact: equal patches are at a distance of exactly 0.
        values = levels[:, :, channel]
        product = values @ values.T
        norm = np.diagonal(product)
        total += (norm[:, None] + norm[None, :] - 2 * product) / (255 * deviation) ** 2
    return total / patches_LP.shape[1]
