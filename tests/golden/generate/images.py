"""What transformers' processors make of images: pixel values and the text that stands for an image in a prompt.

    python images.py                 writes ../images.safetensors

Made with Python 3.11, torch 2.13.0 (CPU), torchvision 0.28.0, pillow 12.3.0, transformers 5.23.0.
"""
import io
import json
import pathlib
import re
import tempfile

import numpy as np
import PIL.Image
import PIL.ImageOps
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.image_transforms import convert_to_rgb

import cases_images
import logits

# Width and height.
SIZES = [(9, 5), (37, 53), (300, 200), (640, 480), (150, 700), (1400, 900)]
# Of these only the shapes and the texts.
MORE_SIZES = [(1, 1), (3, 150), (401, 3), (100, 100), (224, 224), (333, 500), (500, 333), (97, 640), (672, 336), (800, 601)]
# Tokens that a processor has under another name than the tokens below.
QWEN, GLM = {"image_token": "<|image_pad|>"}, {"image_token": "<|image|>"}
OWN_TOKENS = {
    "Qwen2VLProcessor": QWEN, "Qwen2_5_VLProcessor": QWEN, "Qwen3VLProcessor": QWEN, "Glm4vProcessor": GLM, "Glm46VProcessor": GLM,
    "Gemma3Processor": {"image_token": "<image_soft_token>"}, "MllamaProcessor": GLM,
    "Gemma4Processor": GLM | {
        "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
    "Phi4MultimodalProcessor": {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"},
}
BEGIN = "<s>"
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
    # Its processor cuts, whatever its image processor says.
    "internvl_default": (
        "internvl", "InternVLProcessor", "GotOcr2ImageProcessor", {"size": {"height": 112, "width": 112}},
        {"image_seq_length": 16}, {}),
    "pixtral": (
        "llava", "PixtralProcessor", "PixtralImageProcessor", {"size": {"longest_edge": 400}, "patch_size": 16}, {"patch_size": 16}, {}),
    "mistral3": (
        "mistral3", "PixtralProcessor", "PixtralImageProcessor", {"size": {"longest_edge": 308}, "patch_size": 14},
        {"patch_size": 14, "spatial_merge_size": 2}, {}),
    "paligemma": (
        "paligemma", "PaliGemmaProcessor", "SiglipImageProcessor",
        {"size": {"height": 112, "width": 112}, "image_seq_length": 64}, {}, {}),
    "mllama": (
        "mllama", "MllamaProcessor", "MllamaImageProcessor", {"size": {"height": 112, "width": 112}, "max_image_tiles": 4}, {}, {}),
    "gemma4": ("gemma4", "Gemma4Processor", "Gemma4ImageProcessor", {"max_soft_tokens": 70}, {}, {}),
    "phi4_multimodal": (
        "phi4_multimodal", "Phi4MultimodalProcessor", "Phi4MultimodalImageProcessor",
        {"size": {"height": 56, "width": 56}, "patch_size": 14, "dynamic_hd": 6}, {}, {}),
    # An odd number of patches in a row.
    "phi4_multimodal_odd": (
        "phi4_multimodal", "Phi4MultimodalProcessor", "Phi4MultimodalImageProcessor",
        {"size": {"height": 70, "width": 70}, "patch_size": 14, "dynamic_hd": 9}, {}, {}),
}


def picture(width, height):
    """Slopes, squares and a fine pattern."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [
        (x * (3 + c) + y * (5 - c) + 40 * ((x // 16 + y // 16) % 2) + (x * y // 7) % 31) % 256 for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


class Recorder(PreTrainedTokenizerFast):
    """A tokenizer that knows the tokens, and keeps the text that it was given."""

    def __call__(self, text, *args, **kwargs):
        self.seen = text
        return super().__call__(text, *args, **kwargs)


def tokenizer(extra):
    words = {word: i for i, word in enumerate(
        ["<unk>", BEGIN, "<image_soft_token>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", *TOKENS.values(), *extra])}
    inner = Tokenizer(WordLevel(words, "<unk>"))
    made = Recorder(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>", bos_token=BEGIN, extra_special_tokens=TOKENS)
    made.add_tokens([word for word in words if word != "<unk>"], special_tokens=True)
    return made


def processor_of(class_name, image_processor, more):
    """A processor with a tokenizer that knows its tokens."""
    own = OWN_TOKENS.get(class_name, {})
    tokens = tokenizer(own.values())
    for key, token in own.items():
        setattr(tokens, key, token)
        if not hasattr(tokens, f"{key}_id"):
            setattr(tokens, f"{key}_id", tokens.convert_tokens_to_ids(token))
    processor_class = getattr(transformers, class_name)
    arguments = {"image_processor": image_processor, "tokenizer": tokens} | more
    # What reads videos and sounds is of no use here.
    for key in ["video_processor", "feature_extractor", "audio_processor"]:
        if key in processor_class.__init__.__code__.co_varnames:
            arguments[key] = None
    processor_class.check_argument_for_proper_class = lambda self, name, argument: type(argument)
    return processor_class(**arguments)


def opened(image_class, file):
    """The image processor that the text of a preprocessor_config.json stands for."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "preprocessor_config.json").write_text(file)
        return getattr(transformers, image_class).from_pretrained(folder)


def short(text, token):
    """The text with runs of the token as their length."""
    return re.sub(f"(?:{re.escape(token)})+", lambda run: f"[{len(run[0]) // len(token)}]", text)


def prepared_by_phi4(processor, inputs):
    """The same from Phi-4's inputs, with the canvas' rows and columns of tiles, and height and width of what is no padding."""
    own = processor.image_processor
    side, patch = own.size["height"], own.patch_size
    n_patches = side // patch
    grid = [length // side for length in inputs["image_sizes"][0].tolist()]
    mask = inputs["image_attention_mask"][0, 1:].reshape(*grid, n_patches, n_patches).transpose(1, 2)
    mask = mask.reshape(grid[0] * n_patches, grid[1] * n_patches)
    kept = [int(mask[:, 0].sum()) * patch, int(mask[0].sum()) * patch]
    # The processor says 256 + 16 tokens for the whole canvas, whatever its settings; the model makes as many vectors as here, which
    # is the same for the published size of 448.
    whole = (n_patches + 1) // 2
    count = processor.tokenizer.seen[0].count(processor.image_token) - (256 + 16) + whole * whole + whole
    return processor.image_token * count, inputs["image_pixel_values"][0].float().numpy(), {"grid": grid, "kept": kept}


def prepared(processor, placeholder, width, height):
    """The text in the placeholder's place, what the tower reads, and what else is known of it."""
    image = PIL.Image.fromarray(picture(width, height))
    nested = type(processor).__name__ == "Idefics3Processor"
    inputs = processor(text=[placeholder], images=[[image]] if nested else [image], return_tensors="pt")
    if "image_attention_mask" in inputs:
        return prepared_by_phi4(processor, inputs)
    values = inputs["pixel_values"].float().numpy()
    # Without the numbers of samples and of images, where there are any, and without the padding behind patches and tiles.
    if "image_position_ids" in inputs:
        values = values[0][inputs["image_position_ids"][0, :, 0].numpy() >= 0]
    elif "aspect_ratio_mask" in inputs:
        values = values[0, 0][: int(inputs["aspect_ratio_mask"].sum())]
    elif values.ndim == 5:
        values = values[0]
    seen = processor.tokenizer.seen
    seen = seen if isinstance(seen, str) else seen[0]
    # Two processors say where the text begins.
    return seen.removesuffix("\n" * seen.endswith(f"{BEGIN}\n")).removesuffix(BEGIN), values, {}


def cases():
    """All cases: name, model type, processor, what the model's directory holds."""
    for name, (model_type, class_name, image_class, settings, more, config) in CASES.items():
        image_processor = getattr(transformers, image_class)(**settings)
        saved = json.loads(image_processor.to_json_string()) | {"image_processor_type": image_class}
        # As transformers 5 writes it: one file, in which the other is nested.
        files = {"config.json": {"model_type": model_type} | config, "processor_config.json": more | {"image_processor": saved}}
        yield name, processor_of(class_name, image_processor, more), files
    for name, (model_type, class_name, settings, more, config) in cases_images.PUBLISHED.items():
        named = settings.get("image_processor_type") or settings["feature_extractor_type"]
        bare = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        processor = processor_of(class_name, opened(bare, json.dumps(settings)), more)
        files = {"config.json": {"model_type": model_type} | config, "preprocessor_config.json": settings}
        yield name, processor, files | ({"processor_config.json": more} if more else {})


def encoded_files():
    """Images of all kinds as files."""
    width, height = 21, 13
    colors = PIL.Image.fromarray(picture(width, height))
    alpha = PIL.Image.fromarray(picture(width, height)[:, :, 2])
    transparent = colors.copy()
    transparent.putalpha(alpha)
    grey = colors.convert("L")
    palette = colors.quantize(16)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    smooth = colors.resize((40, 24), PIL.Image.Resampling.BICUBIC)
    kinds = {
        "colors.png": (colors, {}), "transparent.png": (transparent, {}), "grey.png": (grey, {}),
        "grey_transparent.png": (transparent.convert("LA"), {}), "palette.png": (palette, {}),
        "palette_transparent.png": (palette, {"transparency": 3}), "black_white.png": (grey.convert("1"), {}),
        "turned.png": (colors, {"exif": turned}), "lossless.webp": (transparent, {"lossless": True, "exact": True}),
        "lossy.webp": (smooth, {"quality": 90}), "full.jpg": (smooth, {"quality": 95, "subsampling": 0}),
        "halved_turned.jpg": (smooth, {"quality": 90, "exif": turned}), "grey.jpg": (smooth.convert("L"), {"quality": 90}),
        "progressive.jpg": (smooth, {"quality": 90, "progressive": True}),
    }
    made = {}
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if name.endswith("jpg") else name.split(".")[1].upper(), **options)
        made[name] = buffer.getvalue()
    return made


def main():
    made, about = {}, {}
    for name, processor, files in cases():
        is_gemma = files["config.json"]["model_type"] == "gemma3"
        token = "<image_soft_token>" if is_gemma else processor.image_token
        placeholder = processor.boi_token if is_gemma else token
        images = []
        for width, height in SIZES:
            text, values, more = prepared(processor, placeholder, width, height)
            step = max(1, values.size // KEPT)
            made[f"{name} {width} {height}"] = values.reshape(-1)[::step].copy()
            squares = float(np.mean(values.astype(np.float64) ** 2))
            images.append({
                "size": [width, height], "shape": values.shape, "step": step, "text": short(text, token), "mean_square": squares} | more)
        texts, refused = [], []
        for width, height in MORE_SIZES:
            try:
                text, values, more = prepared(processor, placeholder, width, height)
            except ValueError as error:
                if "the aspect ratio is very extreme" not in str(error):
                    raise
                refused.append([width, height])
                continue
            texts.append({"size": [width, height], "shape": values.shape, "text": short(text, token)} | more)
        kept = {"files": files, "token": token, "placeholder": placeholder, "images": images, "texts": texts}
        about[name] = json.dumps(kept | ({"refused": refused} if refused else {}))
        print(name, [image["shape"] for image in images], flush=True)
    for name, encoded in encoded_files().items():
        made[f"file {name}"] = np.frombuffer(encoded, np.uint8)
        image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
        made[f"decoded {name}"] = convert_to_rgb(image, return_numpy=True)
    save_file(made, logits.OUT / "images.safetensors", about)


if __name__ == "__main__":
    main()
