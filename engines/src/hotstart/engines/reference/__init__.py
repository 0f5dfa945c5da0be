"""What a checkpoint computes, in plain numpy: the truth that every engine is held against.

Written from the papers and the configs, and independent of every converter: it reads a checkpoint's own tensors by
their own names. Layer by layer, so that the peak of memory is one layer and the embeddings in float32.
"""
