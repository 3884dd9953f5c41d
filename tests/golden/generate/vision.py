"""What tiny vision-language models with weights by formula (formula.py) make of pixels by formula, as transformers computes
it in float32: the embeddings that the tower and the projector give, and the logits of two prompts, one with an image and one
with two.

    python vision.py                 writes ../vision.safetensors

Made with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6; eager attention.
"""
import json
import tempfile

import numpy as np
import torch
from safetensors.numpy import save_file

import cases_hybrid
import formula
import logits

TEXT = {
    "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 72, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
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
TOKENS = {"image_token_id": 64, "video_token_id": 65, "vision_start_token_id": 66, "vision_end_token_id": 67}
HYBRID = cases_hybrid.cases(logits.family)
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}}


def composite(model_type, architecture, text, vision, **more):
    return {
        "model_type": model_type, "architectures": [architecture], "text_config": TEXT | text, "vision_config": vision,
        "tie_word_embeddings": False,
    } | more


def tiles(count, side=28):
    return {"pixels": [count, 3, side, side]}


def patches(rows, columns, side=4):
    """Patches of two frames, as Qwen's processor stores them."""
    return {"pixels": [rows * columns, 3 * 2 * side * side], "grid": [rows, columns]}


LLAMA = {"model_type": "llama"}
INDEX = {"image_token_index": 64}
PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]}
# Images of which a size is padded within its tiles: name, image's height and width, rows and columns of tiles.
WIDE, HIGH = {"size": [20, 50], "grid": [1, 2]}, {"size": [50, 20], "grid": [2, 1]}

