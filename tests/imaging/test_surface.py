"""Distances between surfaces, against boxes and balls worked out by hand and DeepMind's implementation."""

import math

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from raysegment.errors import GridMismatchError
from raysegment.imaging.surface import compare_surfaces

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
PAIRS = arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))
SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.25, 5.0])] * 3)


def box(first, last, shape=(12, 14, 16)):
    array = np.zeros(shape, np.bool_)
    array[tuple(slice(*pair) for pair in zip(first, last, strict=True))] = True
    return array


def ball(centre, radius_mm, spacing_mm, shape=(24, 40, 40)):
    axes = np.ogrid[tuple(slice(side) for side in shape)]
    squared = sum(((axis - at) * mm) ** 2 for axis, at, mm in zip(axes, centre, spacing_mm, strict=True))
    return squared < radius_mm**2


def by_the_oracle(mask, reference, spacing_mm, tolerance_mm):
    distances = surface_distance.compute_surface_distances(reference, mask, spacing_mm)
    areas = distances["surfel_areas_gt"].sum(), distances["surfel_areas_pred"].sum()
    means = surface_distance.compute_average_surface_distance(distances)
    return (
        surface_distance.compute_robust_hausdorff(distances, 95 * (1 - 1e-6)),
        (means[0] * areas[0] + means[1] * areas[1]) / sum(areas),
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm),
    )


def test_a_slab_moved_along_one_axis_is_as_far_as_it_was_moved():
    """Slabs of 7 rows, moved by 2 of 3 mm: both broad sides of each lie 6 mm from the other, nothing farther."""
    mask, reference = box((0, 2, 0), (40, 9, 40), (40, 14, 40)), box((0, 4, 0), (40, 11, 40), (40, 14, 40))
    found = compare_surfaces(mask, reference, (1.0, 3.0, 1.0), 6.0)
    assert found.hd95_mm == pytest.approx(6.0)
    assert found.surface_dice == 1.0
    assert compare_surfaces(mask, reference, (1.0, 3.0, 1.0), 5.99).surface_dice < 0.75


@pytest.mark.parametrize(("tolerance_mm", "expected"), [(0.0, 0.5), (0.69, 0.5), (0.7, 1.0)])
def test_a_voxel_and_its_neighbour_share_half_of_their_surface(tolerance_mm, expected):
    mask, reference = box((3, 3, 3), (4, 4, 4)), box((3, 3, 4), (4, 4, 5))
    found = compare_surfaces(mask, reference, (2.0, 1.0, 0.7), tolerance_mm)
    assert found == pytest.approx((0.7, 0.35, expected))


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 5.0), (1, 0.5), (2, 2.0)])
def test_single_voxels_are_as_far_apart_as_their_centres(axis, expected_mm):
    mask, reference = box((3, 3, 3), (4, 4, 4)), box((3, 3, 3), (4, 4, 4))
    found = compare_surfaces(np.roll(mask, 4, axis), reference, (5.0, 0.5, 2.0), 1.0)
    assert found.hd95_mm == pytest.approx(4 * expected_mm)
    assert found.mean_surface_distance_mm == pytest.approx((3 + 4) / 2 * expected_mm)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (2.5, 0.9, 0.8)])
def test_concentric_balls_are_as_far_apart_as_their_radii(spacing_mm):
    centre = (12, 20, 20)
    found = compare_surfaces(ball(centre, 12, spacing_mm), ball(centre, 8, spacing_mm), spacing_mm, 1.0)
    assert found.mean_surface_distance_mm == pytest.approx(4.0, abs=0.7)
    assert found.hd95_mm == pytest.approx(4.0, abs=max(spacing_mm) / 2)
    assert found.surface_dice == 0.0


def test_equal_masks_are_at_no_distance():
    mask = ball((12, 20, 20), 9, (1, 1, 1))
    assert compare_surfaces(mask, mask, (1.0, 1.0, 1.0), 0.0) == (0.0, 0.0, 1.0)


@given(pair=PAIRS, spacing_mm=SPACINGS)
@settings(max_examples=150, deadline=None)
def test_random_masks_agree_with_deepminds_implementation(pair, spacing_mm):
    mask, reference = (pair & 1) > 0, (pair & 2) > 0
    found = compare_surfaces(mask, reference, spacing_mm, 1.0)
    if not mask.any() or not reference.any():
        assert all(map(math.isnan, found))
        return
    assert found == pytest.approx(by_the_oracle(mask, reference, spacing_mm, 1.0 + 1e-6), rel=1e-5)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.94, 0.94), (3.0, 0.7, 1.1)])
@pytest.mark.parametrize("seed", range(4))
def test_smooth_masks_agree_with_deepminds_implementation(seed, spacing_mm):
    noise = np.random.default_rng(seed).standard_normal((2, 20, 50, 60))
    mask, reference = (ndimage.gaussian_filter(one, (1.5, 4, 4)) > 0.02 for one in noise)
    found = compare_surfaces(mask, reference, spacing_mm, 2.0)
    assert found == pytest.approx(by_the_oracle(mask, reference, spacing_mm, 2.0), rel=1e-5)


@given(pair=PAIRS, order=st.permutations(range(3)), axis=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_turning_or_flipping_both_changes_nothing(pair, order, axis):
    mask, reference, spacing_mm = (pair & 1) > 0, (pair & 2) > 0, (4.0, 1.5, 1.0)
    turned = [np.flip(one, axis).transpose(order) for one in (mask, reference)]
    found = compare_surfaces(*turned, tuple(spacing_mm[axis] for axis in order), 1.5)
    assert found == pytest.approx(compare_surfaces(mask, reference, spacing_mm, 1.5), rel=1e-5, nan_ok=True)
    assert found == pytest.approx(
        compare_surfaces(*turned[::-1], tuple(spacing_mm[axis] for axis in order), 1.5), nan_ok=True
    )


def test_a_surface_at_the_edge_of_the_scan_is_one():
    mask, reference = np.ones((3, 4, 5), np.bool_), box((0, 0, 0), (3, 4, 4), (3, 4, 5))
    assert compare_surfaces(mask, reference, (1.0, 1.0, 2.0), 0.0).hd95_mm == pytest.approx(2.0)


@pytest.mark.parametrize("values", [(0, 0), (1, 0), (0, 1)])
def test_without_a_surface_there_is_no_distance(values):
    mask, reference = (np.full((2, 3, 3), value, np.bool_) for value in values)
    assert all(map(math.isnan, compare_surfaces(mask, reference, (1.0, 1.0, 1.0), 1.0)))


def test_without_spacing_there_is_no_distance():
    mask = box((1, 1, 1), (3, 3, 3))
    assert all(map(math.isnan, compare_surfaces(mask, mask, None, 1.0)))


def test_a_reference_on_another_grid_is_refused():
    with pytest.raises(GridMismatchError, match=r"\(1, 4, 4\).*\(1, 5, 5\)"):
        compare_surfaces(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 5, 5), np.bool_), (1.0, 1.0, 1.0), 1.0)


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.tuples(*[st.sampled_from([0.7, 1.0, 1.25, 3.3])] * 3), st.randoms(use_true_random=False))
def test_hd95_is_exact_to_a_nanometre(mask, spacing_mm, random):
    reference = np.roll(mask, random.randint(0, 3), axis=random.randint(0, 2))
    if mask.any() and not np.array_equal(mask != 0, reference != 0):
        expected = by_the_oracle(mask != 0, reference != 0, spacing_mm, 1.0)[0]
        assert compare_surfaces(mask, reference, spacing_mm, 1.0).hd95_mm == pytest.approx(expected, abs=1e-9, rel=0)
