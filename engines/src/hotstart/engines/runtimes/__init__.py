"""Runtimes: what turns a checkpoint into an engine's files, and proves that they load. One module for each."""
