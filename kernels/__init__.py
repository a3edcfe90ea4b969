"""Triton kernels, imported as ``hystar_fast.kernels`` and by ``hystar_fast.ops`` alone."""

if __name__ == "kernels":
    # A package on PyPI owns this name, and transformers imports it to see whether it is there: with a checkout on the
    # path it must find nothing rather than an error, which a module without a file, a path or a name in it is.
    globals().update(__file__=None, __path__=[])

    def __getattr__(name: str) -> object:
        raise AttributeError(f"import hystar_fast.kernels, not kernels: a package on PyPI owns the name ({name})")
