"""The object in a photo, found in the photo alone: what differs from the border of the photo."""

from __future__ import annotations

import numpy as np
import scipy


def find_object(photo: np.ndarray) -> np.ndarray | None:
    """The object in a small photo (h,w,3) float32: its region (h,w) bool.

    None for a photo without a clear border, such as one of cloth, which is all object.
    """
    region = _unlike_the_border(photo)
    return region if 0.02 < region.mean() < 0.95 else None


def _unlike_the_border(small: np.ndarray) -> np.ndarray:
    """(h,w) bool for a photo (h,w,3): the largest region that differs from the border, its holes filled."""
    frame = np.ones(small.shape[:2], bool)
    width = max(2, min(frame.shape) // 32)
    frame[width:-width, width:-width] = False
    y, x = np.indices(frame.shape)
    plane = np.stack([np.ones(frame.shape), x, y], axis=2)  # light often falls off towards one side
    background = plane @ np.linalg.lstsq(plane[frame], small[frame], rcond=None)[0]
    distance = np.abs(small - background).max(axis=2)
    # The border may be uneven, and the object may touch it.
    region = distance > 10 + 2 * np.percentile(distance[frame], 75)
    region = scipy.ndimage.binary_fill_holes(scipy.ndimage.binary_closing(region, iterations=2))
    labels, count = scipy.ndimage.label(scipy.ndimage.binary_opening(region, iterations=2))
    if count == 0 or region[frame].mean() > 0.5:
        return np.ones_like(region)
    largest = 1 + int(np.argmax(scipy.ndimage.sum_labels(region, labels, range(1, count + 1))))
    return labels == largest
