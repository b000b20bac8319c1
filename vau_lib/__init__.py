"""A workspace for video anomaly understanding: one clock, one record format, one honest evaluation."""

__version__ = "0.1.0"