# Each: a configuration, and an image as the tower reads it.
CASES = {
    "llava": (composite("llava", "LlavaForConditionalGeneration", LLAMA, CLIP, **INDEX), tiles(1)),
    "llava_two_layers": (
        composite("llava", "LlavaForConditionalGeneration", LLAMA, SIGLIP, **INDEX, vision_feature_layer=[-3, 2],
                  vision_feature_select_strategy="full", multimodal_projector_bias=False), tiles(1)),
    "pixtral": (
        composite("llava", "LlavaForConditionalGeneration", {"model_type": "mistral"}, PIXTRAL, **INDEX,
                  vision_feature_layer=-1, vision_feature_select_strategy="full"),
        {"pixels": [1, 3, 35, 21], "size": [35, 21]}),
    "llava_next": (
        composite("llava_next", "LlavaNextForConditionalGeneration", LLAMA, CLIP, **INDEX, **PINPOINTS), tiles(3) | WIDE),
    "llava_next_high": (
        composite("llava_next", "LlavaNextForConditionalGeneration", LLAMA, CLIP, **INDEX, **PINPOINTS), tiles(3) | HIGH),
    "llava_onevision": (
        composite("llava_onevision", "LlavaOnevisionForConditionalGeneration", {"model_type": "qwen2"}, SIGLIP, **INDEX,
                  **PINPOINTS), tiles(3) | WIDE),
    "llava_onevision_shrunk": (
        composite("llava_onevision", "LlavaOnevisionForConditionalGeneration", {"model_type": "qwen2"}, SIGLIP, **INDEX,
                  **PINPOINTS, vision_aspect_ratio="anyres_max_2"),
        tiles(5) | {"size": [50, 56], "grid": [2, 2]}),
    "gemma3": (
        composite("gemma3", "Gemma3ForConditionalGeneration", {"model_type": "gemma3_text", "head_dim": 12}, SIGLIP, **INDEX,
                  mm_tokens_per_image=4), tiles(1)),
    "gemma3_window": (
        composite("gemma3", "Gemma3ForConditionalGeneration",
                  {"model_type": "gemma3_text", "head_dim": 12, "sliding_window": 6,
                   "layer_types": ["sliding_attention", "full_attention"]}, SIGLIP, **INDEX, mm_tokens_per_image=16), tiles(1)),
    "idefics3": (
        composite("idefics3", "Idefics3ForConditionalGeneration", LLAMA, SIGLIP | {"model_type": "idefics3_vision"},
                  image_token_id=64, scale_factor=2), tiles(3)),
    "smolvlm": (
        composite("smolvlm", "SmolVLMForConditionalGeneration", LLAMA,
                  SIGLIP | {"model_type": "smolvlm_vision", "image_size": 42}, image_token_id=64, scale_factor=3), tiles(2, 42)),
    "internvl": (
        composite("internvl", "InternVLForConditionalGeneration", {"model_type": "qwen2"}, INTERNVL, image_token_id=64), tiles(3)),
    "internvl_variant": (
        composite("internvl", "InternVLForConditionalGeneration", {"model_type": "qwen2"},
                  INTERNVL | {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": True, "use_mean_pooling": False},
                  image_token_id=64), tiles(1)),
    "mistral3": (
        composite("mistral3", "Mistral3ForConditionalGeneration", {"model_type": "mistral"}, PIXTRAL, **INDEX),
        {"pixels": [1, 3, 28, 42], "size": [28, 42]}),
    "qwen2_vl": (
        composite("qwen2_vl", "Qwen2VLForConditionalGeneration", MROPE,
                  QWEN | {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}, **TOKENS), patches(6, 4)),
    "qwen2_5_vl": (
        composite("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", MROPE,
                  QWEN | {"hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40, "window_size": 16,
                          "fullatt_block_indexes": [1]}, **TOKENS), patches(6, 10)),
    "qwen3_vl": (
        composite("qwen3_vl", "Qwen3VLForConditionalGeneration", MROPE | {"head_dim": 12},
                  QWEN | {"hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40, "num_position_embeddings": 25,
                          "deepstack_visual_indexes": [0, 1]}, **TOKENS), patches(4, 8)),
    "qwen3_5": (
        HYBRID["qwen3_5"] | TOKENS | {
            "text_config": HYBRID["qwen3_5"]["text_config"] | {"vocab_size": 72},
            "vision_config": QWEN | {"model_type": "qwen3_5_vision", "hidden_size": 32, "out_hidden_size": 48,
                                     "intermediate_size": 40, "num_position_embeddings": 25}},
        patches(4, 8)),
    "glm4v": (
        composite("glm4v", "Glm4vForConditionalGeneration",
                  {"pad_token_id": 0, "rope_parameters": {
                      "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}},
                  QWEN | {"hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40, "image_size": 20}, **TOKENS),
        patches(4, 6)),
}


def load(config):
    """The model, and its tensors' shapes under their published names."""
    with tempfile.TemporaryDirectory() as directory:
        model_class, shapes = logits.save_as_published(config, directory)
        tensors = {key: formula.tensor(key, shape) for key, shape in shapes.items()}
        return logits.load_with(model_class, directory, tensors), shapes


def pictures(name, config, image, numbers):
    """Some of the case's images as the model takes them."""
    shape = image["pixels"]
    pixels = [formula.tensor(f"{name} pixels {number}", shape) * np.sqrt(np.float32(shape[-1])) / 2 for number in numbers]
    arguments = {}
    if "grid" in image and len(shape) == 2:
        arguments["image_grid_thw"] = torch.tensor([[1, *image["grid"]]] * len(numbers))
    elif "size" in image:
        arguments["image_sizes"] = torch.tensor([image["size"]] * len(numbers))
    if config["model_type"] in ("llava_next", "llava_onevision"):
        pixels = np.stack(pixels)
    else:
        pixels = np.concatenate(pixels)
    if config["model_type"] in ("idefics3", "smolvlm"):
        pixels = pixels[None]
    return {"pixel_values": torch.from_numpy(pixels)} | arguments


def features(model, arguments):
    """The embeddings `[tokens, hidden]` of an image, and what is added behind the first layers."""
    found = model.model.get_image_features(**arguments, return_dict=True)
    made = torch.cat([part.reshape(-1, part.shape[-1]) for part in found.pooler_output])
    deep = [part[0] for part in getattr(found, "deepstack_features", None) or []]
    return torch.stack([made, *deep])


def prompt(name, n_tokens, before):
    """Words with images of `n_tokens` tokens, each after so many words; as long as two images and ten words."""
    row, ids = [], formula.token_ids(f"{name} words", 2 * n_tokens + 10, 60).tolist()
    for words in before:
        row += ids[len(row):len(row) + words] + [TOKENS["image_token_id"]] * n_tokens
    return row + ids[len(row):]


def prompt_logits(model, config, ids, arguments):
    ids = torch.tensor([ids])
    is_image = (ids == TOKENS["image_token_id"]).int()
    if config["model_type"] == "gemma3":
        arguments = arguments | {"token_type_ids": is_image}
    if "image_grid_thw" in arguments:
        arguments = arguments | {"mm_token_type_ids": is_image}
    return model(ids, use_cache=False, **arguments).logits[0, 2::3]


@torch.no_grad()
def main():
    made, about = {}, {}
    for name, (config, image) in CASES.items():
        model, shapes = load(config)
        found = features(model, pictures(name, config, image, [0]))
        n_tokens = found.shape[1]
        rows = [
            prompt_logits(model, config, prompt(name, n_tokens, [5]), pictures(name, config, image, [0])),
            prompt_logits(model, config, prompt(name, n_tokens, [2, 1]), pictures(name, config, image, [1, 2])),
        ]
        made[name], made[f"{name} logits"] = found.numpy(), torch.stack(rows).numpy()
        about[name] = json.dumps({"config": config, "image": image, "tensors": shapes})
        print(f"{name}: {n_tokens} tokens, {len(found) - 1} more, std {found.std():.3f}, logits' std {rows[1].std():.3f}")
    save_file(made, logits.OUT / "vision.safetensors", about)


if __name__ == "__main__":
    main()
