"""Stands in for the container's convert_checkpoint.py and quantize.py: their options, and files of the right names.

Each script takes the options that it declares in TensorRT-LLM 1.2.1 and no others, and reads config and tokenizer as
transformers does when it is told to trust the checkpoint's code. ``OMPI_FAKE_UPSTREAM`` says what goes wrong: die
(killed), driver (the package cannot be loaded without one), hang (in the middle, after half of a bar).
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

DTYPES = ("auto", "float16", "bfloat16", "float32")
RANKS = {"tp_size": int, "pp_size": int, "workers": int}
PLACES = {"model_dir": str, "output_dir": str}
EMBEDDING = {"use_parallel_embedding": bool, "embedding_sharding_dim": int}
SMOOTH = {"calib_dataset": str, "smoothquant": float, "per_channel": bool, "per_token": bool, "int8_kv_cache": bool}
CONVERT = PLACES | RANKS | {"dtype": DTYPES, "use_weight_only": bool, "weight_only_precision": ("int8", "int4")}
GPTQ = {"weight_only_precision": ("int8", "int4", "int8_gptq", "int4_gptq", "int4_awq"), "group_size": int}
STRICT = {"dtype": DTYPES[1:]}
#: The last folder of a script, or its name -> its options, by the type or the choices of their values.
SCRIPTS = {
    "llama": CONVERT | EMBEDDING | SMOOTH | GPTQ | {"load_model_on_cpu": bool, "cp_size": int, "load_by_shard": bool},
    "qwen": CONVERT | EMBEDDING | SMOOTH | GPTQ | {"load_model_on_cpu": bool, "cp_size": int},
    "phi": CONVERT | {"moe_tp_size": int, "moe_ep_size": int},
    "gpt": CONVERT | EMBEDDING | SMOOTH | {"load_model_on_cpu": bool, "log_level": str}
    | {"gpt_variant": ("gpt2", "santacoder", "starcoder", "starcoder2", "persimmon", "kosmos-2", "nemotron")},
    "gemma": PLACES | SMOOTH | {"ckpt-type": ("jax", "keras", "torch", "hf"), "world-size": int, "dtype": DTYPES}
    | {"use_weight_only": bool, "weight_only_precision": ("int8", "int4", "w4a8_awq", "w4a16_awq")}
    | {"load_model_on_cpu": bool, "enable_fp8": bool, "fp8_kv_cache": bool, "tokenizer_dir": str},
    "gptj": CONVERT,
    "gptneox": CONVERT | EMBEDDING | STRICT,
    "falcon": CONVERT | EMBEDDING | {"load_by_shard": bool, "log_level": str},
    "bloom": CONVERT | EMBEDDING | SMOOTH | STRICT | {"log_level": str},
    "quantize.py": PLACES | {"tp_size": int, "pp_size": int, "cp_size": int, "dtype": DTYPES, "seed": int}
    | {"device": ("cuda", "cpu"), "device_map": ("auto", "sequential", "cpu", "gpu"), "calib_dataset": str}
    | {"qformat": ("nvfp4", "fp8", "int8_sq", "int4_awq", "w4a8_awq", "int8_wo", "int4_wo", "full_prec")}
    | {"kv_cache_dtype": ("int8", "fp8"), "calib_size": int, "batch_size": int, "calib_max_seq_length": int},
}  # fmt: skip
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def make_parser(script: Path) -> argparse.ArgumentParser:
    """The options of one script; as upstream's, it takes no abbreviation for another option."""
    parser = argparse.ArgumentParser(prog=script.name, allow_abbrev=False)
    for name, kind in SCRIPTS[script.name if script.name == "quantize.py" else script.parent.name].items():
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(kind, tuple):
            parser.add_argument(f"--{name}", choices=kind)
        else:
            parser.add_argument(f"--{name}", type=kind)
    return parser


def load_as_transformers(folder: Path, name: str) -> None:
    """With ``trust_remote_code=True`` a config that names code wants it from the folder, and would run it."""
    path = folder / name
    for reference in json.loads(path.read_text()).get("auto_map", {}).values() if path.is_file() else ():
        module = (reference if isinstance(reference, str) else reference[0]).rpartition("--")[2].partition(".")[0]
        if (folder / f"{module}.py").is_file():
            sys.exit(f"{module}.py of the checkpoint was run")
        raise OSError(f"{folder} does not appear to have a file named {module}.py.")


def load_model(folder: Path) -> None:
    """What every script does first."""
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} does not appear to have a file named config.json.")
    load_as_transformers(folder, "config.json")
    load_as_transformers(folder, "tokenizer_config.json")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise OSError(f"Error no file named {', '.join(WEIGHTS)} found in directory {folder}.")


def find_algorithm(arguments: dict[str, object]) -> str | None:
    """What the checkpoint's config says of its quantization."""
    if arguments.get("qformat"):
        return str(arguments["qformat"]).upper()
    return (
        {"int8": "W8A16", "int4": "W4A16"}[str(arguments["weight_only_precision"])]
        if arguments["use_weight_only"]
        else None
    )


def main() -> None:
    script = Path(sys.argv[1])
    what = os.environ.get("OMPI_FAKE_UPSTREAM")
    if what == "driver":
        raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
    arguments = make_parser(script).parse_args(sys.argv[2:])
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    load_model(Path(arguments.model_dir))
    for step in range(6):
        print(
            f"Loading weights: {10 * step:3d}%|{'#' * step:<10}| {step}/10 [00:0{step}<00:09, 1.00it/s]",
            end="\r",
            flush=True,
        )
    print()
    if what == "hang":
        time.sleep(600)
    if script.name == "quantize.py":
        texts = (Path(arguments.calib_dataset) / "train.jsonl").read_text().splitlines()
        assert texts and all(json.loads(line)["text"] for line in texts)
    ranks = vars(arguments).get("tp_size") or vars(arguments)["world_size"]
    output = Path(arguments.output_dir)
    output.mkdir()
    mapping = {"world_size": ranks, "tp_size": ranks, "pp_size": 1}
    quantization = {"quant_algo": find_algorithm(vars(arguments))}
    config = {"dtype": arguments.dtype, "logits_dtype": "float32", "mapping": mapping, "quantization": quantization}
    (output / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (output / f"rank{rank}.safetensors").write_text(f"weights by {script.name} for {rank}")
    print("Total time of converting checkpoints: 00:00:01")


if __name__ == "__main__":
    main()
