"""A histogram as SVG that takes its colours from the page, light or dark."""

from html import escape

import numpy as np

_BINS, _WIDTH, _HEIGHT = 40, 360, 110


def histogram(values: np.ndarray, *, title: str) -> str:
    """A figure with the distribution of some values; the outer bars have everything beyond 1 % and 99 %.

    Args:
        values: finite, at least one.
        title: shown above.
    """
    low, high = np.percentile(values, (1, 99))
    high = high if high > low else low + 1
    counts, _ = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    width = _WIDTH / _BINS
    bars = "".join(
        f'<rect x="{place * width:.1f}" y="{_HEIGHT - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}"/>'
        for place, height in enumerate(counts / counts.max() * _HEIGHT)
        if height
    )
    ends = "".join(
        f"<span>{text}</span>" for text in (f"{low:,.4g}", f"median {np.median(values):,.4g}", f"{high:,.4g}")
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" preserveAspectRatio="none">'
        f'{bars}</svg><div class="ends quiet">{ends}</div></figure>'
    )
