"""Probabilistic deep learning in JAX: the small library behind the course's notebooks.

It carries data, plots, training, checks and exact answers, and never what a lesson teaches.
Importing it sets nothing global; a notebook calls `dlcourse_utils.env.start()` for that.
"""

from importlib.metadata import version

__version__ = version("dlcourse")
