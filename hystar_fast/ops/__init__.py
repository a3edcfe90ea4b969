"""The four ops, a folder each: schema, fake kernels, autograd, and the choice of implementation."""
