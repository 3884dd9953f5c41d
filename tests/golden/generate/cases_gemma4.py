"""Cases of logits.py: Gemma 4 in all that its published sizes have, and what none of them combines."""

TEXT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "global_head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 7, "pad_token_id": 0, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 20.0, "tie_word_embeddings": True,
}
KEYS_AS_VALUES = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
INPUTS = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 64}
BORROWING = {
    "num_hidden_layers": 7, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention",
                    "sliding_attention", "full_attention"],
}
EXPERTS = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 40}
VISION = {
    "model_type": "gemma4_vision", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "position_embedding_size": 16, "pooling_kernel_size": 2,
}


def text(*changes, **more):
    config = {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]} | TEXT
    for change in changes:
        config |= change
    config |= more
    return {key: value for key, value in config.items() if value is not None}


CASES = {
    "gemma4_text": text(KEYS_AS_VALUES),
    "gemma4_text_inputs": text(INPUTS, BORROWING),
    "gemma4_text_experts": text(KEYS_AS_VALUES, EXPERTS, final_logit_softcapping=None, tie_word_embeddings=False),
    "gemma4_text_everything": text(KEYS_AS_VALUES, INPUTS, BORROWING, EXPERTS, use_double_wide_mlp=False),
    "gemma4_text_per_layer": text(
        layer_types=None, global_head_dim=None, attention_bias=True, use_bidirectional_attention="vision",
        per_layer_config={"3": {"head_dim": 20, "num_key_value_heads": 4}},
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.6, "rope_theta": 500.0, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        }),
    "gemma4": {
        "model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "tie_word_embeddings": True,
        "text_config": {"model_type": "gemma4_text"} | TEXT | INPUTS | {"num_kv_shared_layers": 1}, "vision_config": VISION,
        "audio_config": None, "vocab_size": 64, "pad_token_id": 0,
        # No token of the text.
        "image_token_id": 64, "video_token_id": 65, "audio_token_id": 66, "boi_token_id": 67, "eoi_token_id": 68,
        "boa_token_id": 69, "eoa_token_index": 70,
    },
}


def seeing_ahead(config):
    """Its larger form: images' tokens see later ones, heads of the tower share keys, its linears are bounded."""
    eyes = VISION | {
        "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16, "pooling_kernel_size": 3, "use_clipped_linears": True,
        "standardize": True, "rope_parameters": {"rope_type": "axial", "rope_theta": 30.0},
    }
    text = {"model_type": "gemma4_text"} | TEXT | {"use_bidirectional_attention": "vision", "sliding_window": 5}
    return config | {"vision_config": eyes, "text_config": text}
