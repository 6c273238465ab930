"""Names of blocks and namespaces: equal where bytes may be shared, different everywhere else."""

import json
import re
import types

import numpy as np
import pytest

import ucm
from ucm import hashing
from ucm.integration.vllm import engine
from ucm.integration.vllm import namespace as names
from ucm.integration.vllm.engine import Adapters, Apart, Rehash

TOKENS = [[0, 1, 23, 24], [255, 256, 65536, 151643]]
EXTRA = [None, (("lora", "a", "/p"), ("cache_salt", "x"))]

# What vLLM 0.32's hash_block_tokens gives for these.
VECTORS = {
    "sha256": [
        "11f5243899c2fa6144f8486261cc7a2e4b040f391cde28ec9d8c990b3cfc4b64",
        "4d8b00723ebb16e84eea3f61d1feed0f420bb04c475c754cb34c6a94392001df",
    ],
    "sha256_cbor": [
        "9e85762a91def2a8c95633b296ff858a1304ca43d1c6d5cf5ac75c989d90ee6c",
        "5d80340f8c87f1a40188e7bdac812e124f3e6820895ef3f5eeac17c2d6c81072",
    ],
}


@pytest.mark.parametrize("algorithm", VECTORS)
def test_blocks_are_hashed_as_vllm_does(algorithm):
    blocks = list(zip(TOKENS, EXTRA, strict=True))
    hashes = hashing.chain(blocks, hashing.ALGORITHMS[algorithm])
    assert [h.hex() for h in hashes] == VECTORS[algorithm]


def test_cbor_is_canonical():
    value = (None, True, False, -1, -300, 2**40, b"\0", "ä", (1,) * 30)
    assert hashing._cbor(value).hex() == (
        "89f6f5f42039012b1b000001000000000041" + "00" + "62c3a4" + "981e" + "01" * 30
    )


def test_ids_are_sixteen_bytes_for_each_full_block():
    ids = ucm.block_ids(range(70), 32, "space")
    assert [len(i) for i in ids] == [16, 16]
    assert ucm.block_ids(range(31), 32, "space") == []
    assert ucm.block_ids(range(64), 32, "space") == ids


def test_an_id_stands_for_everything_before_it():
    one = ucm.block_ids([1, 2, 3, 4], 2, "space")
    two = ucm.block_ids([9, 2, 3, 4], 2, "space")
    assert one[1] != two[1]


def test_any_kind_of_integers_will_do():
    assert ucm.block_ids(np.arange(8), 4, "space") == ucm.block_ids(list(range(8)), 4, "space")


