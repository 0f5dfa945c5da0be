"""The data path: OpenAI-compatible completions in, Triton gRPC out; owns the only deep queue and measures."""
