"""MPT on CTranslate2: engines compute what the reference computes, and what they could not is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from hotstart.engines.builder.prepare import Prepared, prepare
from hotstart.engines.checkpoints.checkpoint import expected_shapes
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.folder_source import FolderSource
from hotstart.engines.checkpoints.mpt_config import MptFacts, make_mpt_facts
from hotstart.engines.checkpoints.opening import check_checkpoint, open_checkpoint
from hotstart.engines.checkpoints.places import FolderPlace
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.key import key_inputs, make_key
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe, make_toolchain
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.runtimes import ctranslate2_mpt
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.runtimes.ctranslate2_mpt import make_mpt_spec
from hotstart.engines.runtimes.ctranslate2_weights import WeightWriter
from hotstart.engines.triton.completion.engine import CTranslate2Engine, read_facts
from hotstart.engines.triton.completion.errors import CompletionError
from hotstart.engines.triton.completion.job import CompletionJob
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.prompts import make_formatter
from hotstart.engines.triton.completion.stops import StopRules, base_indent
from hotstart.exchange.messages import ServingOptions, StopMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tests.support.tiny_checkpoint import Weights
from tests.support.tiny_mpt import REPLIT, TinyMptShape, make_mpt_config, make_tiny_mpt_weights, write_tiny_mpt

FLOAT32 = EngineRecipe(make_toolchain("ctranslate2", "hotstart-mpt"), dtype="float32", quantization="float32")
INT8 = replace(FLOAT32, quantization="int8")


def make_engine(checkpoint: SafetensorsFolder, folder: Path, recipe: EngineRecipe = FLOAT32) -> Path:
    folder.mkdir(exist_ok=True)
    CTranslate2().convert(checkpoint, recipe, folder, lambda share: None)
    return folder


def logits_of(engine: Path, ids: list[int], compute_type: str = "default") -> np.ndarray:
    generator = ctranslate2.Generator(str(engine), compute_type=compute_type, intra_threads=1)
    return np.asarray(generator.forward_batch([ids]))[0]


def random_ids(seed: int, length: int, vocab: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab, length)]


@st.composite
def tiny_shapes(draw: st.DrawFn) -> TinyMptShape:
    """Heads that are powers of two or not; keys of their own, shared by some, by all."""
    heads = draw(st.integers(1, 13))
    kv_heads = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    return TinyMptShape(
        layers=draw(st.integers(1, 3)),
        width=heads * draw(st.sampled_from([4, 8, 20])),
        heads=heads,
        kv_heads=kv_heads,
        vocab=draw(st.sampled_from([300, 333])),
        expansion=draw(st.integers(1, 4)),
        bias=draw(st.booleans()),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(shape=tiny_shapes(), seed=st.integers(0, 2**16), length=st.integers(1, 70))
def test_float32_engine_computes_the_reference(shape: TinyMptShape, seed: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as parent:
        checkpoint = SafetensorsFolder(write_tiny_mpt(Path(parent) / "c", shape=shape, seed=seed))
        ids = random_ids(seed, length, shape.vocab)
        weights = make_tiny_mpt_weights(shape, seed=seed)
        expected = MptReference(checkpoint.facts, weights.__getitem__).logits(ids)
        found = logits_of(make_engine(checkpoint, Path(parent) / "e"), ids)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max() + 1e-5


def test_the_epsilon_is_that_of_the_config(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_eps": 0.3}))
    checkpoint = SafetensorsFolder(folder)
    assert checkpoint.facts.norm_epsilon == 0.3
    ids = random_ids(0, 20, 512)
    np.testing.assert_allclose(
        logits_of(make_engine(checkpoint, tmp_path / "e"), ids), make_reference(checkpoint).logits(ids), atol=1e-3
    )


@pytest.mark.parametrize("shape", [TinyMptShape(), TinyMptShape(heads=6, kv_heads=3, width=96, layers=4)], ids=str)
@pytest.mark.parametrize("compute_type", ["default", "float32"])
def test_int8_engine_agrees_where_the_reference_is_sure(tmp_path: Path, shape: TinyMptShape, compute_type: str) -> None:
    for seed in range(3):
        checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / f"c{seed}", shape=shape, seed=seed))
        ids = random_ids(seed, 200, shape.vocab)
        expected = make_reference(checkpoint).logits(ids)
        found = logits_of(make_engine(checkpoint, tmp_path / f"e{seed}", INT8), ids, compute_type)
        second, first = np.sort(expected, axis=-1)[:, -2:].T
        same = found.argmax(axis=-1) == expected.argmax(axis=-1)
        sure = first - second > 0.15 * expected.std()
        assert sure.mean() > 0.4
        assert same[sure].all()
        assert same.mean() > 0.85


def test_tokens_one_by_one_are_those_of_the_whole(tmp_path: Path) -> None:
    shape = TinyMptShape(heads=6, kv_heads=2, width=48, bias=True)
    checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "c", shape=shape, seed=5))
    engine = make_engine(checkpoint, tmp_path / "e")
    names = json.loads((engine / "vocabulary.json").read_text())
    prompt = random_ids(5, 30, shape.vocab)
    generator = ctranslate2.Generator(str(engine), intra_threads=1)
    result = generator.generate_batch(
        [[names[token] for token in prompt]],
        max_length=40,
        min_length=40,
        sampling_topk=40,
        include_prompt_in_result=False,
    )
    tokens = list(result[0].sequences_ids[0])
    scores = generator.score_batch([[names[token] for token in prompt + tokens]])[0].log_probs
    logits = make_reference(checkpoint).logits(prompt + tokens)[:-1].astype(np.float64)
    exact = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    chosen = exact[np.arange(len(exact)), (prompt + tokens)[1:]]
    np.testing.assert_allclose(scores[-len(chosen) :], chosen, atol=1e-3)


def test_converting_twice_gives_the_same_bytes_and_progress_ends_at_one(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "c", shape=TinyMptShape(bias=True), shards=3))
    seen: list[float] = []
    first = make_engine(checkpoint, tmp_path / "a", INT8)
    second = tmp_path / "b"
    second.mkdir()
    CTranslate2().convert(checkpoint, INT8, second, seen.append)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) == len(expected_shapes(checkpoint.facts))


def rows_of_one_size(weights: Weights) -> Weights:
    """The largest value of every row is 4: scales are equal everywhere, weights nowhere."""
    for name, value in weights.items():
        if value.ndim == 2 and "wte" not in name:
            value[:, 0] = 4
    return weights


def layers_twice_as_large(weights: Weights) -> Weights:
    """The second layer is the first one times two: int8 weights are equal, scales are not."""
    for name in weights:
        if "blocks.1." in name:
            weights[name] = weights[name.replace("blocks.1.", "blocks.0.")] * np.float32(2)
    return weights


def layers_all_alike(weights: Weights) -> Weights:
    """A network that was made deeper with copies of its layers."""
    for name in weights:
        if "blocks" in name:
            weights[name] = weights["transformer.blocks.0." + name.split(".", 3)[3]]
    return weights


@pytest.mark.parametrize("change", [rows_of_one_size, layers_twice_as_large, layers_all_alike])
@pytest.mark.parametrize("compute_type", ["default", "float32"])
def test_tensors_that_are_equal_by_chance_or_by_intent_load(
    tmp_path: Path, change: Callable[[Weights], Weights], compute_type: str
) -> None:
    shape = TinyMptShape(layers=11, bias=True)
    weights = change(make_tiny_mpt_weights(shape))
    checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "c", shape=shape, weights=weights))
    ids = random_ids(3, 50, shape.vocab)
    expected = make_reference(checkpoint).logits(ids)
    for recipe, least in ((FLOAT32, 0.99999), (INT8, 0.97)):
        engine = make_engine(checkpoint, tmp_path / recipe.quantization, recipe)
        found = logits_of(engine, ids, compute_type)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > least


def inspect_folder(tmp_path: Path, runtime: str) -> Prepared:
    """What the inspection of ``tmp_path / "c"`` finds."""
    target = tmp_path / runtime
    target.mkdir()
    heard: list[int] = []
    return prepare(
        FolderSource(FolderPlace("file:///c", tmp_path / "c", tmp_path)),
        target,
        ServingOptions(max_input_tokens=96, max_new_tokens=24),
        on_choice=heard.append,
        on_bytes=heard.append,
        heads_only=True,
        runtime=runtime,
    )


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "named"),
        [
            (TinyMptShape(clip_qkv=6.0), "clip_qkv 6"),
            (TinyMptShape(alibi_bias_max=16), "alibi_bias_max 16"),
        ],
        ids=["clip", "slopes"],
    )
    def test_what_ctranslate2_has_not_is_refused_by_name(self, tmp_path: Path, shape: TinyMptShape, named: str) -> None:
        checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "c", shape=shape))
        with pytest.raises(Terminal, match=f"{named}.*tensorrt_llm") as failure:
            make_engine(checkpoint, tmp_path / "e")
        assert failure.value.reason is Reason.UNSUPPORTED_ARCHITECTURE
        assert not list((tmp_path / "e").iterdir())
        with pytest.raises(Terminal, match=f"{named}.*tensorrt_llm"):
            inspect_folder(tmp_path, "ctranslate2")
        assert inspect_folder(tmp_path, "tensorrt_llm").checkpoint.facts == checkpoint.facts

    @pytest.mark.parametrize(
        "shape", [TinyMptShape(clip_qkv=0.5), TinyMptShape(alibi_bias_max=16)], ids=["clip", "slopes"]
    )
    def test_and_rightly_so_for_the_engine_would_be_another_network(
        self, tmp_path: Path, shape: TinyMptShape, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ctranslate2_mpt, "check_mpt", lambda facts: None)
        checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "c", shape=shape))
        ids = random_ids(0, 60, shape.vocab)
        found, expected = (
            logits_of(make_engine(checkpoint, tmp_path / "e"), ids),
            make_reference(checkpoint).logits(ids),
        )
        assert np.abs(found - expected).max() > 1

    def test_a_recipe_with_the_converter_of_another_network_is_refused(self, tmp_path: Path) -> None:
        checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "c"))
        with pytest.raises(Terminal, match=r"hotstart-llama.*MPTForCausalLM takes hotstart-mpt") as failure:
            make_engine(checkpoint, tmp_path / "e", replace(FLOAT32, toolchain=CTRANSLATE2_TOOLCHAIN))
        assert failure.value.reason is Reason.UNSUPPORTED_RECIPE


def test_the_converter_is_in_the_key() -> None:
    llama = replace(INT8, toolchain=CTRANSLATE2_TOOLCHAIN)
    assert make_key(key_inputs("3c" * 32, INT8)) != make_key(key_inputs("3c" * 32, llama))
    assert CTranslate2().toolchain("hotstart-mpt") == INT8.toolchain
    assert CTranslate2().toolchain("hotstart-llama") == CTRANSLATE2_TOOLCHAIN


class TestReplit:
    """replit-code-v1_5-3b: its config.json whole, its layers fewer, so that no test writes 3.3 billion weights."""

    def test_its_config_makes_its_specification(self) -> None:
        facts = make_mpt_facts(make_mpt_config(REPLIT))
        assert (facts.hidden, facts.heads, facts.kv_heads, facts.layers) == (3072, 24, 8, 32)
        assert (facts.vocab, facts.context_length, facts.alibi_bias_max) == (32768, 4096, 8)
        spec = make_mpt_spec(facts)
        assert len(spec.decoder.layer) == 32
        assert spec.decoder.num_heads == 24
        assert spec.decoder.alibi
        assert {int(layer.self_attention.num_heads_kv) for layer in spec.decoder.layer} == {8}

    def test_one_layer_of_its_width_is_filled_and_runs(self, tmp_path: Path) -> None:
        facts = replace(make_mpt_facts(make_mpt_config(REPLIT)), layers=1)
        checkpoint = FullWidth(facts)
        spec = make_mpt_spec(facts)
        writer = WeightWriter(checkpoint, True, lambda share: None)
        ctranslate2_mpt.fill_mpt_spec(spec, facts, writer)
        layer = spec.decoder.layer[0]
        shapes = {
            "embeddings": (spec.decoder.embeddings, (32768, 3072)),
            "queries, keys, values": (layer.self_attention.linear[0], (3072 + 2 * 8 * 128, 3072)),
            "output": (layer.self_attention.linear[1], (3072, 3072)),
            "up": (layer.ffn.linear_0, (12288, 3072)),
            "down": (layer.ffn.linear_1, (3072, 12288)),
        }
        for name, (linear, shape) in shapes.items():
            assert linear.weight.shape == shape, name
            assert linear.weight.dtype == np.int8, name
            assert linear.weight_scale.shape == shape[:1], name
        for norm in (spec.decoder.layer_norm, layer.self_attention.layer_norm, layer.ffn.layer_norm):
            assert norm.gamma.shape == norm.beta.shape == (3072,)
            assert not norm.beta.any()
        spec.register_vocabulary([f"<{token}>" for token in range(facts.vocab)])
        spec.validate()
        writer.alias_duplicates(spec)
        spec.save(str(tmp_path))
        ids = random_ids(1, 24, facts.vocab)
        expected = MptReference(facts, checkpoint.tensor).logits(ids)
        found = logits_of(tmp_path, ids)
        assert found.shape == (24, 32768)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


class FullWidth:
    """A checkpoint of random weights that are made when they are asked for."""

    def __init__(self, facts: MptFacts) -> None:
        self.facts = facts

    def tensor(self, name: str) -> np.ndarray:
        shape = expected_shapes(self.facts)[name]
        random = np.random.default_rng(sum(name.encode()))
        value = random.standard_normal(shape, dtype=np.float32)
        return value / np.float32(np.sqrt(shape[-1])) if len(shape) == 2 else 1 + np.float32(0.1) * value


def lively_weights() -> Weights:
    """Layers that outweigh the embedding, else a tied network of random weights says the last token again."""
    scales = {"out_proj": 8, "down_proj": 3}
    return {
        name: value * np.float32(scales.get(name.split(".")[-2], 1)) for name, value in make_tiny_mpt_weights().items()
    }


@dataclass
class Heard:
    """What a client hears."""

    text: str = ""
    details: str = ""

    def send(self, text: str) -> None:
        self.text += text

    def finish(self, text: str, details: str) -> None:
        self.text, self.details = self.text + text, details

    def fail(self, error: CompletionError) -> None:
        raise error

    def gone(self) -> bool:
        return False


class TestCompletion:
    PROMPT = "def balance(customer):\n    return "
    SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=24)

    def complete(self, source: Path, engine_folder: Path, recipe: EngineRecipe) -> tuple[list[int], list[int], Heard]:
        """Files -> checkpoint -> engine, as the builder does; prompt -> tokens -> engine -> text, as Triton does."""
        files = tuple(ListedFile(path.name, path.stat().st_size) for path in sorted(source.iterdir()))
        checkpoint = open_checkpoint(source, choose_files(files, where=str(source)))
        check_checkpoint(checkpoint, self.SERVING)
        assert isinstance(checkpoint, SafetensorsFolder)
        make_engine(checkpoint, engine_folder, recipe)
        facts = read_facts(engine_folder)
        tokenizer = Tokenizer.from_file(str(engine_folder / "tokenizer.json"))
        prepared = make_formatter(tokenizer, self.SERVING, facts.bos_id).prepare(self.PROMPT, "")
        tokens: list[int] = []
        stream = DecodeStream(ids=list(prepared.tokens), skip_special_tokens=True)

        def next_text(token: int) -> str | None:
            tokens.append(token)
            return stream.step(tokenizer, token)

        answer = Heard()
        CompletionJob(
            id="1",
            prepared=prepared,
            options=RequestOptions(max_tokens=24),
            rules=StopRules(StopMode.NONE, (), base_indent(self.PROMPT)),
            engine=CTranslate2Engine(engine_folder, facts, inter_threads=1, intra_threads=1),
            next_text=next_text,
            answer=answer,
            received=0.0,
            on_end=lambda ended: None,
        ).run(lambda: False)
        return list(prepared.tokens), tokens, answer

    @pytest.mark.parametrize("recipe", [FLOAT32, INT8], ids=["float32", "int8"])
    def test_a_prompt_is_completed(self, tmp_path: Path, recipe: EngineRecipe) -> None:
        source = write_tiny_mpt(tmp_path / "c", weights=lively_weights(), dtype="bfloat16", shards=2)
        prompt, tokens, heard = self.complete(source, tmp_path / "e", recipe)
        engine_json = json.loads((tmp_path / "e" / "engine.json").read_text())
        assert engine_json["architecture"] == "MPTForCausalLM"
        assert engine_json["context_length"] == 256
        assert len(tokens) == 24
        assert len(set(tokens)) > 4
        assert heard.text
        assert json.loads(heard.details)["finish_reason"] == "length"
        logits = make_reference(SafetensorsFolder(source)).logits(prompt + tokens)[len(prompt) - 1 : -1]
        second, first = np.sort(logits, axis=-1)[:, -2:].T
        sure = first - second > (1e-2 if recipe is FLOAT32 else 0.3 * logits.std())
        assert sure.any()
        assert (logits.argmax(axis=-1) == tokens)[sure].all()

    def test_it_ends_at_the_checkpoints_own_end(self, tmp_path: Path) -> None:
        source = write_tiny_mpt(tmp_path / "c", weights=lively_weights())
        _, tokens, _ = self.complete(source, tmp_path / "long", FLOAT32)
        end = next(i for i, token in enumerate(tokens) if i > 0 and token not in tokens[:i])
        (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, tokens[end]]}))
        _, short, heard = self.complete(source, tmp_path / "short", FLOAT32)
        assert short == tokens[:end]
        assert json.loads(heard.details)["finish_reason"] == "stop"
