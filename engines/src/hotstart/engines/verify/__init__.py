"""Verification: an engine is held against its checkpoint, token by token, before anybody is served by it.

samples -> what is asked; expect -> what the checkpoint answers; judge -> whether the engine answers the same;
golden -> the few questions that go with the engine and are asked again at each load.
"""
