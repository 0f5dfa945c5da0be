"""Stands in for the container's convert_checkpoint.py and quantize.py: their options, and files of the right names."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model_dir", "output_dir", "dtype", "weight_only_precision", "qformat", "kv_cache_dtype"):
        parser.add_argument(f"--{name}")
    for name in ("device", "device_map", "calib_dataset", "gpt_variant"):
        parser.add_argument(f"--{name}")
    for name in ("tp_size", "pp_size", "workers", "calib_size", "batch_size", "calib_max_seq_length", "seed"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("use_weight_only", "load_model_on_cpu"):
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args(sys.argv[2:])
    if os.environ.get("OMPI_FAKE_UPSTREAM") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    assert (Path(arguments.model_dir) / "config.json").is_file()
    if arguments.calib_dataset:
        texts = (Path(arguments.calib_dataset) / "train.jsonl").read_text().splitlines()
        assert texts and all(json.loads(line)["text"] for line in texts)
    output = Path(arguments.output_dir)
    output.mkdir()
    mapping = {"world_size": arguments.tp_size, "tp_size": arguments.tp_size, "pp_size": 1}
    (output / "config.json").write_text(json.dumps({"dtype": arguments.dtype, "mapping": mapping}))
    for rank in range(arguments.tp_size):
        (output / f"rank{rank}.safetensors").write_text(f"weights by {Path(sys.argv[1]).name} for {rank}")
    print("Total time of converting checkpoints: 00:00:01")


if __name__ == "__main__":
    main()
