"""Kernels are interpreted in this process. Triton reads the variable when kernels are imported, so it is set before
anything else is. A run on a GPU (`pytest -m gpu tests/gpu`) has settings of its own and does not read this file."""

import os

os.environ["TRITON_INTERPRET"] = "1"
