"""Readers of trained checkpoints: lazy, weights only, nothing of the checkpoint is ever executed.

``choose`` picks the files out of a listing, ``opening`` opens them once they lie in a folder, and a runtime reads the
weights through the ``Checkpoint`` protocol, one tensor at a time.
"""
