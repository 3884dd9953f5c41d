"""Cases of logits.py and vision.py: language models inside models that see."""
import cases_hybrid
import cases_moe

TEXT = {
    "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "projection_dim": 16,
}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 56, "patch_size": 7,
}
INTERNVL = {
    "model_type": "internvl_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": [28, 28], "patch_size": [7, 7],
}
QWEN = {
    "depth": 3, "num_heads": 4, "patch_size": 4, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2,
}
QWEN2_VL = QWEN | {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
QWEN2_5_VL = QWEN | {
    "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40, "window_size": 16, "fullatt_block_indexes": [1],
}
QWEN3_VL = QWEN | {
    "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40, "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 1],
}
QWEN3_5 = {key: value for key, value in QWEN3_VL.items() if key != "deepstack_visual_indexes"} | {"model_type": "qwen3_5_vision"}
GLM4V = QWEN | {"hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40, "image_size": 20}
MLLAMA = {
    "model_type": "mllama_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_global_layers": 2,
    "attention_heads": 4, "image_size": 28, "patch_size": 7, "max_num_tiles": 4, "intermediate_layers_indices": [0, 1],
    "vision_output_dim": 96,
}
PHI4 = CLIP | {"model_type": "phi4_multimodal_vision", "crop_size": 28, "image_token_id": 64}
TOKENS = {"image_token_id": 64, "video_token_id": 65, "vision_start_token_id": 66, "vision_end_token_id": 67}
INDEX = {"image_token_index": 64}
PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]}
LLAMA, MISTRAL, QWEN2 = {"model_type": "llama"}, {"model_type": "mistral"}, {"model_type": "qwen2"}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}


def mrope(sections, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections} | more}


GLM_ROPE = mrope([1, 1, 1], partial_rotary_factor=0.5) | {"pad_token_id": 0}


def composite(model_type, architecture, text, vision, **more):
    return {
        "model_type": model_type, "architectures": [architecture], "text_config": TEXT | text, "vision_config": vision,
        "tie_word_embeddings": False, "vocab_size": TEXT["vocab_size"],
    } | more


def seeing(config, vocab_size):
    """The same with a vocabulary that has placeholders."""
    own = {"vocab_size": vocab_size}
    return config | own | {key: config[key] | own for key in ("text_config",) if key in config}


GEMMA3 = {"model_type": "gemma3_text", "head_dim": 12}
MOE = cases_moe.CASES
CASES = {
    "gemma3": composite("gemma3", "Gemma3ForConditionalGeneration", GEMMA3, SIGLIP, **INDEX, mm_tokens_per_image=4),
    "gemma3_window": composite(
        "gemma3", "Gemma3ForConditionalGeneration",
        GEMMA3 | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}, SIGLIP, **INDEX,
        mm_tokens_per_image=16),
    "glm4v": composite("glm4v", "Glm4vForConditionalGeneration", GLM_ROPE, GLM4V, **TOKENS),
    "glm4v_moe": composite(
        "glm4v_moe", "Glm4vMoeForConditionalGeneration",
        GLM_ROPE | {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_shared_experts": 1,
                    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}, GLM4V, **TOKENS),
    "idefics3": composite(
        "idefics3", "Idefics3ForConditionalGeneration", LLAMA, SIGLIP | {"model_type": "idefics3_vision"}, image_token_id=64,
        scale_factor=2),
    "internvl": composite("internvl", "InternVLForConditionalGeneration", QWEN2, INTERNVL, image_token_id=64),
    "internvl_variant": composite(
        "internvl", "InternVLForConditionalGeneration", {"model_type": "qwen3", "head_dim": 12},
        INTERNVL | {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": True, "use_mean_pooling": False},
        image_token_id=64),
    "llama4": composite(
        "llama4", "Llama4ForConditionalGeneration",
        {key: value for key, value in MOE["llama4_text"].items() if key not in ("architectures", "vocab_size")},
        {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
         "patch_size": 7, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}, **INDEX),
    "llava": composite("llava", "LlavaForConditionalGeneration", LLAMA, CLIP, **INDEX),
    "llava_two_layers": composite(
        "llava", "LlavaForConditionalGeneration", LLAMA, SIGLIP, **INDEX, vision_feature_layer=[-3, 2],
        vision_feature_select_strategy="full", multimodal_projector_bias=False),
    "llava_next": composite("llava_next", "LlavaNextForConditionalGeneration", MISTRAL, CLIP, **INDEX, **PINPOINTS),
    "llava_onevision": composite(
        "llava_onevision", "LlavaOnevisionForConditionalGeneration", QWEN2, SIGLIP, **INDEX, **PINPOINTS),
    "mistral3": composite("mistral3", "Mistral3ForConditionalGeneration", MISTRAL, PIXTRAL, **INDEX),
    "mllama": composite(
        "mllama", "MllamaForConditionalGeneration",
        {"model_type": "mllama_text_model", "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "rope_theta": 500000.0,
         "pad_token_id": 0}, MLLAMA, **INDEX),
    "paligemma": composite(
        "paligemma", "PaliGemmaForConditionalGeneration", {"model_type": "gemma", "head_dim": 12},
        SIGLIP | {"projection_dim": 48}, **INDEX, projection_dim=48),
    "paligemma_gemma2": composite(
        "paligemma", "PaliGemmaForConditionalGeneration", {"model_type": "gemma2", "head_dim": 12, "sliding_window": 6},
        SIGLIP | {"projection_dim": 48}, **INDEX, projection_dim=48),
    "phi4_multimodal": TEXT | {
        "model_type": "phi4_multimodal", "architectures": ["Phi4MultimodalForCausalLM"], "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}, "pad_token_id": 0,
        "head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 1, "vision_config": PHI4,
        "audio_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 4, "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32, "input_size": 80, "nemo_conv_channels": 16},
    },
    "pixtral": composite(
        "llava", "LlavaForConditionalGeneration", MISTRAL, PIXTRAL, **INDEX, vision_feature_layer=-1,
        vision_feature_select_strategy="full"),
    "qwen2_vl": composite("qwen2_vl", "Qwen2VLForConditionalGeneration", mrope([2, 2, 2]), QWEN2_VL, **TOKENS),
    "qwen2_5_vl": composite("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", mrope([1, 2, 3]), QWEN2_5_VL, **TOKENS),
    "qwen3_vl": composite(
        "qwen3_vl", "Qwen3VLForConditionalGeneration", mrope([3, 2, 1]) | {"head_dim": 12}, QWEN3_VL, **TOKENS),
    "qwen3_vl_moe": composite(
        "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", mrope([2, 2, 2]) | EXPERTS | {"head_dim": 12}, QWEN3_VL, **TOKENS),
    "smolvlm": composite(
        "smolvlm", "SmolVLMForConditionalGeneration", LLAMA, SIGLIP | {"model_type": "smolvlm_vision", "image_size": 42},
        image_token_id=64, scale_factor=3),
}
