"""Architectures of transformers, small and with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {**_GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 64}
_GPT |= {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
_SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
}
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
_WORDS: dict[str, dict[str, Any]] = {
    "bert": _COMMON,
    "roberta": _COMMON,
    "electra": {**_COMMON, "embedding_size": 16},
    "albert": {**_COMMON, "embedding_size": 16},
    "mpnet": _COMMON,
    "deberta-v2": {**_COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "xlnet": {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "modernbert": _COMMON,
    "roformer": _COMMON,
    "squeezebert": {**_COMMON, "embedding_size": 32},
    "gpt2": _GPT,
    "openai-gpt": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "codegen": {**_GPT, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 48,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 32,
        "window_size": 4,
    },
    "gpt_neox": _COMMON,
    "opt": {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "falcon": _COMMON,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": _GROUPED,
    "gemma3_text": _GROUPED,
    "olmo2": _GROUPED,
    "cohere": _GROUPED,
    "granite": _GROUPED,
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED,
    "smollm3": _GROUPED,
    "mixtral": _EXPERTS,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 48},
    "granitemoe": _EXPERTS,
    "deepseek_v3": {
        **_EXPERTS,
        "head_dim": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "chunk_size": 4,
    },
    "rwkv": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "longformer": {**_COMMON, "attention_window": 4, "max_position_embeddings": 64},
}
_PAIRS: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "umt5": _T5,
    "bart": _SEQ2SEQ,
    "pegasus": _SEQ2SEQ,
    "m2m_100": _SEQ2SEQ,
}
_IMAGE = {**_COMMON, "image_size": 32, "patch_size": 8}
_STAGES = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
_PICTURES: dict[str, dict[str, Any]] = {
    "vit": _IMAGE,
    "deit": _IMAGE,
    "beit": {**_IMAGE, "use_relative_position_bias": True},
    "data2vec-vision": {**_IMAGE, "use_shared_relative_position_bias": True},
    "dinov2": _IMAGE,
    "dinov2_with_registers": _IMAGE,
    "dinov3_vit": {**_IMAGE, "num_register_tokens": 2},
    "swin": _STAGES,
    "swinv2": _STAGES,
    "convnext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    "segformer": {
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "decoder_hidden_size": 16,
        "sr_ratios": [2, 2, 1, 1],
    },
    "siglip_vision_model": _IMAGE,
    "clip_vision_model": _IMAGE,
    "ijepa": _IMAGE,
    "vit_mae": {**_IMAGE, "mask_ratio": 0.0},
    "hiera": {
        "embed_dim": 16,
        "image_size": [32, 32],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "masked_unit_size": [4, 4],
        "query_stride": [2, 2],
        "num_query_pool": 1,
    },
}
_CONV = {"conv_dim": (16, 16), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
_CONV |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0}
_TWO_TOWERS = {"text_config": dict(_COMMON), "vision_config": dict(_IMAGE)}
_OTHERS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "wav2vec2": ({**_COMMON, **_CONV}, lambda: {"input_values": torch.randn(2, 400)}),
    "hubert": ({**_COMMON, **_CONV}, lambda: {"input_values": torch.randn(2, 400)}),
    "whisper": (
        {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32, "pad_token_id": 0},
        lambda: {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": _words()},
    ),
    "clip": ({**_TWO_TOWERS, "projection_dim": 16}, lambda: _words_and_picture()),
    "siglip": (_TWO_TOWERS, lambda: _words_and_picture()),
    "clipseg": ({**_TWO_TOWERS, "projection_dim": 16}, lambda: _words_and_picture()),
    "vilt": (_IMAGE, lambda: _words_and_picture()),
    "videomae": (
        {**_IMAGE, "num_frames": 4, "tubelet_size": 2},
        lambda: {"pixel_values": torch.randn(2, 4, 3, 32, 32)},
    ),
    "perceiver": (
        {**_COMMON, "num_latents": 4, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 1},
        lambda: {"inputs": torch.randn(2, 6, 32)},
    ),
}


def builders() -> dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]:
    """Return what builds each model and the arguments of its forward, by its name."""
    cases: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
        **{kind: (settings, _word_inputs) for kind, settings in _WORDS.items()},
        **{kind: (settings, _pair_inputs) for kind, settings in _PAIRS.items()},
        **{kind: (settings, _picture) for kind, settings in _PICTURES.items()},
        **_OTHERS,
    }
    return {f"transformers {kind}": partial(_build, kind, *case) for kind, case in cases.items()}


def _build(
    kind: str, settings: dict[str, Any], inputs: Callable[[], dict[str, Tensor]]
) -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.AutoConfig.for_model(kind, **settings)
    config.use_cache = False  # a cache cannot be exported
    return transformers.AutoModel.from_config(config), inputs()


def _word_inputs() -> dict[str, Tensor]:
    return {"input_ids": _words()}


def _pair_inputs() -> dict[str, Tensor]:
    return {"input_ids": _words(), "decoder_input_ids": _words()}


def _picture() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def _words() -> Tensor:
    return torch.randint(3, 64, (2, 8))


def _words_and_picture() -> dict[str, Tensor]:
    return {"input_ids": _words(), "pixel_values": torch.randn(2, 3, 32, 32)}
