"""Tiny models that see, of sizes that loaders' kernels take: random weights, a tokenizer, and what their processors need.

usage: seeing.py DIRECTORY [NAME ...]      (in the environment of scripts/requirements/transformers.txt, or a client's)

Makes DIRECTORY/NAME for each, with DIRECTORY/text.txt to measure on: as transformers saves it, and with --in-memory under the names
that transformers has in memory, as newer files do.
"""
import argparse
import json
import pathlib
import re
import sys

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/golden/generate"))

import cases_gemma4  # noqa: E402
import cases_vision as cases  # noqa: E402
import formula  # noqa: E402
import images  # noqa: E402

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = ["<unk>", *LETTERS, *(first + second for first in LETTERS for second in "ens")]
MARKS = [
    "<image>", "<video>", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<img>", "</img>", "<IMG_CONTEXT>", "[IMG]",
    "[IMG_BREAK]", "[IMG_END]", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|image|>", "<|video|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|image_start|>",
    "<|image_end|>", "<|patch|>", "<|image>", "<image|>", "<|audio|>", "<|audio>", "<audio|>", "<|endoftext10|>",
    "<|endoftext11|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
# Words that no text here is cut into, but that vLLM looks up.
LOOKED_UP = ["\n", "\n\n", "\n\n\n", "\n\n\n\n", "<|begin_of_video|>", "<|end_of_video|>"]
VOCABULARY = {word: i for i, word in enumerate([*WORDS, *MARKS, *LOOKED_UP])}
VOCAB_SIZE = 192
# A word of every prompt.
FIRST = "in"
assert len(VOCABULARY) <= VOCAB_SIZE

TEXT = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 2048,
}
# What is called differently: the image's token, sizes that depend on the decoder's or on each other.
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
CLIP = cases.CLIP | TOWER | {"image_size": 56, "patch_size": 14}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
PIXTRAL = cases.PIXTRAL | TOWER | {"patch_size": 14, "head_dim": 32}
INTERNVL = cases.INTERNVL | TOWER | {"image_size": [56, 56], "patch_size": [14, 14]}
QWEN = {"num_heads": 2, "patch_size": 14, "depth": 2}
QWEN2_VL = cases.QWEN2_VL | QWEN | {"embed_dim": 64, "hidden_size": 128}
QWEN2_5_VL = cases.QWEN2_5_VL | QWEN | {"hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 96, "window_size": 112}
QWEN3_VL = cases.QWEN3_VL | QWEN | {
    "hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 96, "patch_size": 16, "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
}
GLM4V = cases.GLM4V | QWEN | {"hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 96, "image_size": 56}
GEMMA4 = cases_gemma4.VISION | TOWER | {
    "num_key_value_heads": 2, "head_dim": 32, "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 256,
    "use_clipped_linears": True, "standardize": True, "default_output_length": 70,
}
# With logits of a size that perplexities can be compared of.
UNTIED = {"tie_word_embeddings": False}
# Name -> changes of the golden configuration: of its text part, its eyes, and the rest.
CHANGES = {
    "gemma3": ({"sliding_window": 64, "query_pre_attn_scalar": 32}, SIGLIP, {}),
    "gemma4": ({
        "global_head_dim": 32, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": VOCAB_SIZE, "use_bidirectional_attention": "vision",
        "tie_word_embeddings": False,
    }, GEMMA4, UNTIED),
    "glm4v": ({"partial_rotary_factor": 0.5, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}}, GLM4V, {}),
    "idefics3": ({}, SIGLIP | {"model_type": "idefics3_vision"}, {}),
    "internvl": ({}, INTERNVL, {}),
    "llava": ({}, CLIP, {}),
    "llava_next": ({}, CLIP, {"image_grid_pinpoints": [[56, 112], [112, 56]]}),
    "llava_onevision": ({}, SIGLIP, {"image_grid_pinpoints": [[56, 112], [112, 56]]}),
    "mistral3": ({}, PIXTRAL, {}),
    "mllama": ({"num_hidden_layers": 4}, cases.MLLAMA | {
        "hidden_size": 64, "intermediate_size": 96, "attention_heads": 2, "image_size": 56, "patch_size": 14, "vision_output_dim": 192,
    }, {}),
    "paligemma": ({}, SIGLIP | {"projection_dim": 128}, {"projection_dim": 128}),
    "paligemma_gemma2": ({"sliding_window": 64, "query_pre_attn_scalar": 32}, SIGLIP | {"projection_dim": 128}, {"projection_dim": 128}),
    # Its processor counts tokens for images of this size alone.
    "phi4_multimodal": ({"num_key_value_heads": 1}, cases.PHI4 | TOWER | {
        "num_hidden_layers": 3, "image_size": 448, "patch_size": 14, "crop_size": 448}, UNTIED),
    "pixtral": ({}, PIXTRAL, {}),
    "qwen2_vl": (cases.mrope([4, 6, 6]), QWEN2_VL, {}),
    "qwen2_5_vl": (cases.mrope([4, 6, 6]), QWEN2_5_VL, {}),
    "qwen3_vl": (cases.mrope([6, 5, 5]), QWEN3_VL, {}),
    "qwen3_vl_moe": (cases.mrope([6, 5, 5]) | {"moe_intermediate_size": 32}, QWEN3_VL, {}),
    "smolvlm": ({}, SIGLIP | {"model_type": "smolvlm_vision", "image_size": 84}, {}),
}
# What the golden processors' settings make of images of 56 pixels.
SMALL = {"size": {"height": 56, "width": 56}}
CROPPED = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}
QWEN_SIZE = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}
SPLIT, SMOL_SPLIT = ({"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}} for side in (56, 84))
CLIP_PROMPT = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
# Name -> processor's class, image processor's class and settings, other settings, the token that stands for an image.
PROCESSORS = {
    "gemma3": ("Gemma3Processor", "Gemma3ImageProcessor", SMALL, {"image_seq_length": 4}, "<image_soft_token>"),
    "gemma4": ("Gemma4Processor", "Gemma4ImageProcessor", {"max_soft_tokens": 70}, {
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor"},
    }, "<|image|>"),
    "glm4v": ("Glm4vProcessor", "Glm4vImageProcessor", QWEN_SIZE, {}, "<|image|>"),
    "idefics3": ("Idefics3Processor", "Idefics3ImageProcessor", SPLIT, {"image_seq_len": 4}, "<image>"),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor", SMALL, {"image_seq_length": 4}, "<IMG_CONTEXT>"),
    "llava": ("LlavaProcessor", "CLIPImageProcessor", CROPPED, CLIP_PROMPT, "<image>"),
    "llava_next": (
        "LlavaNextProcessor", "LlavaNextImageProcessor", CROPPED | {"image_grid_pinpoints": [[56, 112], [112, 56]]}, CLIP_PROMPT,
        "<image>"),
    "llava_onevision": (
        "LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", SMALL | {"image_grid_pinpoints": [[56, 112], [112, 56]]},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"}, "<image>"),
    "mistral3": (
        "PixtralProcessor", "PixtralImageProcessor", {"size": {"longest_edge": 56}, "patch_size": 14},
        {"patch_size": 14, "spatial_merge_size": 2}, "[IMG]"),
    "mllama": ("MllamaProcessor", "MllamaImageProcessor", SMALL | {"max_image_tiles": 4}, {}, "<|image|>"),
    "paligemma": ("PaliGemmaProcessor", "SiglipImageProcessor", SMALL | {"image_seq_length": 16}, {}, "<image>"),
    "phi4_multimodal": (
        "Phi4MultimodalProcessor", "Phi4MultimodalImageProcessor", {},
        {"audio_processor": {"feature_extractor_type": "Phi4MultimodalFeatureExtractor"}}, "<|endoftext10|>"),
    "pixtral": (
        "PixtralProcessor", "PixtralImageProcessor", {"size": {"longest_edge": 56}, "patch_size": 14}, {"patch_size": 14}, "[IMG]"),
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor", QWEN_SIZE, {}, "<|image_pad|>"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", QWEN_SIZE, {}, "<|image_pad|>"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor", QWEN_SIZE | {"patch_size": 16}, {}, "<|image_pad|>"),
    "qwen3_vl_moe": ("Qwen3VLProcessor", "Qwen2VLImageProcessor", QWEN_SIZE | {"patch_size": 16}, {}, "<|image_pad|>"),
    "smolvlm": ("SmolVLMProcessor", "SmolVLMImageProcessor", SMOL_SPLIT, {"image_seq_len": 4}, "<image>"),
}
PROCESSORS["paligemma_gemma2"] = PROCESSORS["paligemma"]


def configuration(name):
    text, vision, more = CHANGES[name]
    config = cases.seeing((cases.CASES | cases_gemma4.CASES)[name], VOCAB_SIZE)
    config = config | more | {"vision_config": vision, "dtype": "bfloat16"}
    inner = config.get("text_config", config)
    inner |= TEXT | text
    token = VOCABULARY[PROCESSORS[name][-1]]
    for part in (config, config["vision_config"]):
        part |= {key: token for key in ("image_token_id", "image_token_index") if key in part}
    marks = {
        "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
        "audio_token_id": "<|audio|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>", "boa_token_id": "<|audio>",
        "eoa_token_index": "<audio|>",
    }
    return config | {key: VOCABULARY[mark] for key, mark in marks.items() if key in config}


def tokenizer(class_name, image_token, **first):
    inner = Tokenizer(models.WordLevel(VOCABULARY, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z][ens]?"), "removed", invert=True)
    named = images.TOKENS | images.OWN_TOKENS.get(class_name, {}) | {"image_token": image_token}
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", extra_special_tokens=named, **first)
    fast.add_special_tokens({"additional_special_tokens": MARKS})
    return fast


def save_processor(name, directory):
    class_name, image_class, settings, more, token = PROCESSORS[name]
    # Mllama's processor wants a first token, and writes it where a prompt has none; vLLM wants one for PaliGemma.
    wants_first = name == "mllama" or name.startswith("paligemma")
    fast = tokenizer(class_name, token, **({"bos_token": FIRST} if wants_first else {}))
    fast.save_pretrained(directory)
    image_processor = getattr(transformers, image_class)(**settings)
    saved = json.loads(image_processor.to_json_string()) | {"image_processor_type": image_class, "processor_class": class_name}
    (directory / "preprocessor_config.json").write_text(json.dumps(saved))
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": class_name} | more))


def make(name, directory, in_memory):
    config = configuration(name)
    typed = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    model = getattr(transformers, config["architectures"][0])._from_config(typed, dtype=torch.float32)
    model.save_pretrained(directory, save_original_format=not in_memory)
    with safe_open(directory / "model.safetensors", "np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    # As published files have a tower of CLIP's kind, which were written before transformers 5; vLLM knows no other name.
    if not in_memory and config["vision_config"].get("model_type") in ("clip_vision_model", "siglip_vision_model"):
        shapes = {re.sub("^vision_tower\\.", "vision_tower.vision_model.", key): shape for key, shape in shapes.items()}
    tensors = {key: torch.from_numpy(formula.tensor(key, shape)).bfloat16() for key, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    save_processor(name, directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    for name in args.names or CHANGES:
        (args.directory / name).mkdir(parents=True, exist_ok=True)
        make(name, args.directory / name, args.in_memory)
    words = "the seven sons never seen in an open den eat bread and honey then sing on an inn's stone " * 40
    (args.directory / "text.txt").write_text(words)


if __name__ == "__main__":
    main()
