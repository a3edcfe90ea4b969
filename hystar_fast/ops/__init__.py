"""The three ops: schema, fake kernel, autograd and the choice of implementation, one file an op."""
