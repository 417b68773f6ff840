"""The axis tables of the decoder families: Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 (text), Phi-3, GPT-2.

What all but GPT-2 share: norms before the parts of a block, a gated feed-forward part, and query heads that share
key-value heads, with which they are kept or cut. The size of a head, positions by rotation and norms inside a head
never change; sliding windows stay with the layers that have them.

Gemma multiplies its embeddings by the root of the hidden size, which a standard config of a smaller hidden size
makes smaller: a slice starts with embeddings that count a little less than in the full model.
"""

from __future__ import annotations

from dataclasses import replace

from ireko_trainer.mlfs.axes import (
    Architecture,
    Axis,
    ConfigNames,
    conv1d,
    embedding,
    linear,
    norm,
)

HIDDEN, ATTENTION, KEY_VALUE = Axis.HIDDEN, Axis.ATTENTION, Axis.KEY_VALUE
INTERMEDIATE, FIXED = Axis.INTERMEDIATE, Axis.FIXED

_ATTENTION = (
    *linear("self_attn.q_proj", out=ATTENTION, into=HIDDEN),
    *linear("self_attn.k_proj", out=KEY_VALUE, into=HIDDEN),
    *linear("self_attn.v_proj", out=KEY_VALUE, into=HIDDEN),
    *linear("self_attn.o_proj", out=HIDDEN, into=ATTENTION),
)
_HEAD_NORMS = (*norm("self_attn.q_norm", over=FIXED), *norm("self_attn.k_norm", over=FIXED))
_GATED = (
    *linear("mlp.gate_proj", out=INTERMEDIATE, into=HIDDEN),
    *linear("mlp.up_proj", out=INTERMEDIATE, into=HIDDEN),
    *linear("mlp.down_proj", out=HIDDEN, into=INTERMEDIATE),
)
_NORMS = (*norm("input_layernorm"), *norm("post_attention_layernorm"))

LLAMA = Architecture(
    family="llama",
    base_prefix="model.",
    layer_prefix="layers.",
    config=ConfigNames(
        hidden="hidden_size",
        heads="num_attention_heads",
        intermediate="intermediate_size",
        layers="num_hidden_layers",
        kv_heads="num_key_value_heads",
        head_size="head_dim",
    ),
    embeddings=embedding("embed_tokens"),
    block=(*_ATTENTION, *_GATED, *_NORMS),
    head=(*linear("lm_head", out=FIXED, into=HIDDEN), *linear("score", out=FIXED, into=HIDDEN)),
    attention_output="self_attn.o_proj",
    intermediate_output="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    model_inputs=("input_ids", "attention_mask"),
    final_norm="norm",
    options={"use_cache": False},
)

MISTRAL = replace(LLAMA, family="mistral")

QWEN2 = replace(LLAMA, family="qwen2")

QWEN3 = replace(LLAMA, family="qwen3", block=(*LLAMA.block, *_HEAD_NORMS))

GEMMA2 = replace(
    LLAMA,
    family="gemma2",
    block=(*LLAMA.block, *norm("pre_feedforward_layernorm"), *norm("post_feedforward_layernorm")),
    # What is read from the stream; the norms behind attention and feed-forward part are added to it.
    norms=("input_layernorm", "pre_feedforward_layernorm"),
)

GEMMA3 = replace(GEMMA2, family="gemma3_text", block=(*GEMMA2.block, *_HEAD_NORMS))

PHI3 = replace(
    LLAMA,
    family="phi3",
    # Its config derives the head size, and checks the lengths of its rotation factors against it.
    config=replace(LLAMA.config, head_size=None),
    block=(
        *linear("self_attn.qkv_proj", out=(ATTENTION, KEY_VALUE, KEY_VALUE), into=HIDDEN),
        *linear("self_attn.o_proj", out=HIDDEN, into=ATTENTION),
        *linear("mlp.gate_up_proj", out=(INTERMEDIATE, INTERMEDIATE), into=HIDDEN),
        *linear("mlp.down_proj", out=HIDDEN, into=INTERMEDIATE),
        *_NORMS,
    ),
)

GPT2 = Architecture(
    family="gpt2",
    base_prefix="transformer.",
    layer_prefix="h.",
    config=ConfigNames(hidden="n_embd", heads="n_head", intermediate="n_inner", layers="n_layer"),
    embeddings=(*embedding("wte"), *embedding("wpe")),
    block=(
        *norm("ln_1"),
        *conv1d("attn.c_attn", out=(ATTENTION, ATTENTION, ATTENTION), into=HIDDEN),
        *conv1d("attn.c_proj", out=HIDDEN, into=ATTENTION),
        *norm("ln_2"),
        *conv1d("mlp.c_fc", out=INTERMEDIATE, into=HIDDEN),
        *conv1d("mlp.c_proj", out=HIDDEN, into=INTERMEDIATE),
    ),
    head=LLAMA.head,
    attention_output="attn.c_proj",
    intermediate_output="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    model_inputs=("input_ids", "attention_mask"),
    final_norm="ln_f",
    options={"use_cache": False},
)

DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT2)
