"""From a trained checkpoint to an engine, to a node, to a Triton that serves it."""
