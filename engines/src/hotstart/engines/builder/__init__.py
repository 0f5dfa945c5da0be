"""The builder's Jobs: ``inspect`` pins a checkpoint's digests, ``build`` makes the engine and uploads it.

Both run in the model's namespace with the user's own Secret; neither knows Hotstart's store or the Kubernetes API.
"""
