"""What transformers' processors make of images: pixel values and the text that stands for an image in a prompt.

    python images.py                 writes ../images.safetensors

Made with Python 3.11, torch 2.13.0 (CPU), torchvision 0.28.0, pillow 12.3.0, transformers 5.23.0.
"""
import json
import re
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import logits

# Width and height.
SIZES = [(9, 5), (37, 53), (300, 200), (640, 480), (150, 700), (1400, 900)]
# At most so many values of an image are kept.
KEPT = 96
TOKENS = {
    "image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "start_image_token": "<img>",
    "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
}
CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True}
QWEN3 = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
         "size": {"shortest_edge": 65536, "longest_edge": 1000000}}
CLIP_TOWER = {"vision_config": {"model_type": "clip_vision_model", "patch_size": 14}}
SMALL_PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]

# SmolVLM's own processor needs one more package, for films; it writes images as Idefics 3's does.
# Model type, processor's class, image processor's class and settings, other settings of the processor, the model's config.
CASES = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLProcessor", "Qwen2VLImageProcessor", {}, {}, {}),
    "qwen2_vl_bounds": (
        "qwen2_5_vl", "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", {"min_pixels": 40000, "max_pixels": 200000}, {}, {}),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLProcessor", "Qwen2VLImageProcessor", QWEN3, {}, {}),
    "glm4v": ("glm4v", "Glm4vProcessor", "Glm4vImageProcessor", {"size": {"shortest_edge": 12544, "longest_edge": 602112}}, {}, {}),
    "llava": (
        "llava", "LlavaProcessor", "CLIPImageProcessor", CLIP_336,
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}, CLIP_TOWER),
    "llava_cropped": (
        "llava", "LlavaProcessor", "CLIPImageProcessor",
        {"size": {"shortest_edge": 141}, "crop_size": {"height": 112, "width": 98}, "do_center_crop": True},
        {"patch_size": 14, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 1}, CLIP_TOWER),
    "llava_siglip": (
        "llava", "LlavaProcessor", "SiglipImageProcessor", {"size": {"height": 112, "width": 112}},
        {"patch_size": 14, "vision_feature_select_strategy": "full"}, {"vision_config": {"model_type": "siglip_vision_model"}}),
    "gemma3": (
        "gemma3", "Gemma3Processor", "Gemma3ImageProcessor", {"size": {"height": 224, "width": 224}}, {"image_seq_length": 64}, {}),
    "llava_next": (
        "llava_next", "LlavaNextProcessor", "LlavaNextImageProcessor",
        {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}, "image_grid_pinpoints": SMALL_PINPOINTS},
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}, CLIP_TOWER),
    "llava_onevision": (
        "llava_onevision", "LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor",
        {"size": {"height": 112, "width": 112}, "image_grid_pinpoints": SMALL_PINPOINTS},
        {"num_image_tokens": 64, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"},
        {"vision_config": {"model_type": "siglip_vision_model", "patch_size": 14}}),
    "idefics3": (
        "idefics3", "Idefics3Processor", "Idefics3ImageProcessor",
        {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 112}}, {"image_seq_len": 16}, {}),
    "smolvlm_whole": (
        "smolvlm", "Idefics3Processor", "SmolVLMImageProcessor",
        {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 128}, "do_image_splitting": False},
        {"image_seq_len": 16}, {}),
    "internvl": (
        "internvl", "InternVLProcessor", "GotOcr2ImageProcessor",
        {"size": {"height": 112, "width": 112}, "crop_to_patches": True, "min_patches": 1, "max_patches": 6},
        {"image_seq_length": 16}, {}),
    "internvl_whole": (
        "internvl", "InternVLProcessor", "GotOcr2ImageProcessor", {"size": {"height": 112, "width": 112}},
        {"image_seq_length": 16}, {}),
    "pixtral": (
        "llava", "PixtralProcessor", "PixtralImageProcessor", {"size": {"longest_edge": 400}, "patch_size": 16}, {"patch_size": 16}, {}),
    "mistral3": (
        "mistral3", "PixtralProcessor", "PixtralImageProcessor", {"size": {"longest_edge": 308}, "patch_size": 14},
        {"patch_size": 14, "spatial_merge_size": 2}, {}),
}


def picture(width, height):
    """Slopes, squares and a fine pattern."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [
        (x * (3 + c) + y * (5 - c) + 40 * ((x // 16 + y // 16) % 2) + (x * y // 7) % 31) % 256 for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def tokenizer():
    words = {word: i for i, word in enumerate(["<unk>", "<image_soft_token>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", *TOKENS.values()])}
    inner = Tokenizer(WordLevel(words, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", extra_special_tokens=TOKENS)


def processor_of(name, class_name, image_class, settings, more):
    """A processor with a tokenizer that knows its tokens."""
    tokens = tokenizer()
    for key, token in {"qwen": "<|image_pad|>", "glm4v": "<|image|>", "gemma3": "<image_soft_token>"}.items():
        if name.startswith(key):
            tokens.image_token = token
            tokens.add_tokens([token], special_tokens=True)
    image_processor = getattr(transformers, image_class)(**settings)
    processor_class = getattr(transformers, class_name)
    arguments = {"image_processor": image_processor, "tokenizer": tokens} | more
    if "video_processor" in processor_class.__init__.__code__.co_varnames:
        arguments["video_processor"] = None
    # A video processor is of no use here.
    processor_class.check_argument_for_proper_class = lambda self, name, argument: type(argument)
    return processor_class(**arguments), image_processor


def short(text, token):
    """The text with runs of the token as their length."""
    return re.sub(f"(?:{re.escape(token)})+", lambda run: f"[{len(run[0]) // len(token)}]", text)


def main():
    made, about = {}, {}
    for name, (model_type, class_name, image_class, settings, more, config) in CASES.items():
        processor, image_processor = processor_of(name, class_name, image_class, settings, more)
        token = "<image_soft_token>" if model_type == "gemma3" else processor.image_token
        saved = json.loads(image_processor.to_json_string())
        saved["image_processor_type"] = image_class
        sizes = []
        for width, height in SIZES:
            image = picture(width, height)
            nested = class_name == "Idefics3Processor"
            inputs, texts = processor._process_images(
                [[image]] if nested else [image], return_tensors="pt", **{"return_row_col_info": True} if nested else {})
            values = inputs["pixel_values"].float().numpy()
            # Without the number of samples, where there is one.
            values = values[0] if values.ndim == 5 else values
            text = texts[0][0] if isinstance(texts[0], list) else texts[0]
            step = max(1, values.size // KEPT)
            made[f"{name} {width} {height}"] = values.reshape(-1)[::step].copy()
            sizes.append({"size": [width, height], "shape": values.shape, "step": step, "text": short(text, token)})
        about[name] = json.dumps({
            "config": {"model_type": model_type} | config, "processor": more, "preprocessor": saved, "token": token,
            "images": sizes})
        print(name, [image["shape"] for image in sizes])
    save_file(made, logits.OUT / "images.safetensors", about)


if __name__ == "__main__":
    main()
