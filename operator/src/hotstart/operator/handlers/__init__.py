"""Kopf's watches: each event updates the store of observed objects and puts a key into the queue, nothing else."""
