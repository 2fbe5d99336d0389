"""Gamma of normalized intensities: the foreground's range bent, its mean and spread kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PerChannel = npt.NDArray[np.float32]

LOW_SHARE, HIGH_SHARE = 0.005, 0.995
"""Of the foreground's values, what lies between counts as its range: scalp and vessels outshine the rest."""

SAMPLE_STEP = 6
"""Every so many pixels along both sides tell the range."""


@dataclass(frozen=True, eq=False)
class Gamma:
    """x to `low + (high - low) * ((x - low) / (high - low)) ** exponent` within a range, then `* gain + bias`.

    What lies outside the range stays, up to gain and bias, so that order is kept everywhere. Each (channels,).
    """

    exponent: PerChannel
    low: PerChannel
    high: PerChannel
    gain: PerChannel
    bias: PerChannel

    def apply(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Change values, (…, channels); those of neighbouring slices follow one another."""
        tiled = values.reshape(*values.shape[:-1], -1, len(self.exponent))
        return (_bend(tiled, self.exponent, self.low, self.high) * self.gain + self.bias).reshape(values.shape)


def measure_gamma(sample: npt.NDArray[np.float32], background: PerChannel, exponent: PerChannel) -> Gamma:
    """A gamma on the range of what is not background, that keeps the mean and the standard deviation of just this.

    The network sees scans after normalization, which takes mean and spread away again: what is left of another gamma
    is the curve. Isensee et al. (2021), doi:10.1038/s41592-020-01008-z, do so as well.

    Args:
        sample: Normalized values, (values, channels).
        background: Normalized level of what lies around the body, (channels,).
        exponent: Below 1 dark tissue becomes brighter, above 1 darker, (channels,).
    """
    num_channels = len(exponent)
    low, high, gain, bias = (np.zeros(num_channels, np.float32) for _ in range(4))
    gain += 1
    for channel in range(num_channels):
        column = sample[:, channel]
        inside = np.sort(column[column != background[channel]])
        if not len(inside):
            continue
        last = len(inside) - 1
        low[channel], high[channel] = inside[int(LOW_SHARE * last)], inside[round(HIGH_SHARE * last)]
        bent = _bend(inside[:, None], exponent[[channel]], low[[channel]], high[[channel]])[:, 0]
        spread = bent.std()
        if spread > 0:
            gain[channel] = inside.std() / spread
        bias[channel] = inside.mean() - bent.mean() * gain[channel]
    return Gamma(exponent, low, high, gain, bias)


def sample_values(pixels: npt.NDArray[np.generic], num_channels: int) -> npt.NDArray[np.generic]:
    """Some pixels of a slice (rows, columns, channels) whose channels repeat for its neighbours, (values, channels)."""
    return np.ascontiguousarray(pixels[::SAMPLE_STEP, ::SAMPLE_STEP]).reshape(-1, num_channels)


def _bend(
    values: npt.NDArray[np.float32], exponent: PerChannel, low: PerChannel, high: PerChannel
) -> npt.NDArray[np.float32]:
    span = high - low
    share = np.divide(values - low, span, out=np.zeros_like(values), where=span > 0)
    within = (share > 0) & (share < 1)
    return np.where(within, low + span * np.clip(share, 0, 1) ** exponent, values)
