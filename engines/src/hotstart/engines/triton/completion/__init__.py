"""The completion model: prompt -> tokens -> engine -> text, with stops, cancellation and measurements.

A request's way: ``options`` -> ``prompts`` (format) and ``trimming`` -> ``scheduler`` (queue, workers) ->
``generation`` (engine's tokens -> ``stops`` -> text) -> ``model`` (Triton's responses). Only ``model`` and
``metrics`` know Triton.
"""
