"""The Triton kernels of svd_linear and the functions that launch them."""
