"""The field of view (FOV) of a fundus photograph, found from the image and checked against a circle.

The camera shows a disc, often cut off straight above and below or at the sides, on a surround that need not be black. Its
rim is where the light ends: light multiplies, so the level that parts it from the surround is sought on the logarithm of
the brightness (Otsu, IEEE Trans. SMC 1979). Whether what was found is a field of view is told by its outline: a circle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import CircleModel, ransac

from nnunet_kd.utils.errors import KDError

BLACK_SURROUND = 15  # of 255, brightest channel: tried first; above a black surround and its JPEG noise (0..12)
LEVELS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 1.15, 1.3)  # times the Otsu level, for a surround nearly as bright as a dim rim
SMALLEST_FOV = 0.25  # of the image
TOLERANCE = 0.01  # of the radius: how far a point of the outline may lie off the circle
GOOD_FIT = 0.9  # of the outline on the circle: the outline is the rim; the tab or notch of many cameras takes 0.03 to 0.06
POOR_FIT = 0.7  # a warning below it
BETTER_FIT = 0.02  # by which another level has to beat Otsu's
SHORTEST_ARC = 0.1  # of the full circle: less does not tell its radius
RIM_CONTRAST = 0.75  # brightness outside the rim over that inside it; light that falls off slowly has no rim
WORKING_SIDE = 600  # pixels: the level is chosen on an image reduced to at most twice that
N_POINTS = 720  # of the outline


@dataclass(frozen=True)
class Circle:
    """A circle fitted to a mask's outline, in pixels. `fit`: share of the outline that lies on it. `arc`: share of the full
    circle that the outline shows."""

    row: float
    column: float
    radius: float
    fit: float
    arc: float

    def distance(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Distance from the centre, in radii."""
        return np.hypot(rows - self.row, columns - self.column) / self.radius


@dataclass(frozen=True)
class FieldOfView:
    """`mask`: bool (H, W). `level`: brightness it was cut at. `circle`: None if no round rim is to be seen. `kind`:
    "outline" (what is brighter than the level), "disc" (the circle, where part of the outline is lost) or "whole image"."""

    mask: np.ndarray
    level: float
    circle: Circle | None
    kind: str

    def description(self) -> dict:
        """For conversion.json."""
        circle = None
        if self.circle:
            circle = {key: round(float(value), 3) for key, value in vars(self.circle).items()}
        return {"found_as": self.kind, "level": round(float(self.level), 1), "circle": circle}

    def doubt(self) -> str | None:
        """Why the field should be looked at, in words; None if it fits well."""
        return doubt(self.circle)


def doubt(circle: Circle | None) -> str | None:
    """What a circle fitted to a field of view says against it, in words; None if it fits well."""
    if circle is None:
        return "no round rim"
    return f"{100 * circle.fit:.0f}% of its outline on a circle" if circle.fit < POOR_FIT else None


