"""Wiring: the parts of the operator put together into one process that leads or stands by."""
