"""Pictures computed beforehand, with a slider: a figure that moves without kernel and network.

A page that runs no script, or a notebook that is not trusted, shows one of the pictures.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

_EXACT = 4  # colours that a palette has unchanged
# The script makes the controls, so that there are none where it does not run. It serves all strips
# that the page has by then: none is found by an id, and front ends need not say where a script is.
_SCRIPT = """
for (const figure of document.querySelectorAll("figure.dlcourse-filmstrip:not([data-ready])")) {
  figure.dataset.ready = "";
  const strip = JSON.parse(figure.querySelector("script").textContent);
  const make = (name, style, more) =>
    Object.assign(document.createElement(name), more, { style });
  const row = make("div", "display:flex;flex-wrap:wrap;align-items:center;gap:.3em .8em;" +
    "margin:.4em 0");
  const label = make("label", "display:flex;flex:1 1 9em;align-items:center;gap:.8em");
  const slider = make("input", "flex:1 1 8em;min-width:6em;margin:0", {
    type: "range", min: 0, max: strip.frames.length - 1, step: 1, value: strip.first });
  const widest = Math.max(...strip.frames.map((frame) => frame.value.length));
  const output = make("output", `min-width:${widest}ch;font-variant-numeric:tabular-nums`);
  const picture = figure.querySelector("img");
  const show = () => {
    const frame = strip.frames[slider.valueAsNumber];
    picture.src = "data:image/png;base64," + frame.png;
    picture.alt = frame.alt;
    output.textContent = frame.value;
    slider.setAttribute("aria-valuetext", frame.value);
  };
  output.setAttribute("aria-live", "off"); // the slider says its value itself
  slider.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes its keys
  label.append(strip.label, slider);
  row.append(label, output);
  if (strip.holds) {
    const button = make("button", "min-width:5em", { type: "button", textContent: "Play" });
    button.dataset.lmSuppressShortcuts = "true";
    let timer = null;
    const stop = () => {
      clearTimeout(timer);
      timer = null;
      button.textContent = "Play";
    };
    const wait = () => {
      const k = slider.valueAsNumber;
      if (k === strip.frames.length - 1) return stop();
      timer = setTimeout(() => { slider.value = k + 1; show(); wait(); }, strip.holds[k]);
    };
    button.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (slider.valueAsNumber === strip.frames.length - 1) slider.value = 0;
      button.textContent = "Pause";
      show();
      wait();
    });
    slider.addEventListener("input", stop);
    row.prepend(button);
  }
  slider.addEventListener("input", show);
  show();
  picture.after(row);
  figure.querySelector("figcaption").textContent = strip.note;
}
"""


class Frame(NamedTuple):
    """One position of the slider: a picture, the slider's value in words with unit, alt text."""

    picture: Image.Image
    value: str
    alt: str


def picture(canvas: FigureCanvasAgg) -> Image.Image:
    """What is on the canvas now."""
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def page(
    frames: Sequence[Frame],
    *,
    label: str,
    first: int,
    still: str,
    note: str = "",
    holds: Sequence[int] | None = None,
    colours: int = 128,
) -> str:
    """HTML of pictures of one size, with a slider named ``label``.

    Frame number ``first`` is the picture at the beginning, and the only one where no script runs.
    The caption is then ``still``, and ``note`` where one runs. With ``holds``, milliseconds for
    each frame, there is a button that plays all frames once. All pictures share ``colours``.
    Raises ValueError where there are not as many holds as frames.
    """
    if holds is not None:  # maybe an array, whose numbers JSON does not take
        holds = [int(hold) for _, hold in zip(frames, holds, strict=True)]
    begin, (width, height) = frames[first], frames[first].picture.size
    data = [base64.b64encode(png).decode() for png in _shrunk(frames, colours)]
    strip = {
        "label": label,
        "first": first,
        "note": note,
        "holds": holds,
        "frames": [
            {"png": png, "value": frame.value, "alt": frame.alt}
            for png, frame in zip(data, frames, strict=True)
        ],
    }
    # In a script, HTML has no escapes; a "<" could end it.
    script = json.dumps(strip, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<figure class="dlcourse-filmstrip" style="margin:0;max-width:{width}px">'
        f'<img src="data:image/png;base64,{data[first]}" alt="{escape(begin.alt)}" '
        f'width="{width}" height="{height}" style="display:block;max-width:100%;height:auto">'
        f'<figcaption style="color:inherit;font-size:.9em">{escape(still)}</figcaption>'
        f'<script type="application/json">{script}</script></figure>'
        f"<script>{_SCRIPT}</script>"
    )


def play(frames: Sequence[Frame], holds: Sequence[int], *, label: str, colours: int = 128) -> None:
    """Display ``frames`` as an animation that begins when asked, each for ``holds`` milliseconds.

    Where no script runs, as in print, its last frame is shown.
    """
    still = "Still picture: the end of an animation, which plays where scripts may run."
    last = len(frames) - 1
    html = page(frames, label=label, first=last, still=still, holds=holds, colours=colours)
    display({"text/html": html, "text/plain": f"Animation: {frames[last].alt}"}, raw=True)


def _shrunk(frames: Sequence[Frame], colours: int) -> list[bytes]:
    """Small PNGs of one palette, so that what stands still in all pictures does not flicker."""
    halves = np.concatenate([np.asarray(frame.picture)[::2, ::2] for frame in frames])
    stack = Image.fromarray(halves)
    palette = stack.quantize(colours - _EXACT, Image.Quantize.MAXCOVERAGE)
    table = np.reshape(palette.getpalette(), (-1, 3))
    # The commonest colours are those of paper and grounds: they stay as they are.
    common = sorted(stack.getcolors(stack.width * stack.height), reverse=True)[:_EXACT]
    for _, colour in reversed(common):
        table[np.abs(table - colour).max(axis=1) <= 8] = colour
    table = np.concatenate([table, [colour for _, colour in common]])
    palette.putpalette(table.ravel().tolist())
    shrunk = []
    for frame in frames:
        buffer = io.BytesIO()
        few = frame.picture.quantize(palette=palette, dither=Image.Dither.NONE)
        few.save(buffer, format="png")
        shrunk.append(buffer.getvalue())
    return shrunk
