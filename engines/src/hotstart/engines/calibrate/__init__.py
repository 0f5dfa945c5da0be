"""Calibration: how fast one replica is, measured once when its engine is built, through the completion model itself.

plan (pure: what is measured) -> measure (drives requests) -> fit (pure: samples -> profile). ``calibrate`` joins them;
``local`` and ``triton`` are the two ways to a completion model.
"""
