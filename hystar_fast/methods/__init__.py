"""Hystar, its baselines and the systems it is compared with, behind one small interface."""
