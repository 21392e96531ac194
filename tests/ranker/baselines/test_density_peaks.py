"""DPC-kNN against the plainest loops; ties, duplicates and small images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.patches import normalise, patchify
from patchsieve.ranker.baselines.density_peaks import assign_clusters, density_peaks, squared_distances
from tests.helpers.photos import photo_pixels


def photo_patches(seed: int, side: int = 48, patch: int = 8) -> torch.Tensor:
    pixels = torch.from_numpy(photo_pixels(seed, side, side)).permute(2, 0, 1)
    return patchify(pixels[None], patch)[0]


def naive_peaks(patches: torch.Tensor, neighbours: int) -> tuple[list[list[float]], list[float], list[float]]:
    """Distances, densities and separations by loops over patches."""
    values = normalise(patches).double()
    count = len(values)
    distance = [
        [
            math.sqrt(float(((values[i] - values[j]) ** 2).sum())) / math.sqrt(values.shape[1])
            for j in range(count)
        ]
        for i in range(count)
    ]
    density = []
    for i in range(count):
        nearest = sorted(distance[i])[:neighbours]
        density.append(math.exp(-sum(d * d for d in nearest) / len(nearest)))
    largest = max(max(row) for row in distance)
    separation = []
    for i in range(count):
        nearest_denser = largest
        for j in range(count):
            if density[j] > density[i] or (density[j] == density[i] and j < i):
                nearest_denser = min(nearest_denser, distance[i][j])
        separation.append(nearest_denser)
    return distance, density, separation


@pytest.mark.parametrize(("seed", "neighbours"), [(0, 5), (1, 5), (2, 3), (3, 1)])
def test_peaks_and_clusters_are_those_of_loops(seed: int, neighbours: int) -> None:
    patches = photo_patches(seed)
    distance, density, separation = naive_peaks(patches, neighbours)
    peaks = density_peaks(patches, neighbours=neighbours)
    np.testing.assert_allclose(peaks.distance, distance, atol=1e-6)
    np.testing.assert_allclose(peaks.density, density, rtol=1e-5)
    np.testing.assert_allclose(peaks.separation, separation, rtol=1e-5, atol=1e-6)

    score = [a * b for a, b in zip(density, separation, strict=True)]
    expected = sorted(range(len(score)), key=lambda i: (-score[i], i))[:7]
    centres, cluster = assign_clusters(peaks, 7)
    assert centres.tolist() == expected
    for i in range(len(patches)):
        nearest = min(range(7), key=lambda k: (distance[expected[k]][i], k))
        assert cluster[i] == (expected.index(i) if i in expected else nearest)


def test_groups_of_patches_get_a_centre_each() -> None:
    random = np.random.default_rng(0)
    colours = np.array([[20, 20, 20], [230, 30, 30], [30, 30, 230]])
    member_of = np.repeat([0, 1, 2], [12, 8, 5])
    random.shuffle(member_of)
    flat = np.repeat(colours[member_of][:, None, :], 64, axis=1)
    pixels = (flat + random.integers(-8, 9, flat.shape)).astype(np.uint8)
    centres, cluster = assign_clusters(density_peaks(torch.from_numpy(pixels.reshape(25, -1))), 3)
    assert sorted(member_of[centres]) == [0, 1, 2]
    assert (member_of[centres][cluster] == member_of).all()


def test_equal_patches_are_at_no_distance_and_the_first_of_them_leads() -> None:
    patches = photo_patches(4)
    patches[[9, 20, 31]] = patches[2].clone()
    assert (squared_distances(patches)[[2, 9, 20, 31]][:, [2, 9, 20, 31]] == 0).all()
    peaks = density_peaks(patches)
    assert len(set(peaks.density[[2, 9, 20, 31]])) == 1
    assert (peaks.score[[9, 20, 31]] == 0).all()
    assert peaks.score[2] > 0


def test_an_image_of_one_colour_keeps_the_order_of_its_patches() -> None:
    peaks = density_peaks(torch.full((16, 192), 90, dtype=torch.uint8))
    assert (peaks.density == 1).all()
    centres, cluster = assign_clusters(peaks, 4)
    assert centres.tolist() == [0, 1, 2, 3]
    assert cluster.tolist() == [0, 1, 2, 3] + [0] * 12


def test_fewer_patches_than_neighbours() -> None:
    patches = photo_patches(5)[:3]
    _, density, separation = naive_peaks(patches, 3)
    peaks = density_peaks(patches)
    np.testing.assert_allclose(peaks.score, np.array(density) * np.array(separation), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 37])
def test_clusters_are_between_one_and_the_number_of_patches(count: int) -> None:
    with pytest.raises(ValueError, match="of 36 patches"):
        assign_clusters(density_peaks(photo_patches(0)), count)
