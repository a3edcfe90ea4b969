"""The hystar-fast command."""
