"""What is refused at the start, and what is asked of an engine's configuration."""

import types

import pytest

import ucm
from ucm.integration.vllm import engine


def config(**model):
    usual = {
        "get_sliding_window": lambda: None,
        "use_mla": False,
        "get_num_kv_heads": lambda parallel: 1,
        "get_total_num_kv_heads": lambda: 1,
    }
    return types.SimpleNamespace(
        model_config=types.SimpleNamespace(**{**usual, **model}),
        parallel_config=types.SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1),
        cache_config=types.SimpleNamespace(block_size=128),
    )


def caches(*kinds):
    """A cache configuration with groups of these kinds."""
    specs = [type(kind, (), {})() for kind in kinds]
    groups = [types.SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    return types.SimpleNamespace(kv_cache_groups=groups, hash_block_size=None)


@pytest.mark.parametrize(
    "model",
    [{"get_sliding_window": lambda: 512}, {"attention_chunk_size": 8192}, {"is_hybrid": True}],
)
def test_without_a_cache_configuration_the_model_s_says_what_is_refused(model):
    """Blocks outside a window are given up, and would be saved as what they no longer hold."""
    assert engine.check_support(config(), None) == 128
    with pytest.raises(ucm.UnsupportedError, match="only full attention"):
        engine.check_support(config(**model), None)


@pytest.mark.parametrize("kinds", [None, ["FullAttentionSpec"]], ids=["two arguments", "three"])
def test_what_vllm_itself_has_no_prefix_cache_for_is_refused(kinds):
    """Its pooling of MEAN and CLS dies of a prompt that is not computed as a whole."""
    layout = caches(*kinds) if kinds else None
    assert engine.check_support(config(is_prefix_caching_supported=True), layout) == 128
    with pytest.raises(ucm.UnsupportedError, match="no prefix cache"):
        engine.check_support(config(is_prefix_caching_supported=False), layout)


def test_attention_to_what_comes_later_is_refused():
    layout = caches("FullAttentionSpec")
    assert engine.check_support(config(), layout) == 128
    layout.kv_cache_groups[0].kv_cache_spec.non_causal = True
    with pytest.raises(ucm.UnsupportedError, match="non-causal"):
        engine.check_support(config(), layout)


@pytest.mark.parametrize("mla", [True, False])
def test_what_all_ranks_hold_alike_is_known_without_a_cache_configuration(mla, monkeypatch):
    monkeypatch.setattr(engine, "tensor_rank", lambda: 1)
    assert engine.workers(config(use_mla=mla), None).replicated == mla
    kind = "MLAAttentionSpec" if mla else "FullAttentionSpec"
    assert engine.workers(config(), caches(kind)).replicated == mla


def test_a_hybrid_model_is_refused_with_the_way_out_if_there_is_one():
    for kind in ("SlidingWindowSpec", "ChunkedLocalAttentionSpec"):
        with pytest.raises(ucm.UnsupportedError, match="--disable-hybrid-kv-cache-manager"):
            engine.check_support(config(), caches("FullAttentionSpec", kind))
    with pytest.raises(ucm.UnsupportedError) as refused:
        engine.check_support(config(), caches("FullAttentionSpec", "MambaSpec"))
    assert "--disable" not in str(refused.value)
