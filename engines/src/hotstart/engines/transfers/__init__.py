"""Engines to and from the store, by presigned URLs: pieces side by side, hashed in the same pass, resumable.

``download`` is the pod agent's way in, ``upload`` the builder's way out; ``ranges`` and ``parts`` are their pure
halves. Neither holds a credential of the store. ADR 19 says why they are ours, and what was measured.
"""