@pytest.mark.parametrize(
    "other",
    [
        {"namespace": "other"},
        {"rank": 1},
        {"part": "heads0of2"},
        {"algorithm": "sha256_cbor"},
        {"cache_salt": "tenant"},
        {"lora": ("adapter", "/path")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_ids_differ_with(other):
    usual = {"namespace": "space"}
    a = ucm.block_ids(range(8), 4, **usual)
    b = ucm.block_ids(range(8), 4, **{**usual, **other})
    assert not set(a) & set(b)


def test_wrong_arguments_are_named():
    with pytest.raises(ucm.InvalidError, match="algorithm: 'xxhash' is not one of sha256"):
        ucm.block_ids([1], 1, "space", algorithm="xxhash")
    with pytest.raises(ucm.InvalidError, match="block_tokens: 0"):
        ucm.block_ids([1], 0, "space")


def test_ids_are_the_same_in_every_process(run_python):
    code = "import ucm; print([i.hex() for i in ucm.block_ids(range(9), 4, 'space')])"
    here = str([i.hex() for i in ucm.block_ids(range(9), 4, "space")])
    assert {run_python(code, PYTHONHASHSEED=seed).strip() for seed in "012"} == {here}


def test_a_namespace_is_a_file_name_that_shows_the_model():
    for model in ("Qwen/Qwen2.5-14B-Instruct", "/models/a b/ü", "x" * 200, "..", "/", ""):
        name = names.namespace(model, {})
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name), name
    assert names.namespace("Qwen/Qwen2.5-14B-Instruct", {}).startswith("Qwen2.5-14B-Instruct-")


def test_a_namespace_changes_with_every_part():
    made = {names.namespace("m", parts) for parts in ({}, {"a": 1}, {"a": 2}, {"a": [1]})}
    assert len(made) == 4
    assert names.namespace("a/m", {}) != names.namespace("b/m", {})


def test_the_weights_of_a_folder_are_known_by_samples(tmp_path):
    def identity():
        return json.dumps(names.weights_identity(str(tmp_path)))

    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(1_000_000))
    before = identity()
    assert identity() == before
    weights.write_bytes(bytes([1]) * 1_000_000)  # trained further: the same size
    trained = identity()
    (tmp_path / "config.json").write_text("{ }")
    configured = identity()
    (tmp_path / "preprocessor_config.json").write_text('{"max_pixels": 100352}')
    assert len({before, trained, configured, identity()}) == 4
    assert names.weights_identity("Qwen/Qwen2.5-14B") is None


def test_one_tensor_of_many_that_was_trained_is_seen(tmp_path):
    count, size = 400, 100_000
    header = json.dumps(
        {f"layer.{i}": {"data_offsets": [i * size, (i + 1) * size]} for i in range(count)}
    ).encode()
    weights = tmp_path / "model.safetensors"
    head = len(header).to_bytes(8, "little") + header
    seen = set()
    for trained in (None, 0, 57, count - 1):
        data = bytearray(count * size)
        if trained is not None:
            data[trained * size : (trained + 1) * size] = b"\1" * size
        weights.write_bytes(head + data)
        seen.add(json.dumps(names.weights_identity(str(tmp_path))))
    assert len(seen) == 4


def test_a_folder_of_weights_may_be_mounted_anywhere(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "llama").mkdir(parents=True)
    told = {names.model_name(str(tmp_path / place / "llama")) for place in ("here", "there/")}
    assert told == {"llama"}
    assert names.model_name("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"


def engine_config(**changed):
    values = {"model": "org/m", "revision": None, "dtype": "torch.bfloat16", "cache_dtype": "auto"}
    values |= {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "theta": 10000.0}
    values |= {"data_parallel_rank": 0, "max_model_len": 4096, "rope": {}, **changed}
    v = types.SimpleNamespace(**values)
    hf = types.SimpleNamespace(
        to_dict=lambda: {"rope_theta": v.theta, "transformers_version": id(v)},
        rope_parameters=v.rope,
    )
    more = (
        *("architectures", "quantization_config", "model_impl", "original_max_model_len"),
        "multimodal_config",
    )
    return types.SimpleNamespace(
        model_config=types.SimpleNamespace(
            model=v.model,
            revision=v.revision,
            dtype=v.dtype,
            hf_config=hf,
            quantization=None,
            max_model_len=v.max_model_len,
            override_generation_config={},
            try_get_generation_config=lambda: values.get("generation", {}),
            **{key: values[key] for key in more if key in values},
        ),
        speculative_config=values.get("speculative_config"),
        cache_config=types.SimpleNamespace(cache_dtype=v.cache_dtype),
        parallel_config=v,
        load_config=types.SimpleNamespace(load_format="auto"),
    )


def name(**changed):
    config = engine_config(**changed)
    return names.namespace(config.model_config.model, names.model_parts(config))


def media(**values):
    return types.SimpleNamespace(get_video_pruning_spec=lambda: None, **values)


def drafted(model):
    return types.SimpleNamespace(
        draft_model_config=types.SimpleNamespace(model=model, revision=None)
    )


def test_whatever_changes_the_bytes_changes_the_namespace():
    assert name() == name()
    changes = [
        {"revision": "main"},
        {"dtype": "torch.float16"},
        {"cache_dtype": "fp8"},
        {"theta": 5e5},
        {"decode_context_parallel_size": 2},
        {"quantization_config": {"linear": "fp8_per_tensor_dynamic"}},
        {"model_impl": "transformers"},
        {"speculative_config": drafted("org/draft")},
        {"speculative_config": drafted("org/better")},
        {"multimodal_config": media(mm_processor_kwargs={"max_pixels": 100352})},
        {"multimodal_config": media(mm_processor_kwargs={"max_pixels": 200704})},
        {"multimodal_config": media(media_io_kwargs={"video": {"num_frames": 8}})},
        {"multimodal_config": media(mm_encoder_attn_dtype="fp8")},
    ]
    assert len({name(), *(name(**change) for change in changes)}) == len(changes) + 1
    assert name(multimodal_config=media(mm_processor_kwargs=None)) == name()
    assert name(speculative_config=drafted("org/m")) == name()  # it has layers for that itself


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("model", "same", "other"),
    [
        ({"rope": {"rope_type": "yarn"}}, [2048, 65536], []),
        ({"rope": {"full": {"rope_type": "default"}, "local": {}}}, [2048, 65536], []),
        ({"rope": LONGROPE}, [2048, 4096], [4097, 131072]),
        ({"rope": {"full": LONGROPE, "local": {"rope_type": "default"}}}, [2048, 4096], [8192]),
        ({"architectures": ["Llama4ForCausalLM"]}, [2048, 32768], [32769, 131072]),
    ],
    ids=["yarn", "two kinds", "longrope", "one is longrope", "llama4"],
)
def test_engines_that_allow_other_lengths_share_blocks_up_to_where_keys_are_turned_otherwise(
    model, same, other
):
    short, long = ({name(**model, max_model_len=n) for n in lengths} for lengths in (same, other))
    assert (len(short), len(long)) == (1, bool(other))
    assert not short & long


def test_an_embedding_of_which_nothing_is_known_keeps_lengths_apart():
    for rope in ({"rope_type": "dynamic"}, {"rope_type": "new"}, {"rope_type": "longrope"}):
        assert name(rope=rope, max_model_len=2048) != name(rope=rope, max_model_len=4096)


def test_a_length_that_was_fitted_to_memory_later_has_decided_nothing():
    one, two = (
        name(rope=LONGROPE, max_model_len=n, original_max_model_len=-1) for n in (4096, 8192)
    )
    assert one == two


def test_a_generation_config_decides_before_the_length_does():
    llama = {"architectures": ["Llama4ForConditionalGeneration"], "max_model_len": 2048}
    tuned = name(**llama, generation={"attn_temperature_tuning": True})
    assert tuned == name(**{**llama, "max_model_len": 65536})
    assert tuned != name(**llama)


def test_the_processes_of_one_engine_share_a_unique_id_and_others_do_not():
    options = {"store_pipeline": "Cache|Posix", "storage_backends": "/a"}

    def make(space="s", rank=0, role="kv_both", **more):
        return names.unique_id(space, rank, role, {**options, **more})

    assert make() == make(io_direct=True)
    others = [make(rank=1), make(space="t"), make(role="kv_producer"), make(storage_backends="/b")]
    assert len({make(), *others}) == 5


def test_replicas_are_counted_where_the_plain_rank_is_reset():
    assert names.data_parallel_rank(engine_config(data_parallel_rank=3)) == 3
    assert names.data_parallel_rank(engine_config(data_parallel_index=2)) == 2


class Request:
    """As much of an engine's request as hashing looks at."""

    def __init__(self, tokens):
        self.all_token_ids = tokens

    @property
    def num_tokens(self):
        return len(self.all_token_ids)


def test_requests_that_the_engine_hashes_from_another_seed_are_hashed_again():
    asked = []

    def extra_keys(request, start, end, media):
        asked.append((start, end, media))
        return ((("cache_salt", "x"),) if start == 0 else None), media + 1

    rehash, request = Rehash(4, hashing.sha256, extra_keys), Request(list(range(9)))
    first = list(rehash(request))
    request.all_token_ids += [9, 10, 11]
    again = rehash(request)
    assert again[:2] == first
    assert asked == [(0, 4, 0), (4, 8, 1), (8, 12, 2)]  # each block once, going on where it was
    named = hashing.Namer("space", "tp0")(again)
    assert named == ucm.block_ids(range(12), 4, "space", cache_salt="x")


def session(tokens):
    """A request whose tokens may be taken back, as a streaming session's are."""

    class Request:
        def __init__(self):
            self.all_token_ids = list(tokens)

        @property
        def num_tokens(self):
            return len(self.all_token_ids)

    return Request()


def fresh():
    return Rehash(4, hashing.sha256, lambda request, start, end, media: (None, media))


def test_tokens_that_a_session_takes_back_are_hashed_again():
    request, again = session(range(8)), fresh()
    before = list(again(request))
    request.all_token_ids[7:] = [99, 100, 101, 102, 103]
    assert list(again(request)) == list(fresh()(request))
    assert again(request)[0] == before[0]
    assert again(request)[1] != before[1]


def test_after_a_reset_hashes_are_others_and_follow_the_engine_s():
    plain = {"hashes": [b"a", b"b"]}
    apart, request = Apart(lambda request: plain["hashes"]), session(())
    assert apart(request) == [b"a", b"b"]
    apart.reset()
    first = list(apart(request))
    assert not set(first) & {b"a", b"b"}
    plain["hashes"] = [b"a", b"c", b"d"]
    second = list(apart(request))
    assert (second[0], len(second)) == (first[0], 3)
    assert second[1] != first[1]


def adapted(path, **more):
    fields = {"lora_name": "a", "lora_int_id": 1, "lora_path": str(path), "load_inplace": False}
    request = session(range(8))
    request.lora_request = types.SimpleNamespace(**{**fields, **more})
    return request


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_an_adapter_that_was_trained_further_in_its_place_is_another(tmp_path, suffix):
    weights = (tmp_path / "adapter_model").with_suffix(suffix)

    def hashes(in_process=None, **more):
        apart = in_process or Apart(lambda request: [b"a", b"b"], Adapters())
        return apart(adapted(tmp_path, **more))

    def ids():
        return ucm.block_ids(range(8), 4, "space", lora=("a", str(tmp_path)))

    weights.write_bytes(bytes(10_000))
    running = Apart(lambda request: [b"a", b"b"], Adapters())
    before, ids_before = hashes(running), ids()
    assert before == hashes()  # in another process
    weights.write_bytes(bytes([1]) * 10_000)
    assert not set(hashes(running)) & set(before)  # what it computes with is one or the other
    assert not set(hashes(running)) & set(hashes(running))
    trained = hashes(running, load_inplace=True)
    assert not set(trained) & set(before)
    assert hashes() == hashes(running) == trained
    assert not set(ids()) & set(ids_before)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert not set(hashes()) & {*before, *hashes(running), *trained}


def test_an_adapter_is_as_it_was_if_its_files_say_the_same_or_are_gone(tmp_path):
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(bytes(100))
    apart = Apart(lambda request: [b"a"], Adapters())
    before = apart(adapted(tmp_path))
    weights.replace(tmp_path / "aside")
    assert apart(adapted(tmp_path)) == before
    weights.write_bytes(bytes(100))
    assert apart(adapted(tmp_path)) == before
    weights.write_bytes(bytes(99))
    assert apart(adapted(tmp_path)) != before
    weights.write_bytes(bytes(100))  # who knows what was loaded meanwhile
    assert apart(adapted(tmp_path)) != before


def test_what_an_adapter_newer_than_the_engine_stores_is_the_engine_s_own(tmp_path, monkeypatch):
    """It may have been loaded before its files were changed."""
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(100))
    later = Apart(lambda request: [b"a"], Adapters())(adapted(tmp_path))
    monkeypatch.setattr(engine, "time", types.SimpleNamespace(time_ns=lambda: 0))
    one, two = (Apart(lambda request: [b"a"], Adapters()) for _ in range(2))
    assert len({each(adapted(tmp_path))[0] for each in (one, one, two)} | set(later)) == 3
    assert one(adapted(tmp_path, load_inplace=True)) == later  # each step loads it


