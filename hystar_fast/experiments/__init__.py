"""The paper's tables and figures, and comparisons of methods; used by the command line only."""
