"""Animations that need no kernel: frames of a figure as one GIF inside of the notebook."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image


def frame(canvas: FigureCanvasAgg, colours: int) -> Image.Image:
    """What is on the canvas now, with so many ``colours``."""
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return picture.quantize(colours, method=Image.Quantize.FASTOCTREE)


def show(frames: Sequence[Image.Image], holds: Sequence[int], alt: str) -> None:
    """Display ``frames`` as an endless loop, each for its ``holds`` in milliseconds."""
    # The last frame comes first: it is what print and a still page show.
    buffer = io.BytesIO()
    frames[-1].save(
        buffer,
        format="gif",
        save_all=True,
        append_images=frames,
        duration=[1500, *holds],
        loop=0,
        optimize=False,
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    page = f'<img alt="{escape(alt)}" src="data:image/gif;base64,{data}" style="max-width:100%">'
    display(HTML(page))
