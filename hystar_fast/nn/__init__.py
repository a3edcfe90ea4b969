"""Modules over the ops: factors, FastSVDLinear, injection, attention, hypernetwork and losses."""
