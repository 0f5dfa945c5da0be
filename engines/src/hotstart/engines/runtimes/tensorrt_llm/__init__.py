"""The tensorrt_llm runtime: checkpoint -> TensorRT-LLM checkpoint (config.json, rank{N}.safetensors) -> rank{N}.engine.

Nothing here has run on a GPU: ``docs/how-it-is-tested.md`` says of each claim how it was checked.
"""
