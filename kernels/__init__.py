"""Triton kernels, imported as ``hystar_fast.kernels`` and by ``hystar_fast.ops`` alone."""

if __name__ == "kernels":
    raise ImportError("import hystar_fast.kernels, not kernels: a package on PyPI owns the name 'kernels'")
