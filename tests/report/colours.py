"""Colours as WCAG 2.2 measures them: red, green and blue are 0..255 in sRGB."""

import numpy as np


def linear(colour):
    """Linear red, green and blue, 0..1."""
    channels = np.array(colour) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast ratio of two colours."""
    low, high = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (high + 0.05) / (low + 0.05)