def test_an_adapter_is_looked_for_where_the_engine_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(100))
    apart = Apart(lambda request: [b"a"], Adapters())
    assert apart(adapted("~")) == apart(adapted(tmp_path))


def test_what_an_engine_applies_of_an_adapter_tells_its_blocks_apart(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(100))

    def hashes(made, **set_here):
        usual = {"lora_dtype": "torch.bfloat16", "target_modules": None}
        config = types.SimpleNamespace(
            lora_config=types.SimpleNamespace(**{**usual, **set_here}),
            model_config=types.SimpleNamespace(dtype="torch.bfloat16"),
        )
        return tuple(Apart(lambda request: [b"a", b"b"], Adapters(config))(made))

    for path in (tmp_path, "org/adapter"):
        adapter = adapted(path)
        usual = tuple(Apart(lambda request: [b"a", b"b"], Adapters())(adapter))
        assert hashes(adapter) == hashes(adapter, lora_dtype="auto") == usual
        others = [
            {"target_modules": ["o_proj"]},
            {"target_modules": ["o_proj", "qkv_proj"]},
            {"target_modules": []},
            {"lora_dtype": "torch.float16"},
            {"enable_tower_connector_lora": True},
        ]
        assert len({usual, *(hashes(adapter, **other) for other in others)}) == len(others) + 1
        two = [hashes(adapter, target_modules=each) for each in (["a", "b"], ["b", "a"])]
        assert two[0] == two[1]
    plain = session(range(8))
    assert hashes(plain, target_modules=["o_proj"]) == (b"a", b"b")


def test_an_adapter_that_cannot_be_read_misses_until_it_can_and_that_is_said_once(tmp_path, caplog):
    weights = tmp_path / "adapter_model.safetensors"
    weights.symlink_to(tmp_path / "gone")
    apart = Apart(lambda request: [b"a", b"b"], Adapters())
    one, two = apart(adapted(tmp_path)), apart(adapted(tmp_path))
    assert not set(one) & set(two)
    assert [str(weights) in record.message for record in caplog.records] == [True]
    (tmp_path / "gone").write_bytes(bytes(100))
    assert apart(adapted(tmp_path)) == apart(adapted(tmp_path))


def test_an_adapter_that_is_no_folder_is_known_by_name_and_path():
    apart = Apart(lambda request: [b"a", b"b"], Adapters())
    assert apart(adapted("org/adapter")) == [b"a", b"b"]
