"""The demo: the main job end to end on the embedded cluster, told as a story and measured. Not part of the wheel."""
