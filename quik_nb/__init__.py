"""quik_nb: a Jupyter-first, interactive training kit for PyTorch."""

__version__ = "0.1.0"