def find_field_of_view(image_rgb: np.ndarray) -> FieldOfView:
    """The field of view of a fundus photograph.

    image_rgb: uint8 (H, W, 3). A level is taken whose outline is a circle: that above a black surround if it does, else the
    best of several about Otsu's on the logarithm. If part of the outline is lost even so (dim periphery, writing that
    touches it), the circle itself is the field. Without any rim the whole image is. Raises KDError if what is found is no
    plausible field of view.
    """
    brightest = image_rgb.max(axis=2).astype(np.float32)
    step = max(1, min(brightest.shape) // WORKING_SIDE)
    small = ndimage.uniform_filter(brightest, step)[step // 2 :: step, step // 2 :: step] if step > 1 else brightest
    small, smooth = ndimage.gaussian_filter(small, 1), ndimage.gaussian_filter(brightest, 1)
    level, outline = _best_level(small)
    if level is None:
        share = _region(small, BLACK_SURROUND).mean()
        raise KDError(
            f"no field of view found: only {100 * share:.0f}% of the image is brighter than {BLACK_SURROUND} of 255; the "
            "image is damaged, or needs a field-of-view mask"
        )
    if outline is None:
        return FieldOfView(np.ones(brightest.shape, bool), level, None, "whole image")
    mask = _region(smooth, level)
    circle = fitted_circle(mask)
    if circle is None or circle.fit >= GOOD_FIT:
        return FieldOfView(mask, level, circle, "outline")
    return FieldOfView(_disc(mask, circle), level, circle, "disc")


def fitted_circle(mask: np.ndarray) -> Circle | None:
    """The circle that most of a mask's outline lies on (RANSAC); None if the outline is too short or straight.

    mask: bool (H, W). Points along the sides of its bounding box do not count: there a field of view may be cut off.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    side = max(bottom - top, right - left) + 1
    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    margin = max(2, TOLERANCE * side)
    y, x = points.T
    points = points[(y >= top + margin) & (y <= bottom - margin) & (x >= left + margin) & (x <= right - margin)]
    if len(points) < 20:
        return None
    points = points[:: max(1, len(points) // N_POINTS)].astype(float)
    tolerance = max(1.5, TOLERANCE * side / 2)
    model, inliers = ransac(points, CircleModel, 3, tolerance, max_trials=200, rng=0)
    if model is None or inliers is None:
        return None
    # two opposite points tell centre and radius in every version of scikit-image
    first, second = model.predict_xy(np.array([0.0, np.pi]))
    (row, column), radius = (first + second) / 2, float(np.hypot(*(first - second))) / 2
    angles = np.arctan2(points[inliers, 0] - row, points[inliers, 1] - column)
    arc = np.unique(np.floor(angles / (2 * np.pi) * 120)).size / 120
    if arc < SHORTEST_ARC or not 0.45 * min(bottom - top, right - left) <= radius <= side:
        return None
    return Circle(float(row), float(column), radius, float(inliers.mean()), arc)


def _best_level(brightness: np.ndarray) -> tuple[float | None, Circle | None]:
    """The level whose region has the most circular outline, and its circle; without a rim (level, None), without a region
    that is large enough (None, None)."""
    best: tuple[float | None, Circle | None] = (None, None)
    if brightness.min() == brightness.max():
        return (None, None) if brightness.max() <= BLACK_SURROUND else (float(brightness.max()), None)
    otsu = float(np.expm1(threshold_otsu(np.log1p(brightness))))
    for level in (BLACK_SURROUND, *(factor * otsu for factor in LEVELS)):
        region = _region(brightness, level)
        if region.mean() < SMALLEST_FOV:
            continue
        circle = fitted_circle(region)
        if circle and _contrast(brightness, circle) > RIM_CONTRAST:
            circle = None
        if circle and circle.fit >= GOOD_FIT and level == BLACK_SURROUND:
            return level, circle
        if best[0] is None or (circle and (best[1] is None or circle.fit > best[1].fit + BETTER_FIT)):
            best = level, circle
    return best


def _region(brightness: np.ndarray, level: float) -> np.ndarray:
    """What is brighter than a level: opening, largest component, holes filled."""
    mask = ndimage.binary_opening(brightness > level, iterations=2)
    components, n = ndimage.label(mask)
    return ndimage.binary_fill_holes(components == 1 + np.argmax(np.bincount(components.ravel())[1:])) if n else mask


def _contrast(brightness: np.ndarray, circle: Circle) -> float:
    """Median brightness just outside a circle over that just inside; 1 if the image does not reach beyond it."""
    distance = circle.distance(*np.indices(brightness.shape, sparse=True))
    outside, inside = (brightness[(distance > a) & (distance < b)] for a, b in ((1.02, 1.06), (0.94, 0.98)))
    return float(np.median(outside) / max(np.median(inside), 1)) if outside.size and inside.size else 1.0


def _disc(region: np.ndarray, circle: Circle) -> np.ndarray:
    """The disc within the image, cut off where the region is cut off straight."""
    disc = circle.distance(*np.indices(region.shape, sparse=True)) <= 1
    inside = region & disc
    margin = max(2, round(2 * TOLERANCE * circle.radius))
    for axis in (0, 1):
        lines = np.moveaxis(disc, axis, 0)  # a view: rows, then columns
        kept = np.flatnonzero(inside.any(axis=1 - axis))
        for line, edge, beyond in (
            (kept[0], slice(kept[0], kept[0] + margin), slice(0, kept[0])),
            (kept[-1], slice(max(kept[-1] - margin, 0), kept[-1] + 1), slice(kept[-1] + 1, None)),
        ):
            # a whole circle is 0.4 radii wide at that depth
            if np.moveaxis(inside, axis, 0)[edge].any(axis=0).sum() > 0.6 * circle.radius and 0 < line < len(lines) - 1:
                lines[beyond] = False
    return disc
