"""What runs in and around Triton: the completion model, its model repository, and the server's command line.

The pod agent writes the repository (``repository``); Triton's Python backend loads the completion model from it
(``completion``), which turns prompts into tokens, runs the engine and turns tokens into text.
"""
