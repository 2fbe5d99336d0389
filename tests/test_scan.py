"""What a voxel takes up."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.scan import voxel_volume_mm3

ANGLES = st.tuples(*[st.floats(-3, 3)] * 3)
SPACINGS = st.tuples(*[st.floats(0.2, 8)] * 3)


def rotation_by(angles: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[first, first] = step[second, second] = math.cos(angle)
        step[first, second], step[second, first] = -math.sin(angle), math.sin(angle)
        turned = turned @ step
    return turned


def affine_of(linear: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, (-90, 120, 7)
    return affine


@given(angles=ANGLES, spacing=SPACINGS, mirrored=st.booleans())
def test_turning_and_mirroring_a_scan_leaves_its_volume(angles, spacing, mirrored):
    linear = rotation_by(angles) * np.array(spacing) * (-1 if mirrored else 1)
    expected = spacing[0] * spacing[1] * spacing[2]
    assert voxel_volume_mm3(spacing, affine_of(linear)) == pytest.approx(expected, rel=1e-9)
    assert voxel_volume_mm3(spacing) == pytest.approx(expected, rel=1e-12)


def test_sheared_voxels_have_the_volume_of_a_parallelepiped():
    """Slices 5 mm apart along the table, of a gantry tilted by 20 degrees: 1 mm x 1 mm x 5 mm x cos 20 degrees."""
    tilt = math.radians(20)
    linear = np.array([[0, 0, 1], [5 * math.sin(tilt), 1, 0], [5 * math.cos(tilt), 0, 0]])
    spacing = tuple(np.linalg.norm(linear, axis=0).tolist())
    assert spacing == pytest.approx((5, 1, 1))
    assert voxel_volume_mm3(spacing, affine_of(linear)) == pytest.approx(5 * math.cos(tilt))


def test_unknown_spacing_gives_no_volume():
    assert math.isnan(voxel_volume_mm3(None))
