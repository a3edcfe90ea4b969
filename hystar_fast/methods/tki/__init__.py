"""TKI: retrieval across domains, learned from class names alone."""
