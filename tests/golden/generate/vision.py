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
from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios
from transformers.models.mllama.processing_mllama import convert_sparse_cross_attention_mask_to_dense, get_cross_attention_token_mask

import cases_gemma4
import cases_hybrid
import cases_vision
import formula
import logits

TOKENS, VOCAB_SIZE = cases_vision.TOKENS, 72


def tiles(count, side=28):
    return {"pixels": [count, 3, side, side]}


def patches(rows, columns, side=4):
    """Patches of two frames, as Qwen's processor stores them."""
    return {"pixels": [rows * columns, 3 * 2 * side * side], "grid": [rows, columns]}


# Images of which a size is padded within its tiles: height and width, rows and columns of tiles.
WIDE, HIGH = {"size": [20, 50], "grid": [1, 2]}, {"size": [50, 20], "grid": [2, 1]}
TEXT = cases_vision.CASES
GEMMA4 = cases_gemma4.CASES["gemma4"]
HYBRID = cases_hybrid.cases(logits.family)["qwen3_5"] | TOKENS | {"vision_config": cases_vision.QWEN3_5}

# Each: a configuration, and an image as the tower reads it.
CASES = {
    "gemma3": (TEXT["gemma3"], tiles(1)),
    "gemma3_window": (TEXT["gemma3_window"], tiles(1)),
    "gemma4": (GEMMA4, {"pixels": [24, 3 * 4 * 4], "grid": [4, 6]}),
    "gemma4_variant": (cases_gemma4.seeing_ahead(GEMMA4), {"pixels": [54, 3 * 4 * 4], "grid": [9, 6]}),
    "glm4v": (TEXT["glm4v"], patches(4, 6)),
    "glm4v_moe": (TEXT["glm4v_moe"], patches(4, 4)),
    "idefics3": (TEXT["idefics3"], tiles(3)),
    "internvl": (TEXT["internvl"], tiles(3)),
    "internvl_variant": (TEXT["internvl_variant"], tiles(1)),
    "llava": (TEXT["llava"], tiles(1)),
    "llava_two_layers": (TEXT["llava_two_layers"], tiles(1)),
    "llava_next": (TEXT["llava_next"], tiles(3) | WIDE),
    "llava_next_high": (TEXT["llava_next"], tiles(3) | HIGH),
    "llava_onevision": (TEXT["llava_onevision"], tiles(3) | WIDE),
    "llava_onevision_shrunk": (
        TEXT["llava_onevision"] | {"vision_aspect_ratio": "anyres_max_2"}, tiles(5) | {"size": [50, 56], "grid": [2, 2]}),
    "mistral3": (TEXT["mistral3"], {"pixels": [1, 3, 28, 42], "size": [28, 42]}),
    "mllama": (TEXT["mllama"], tiles(3) | {"grid": [3, 1]}),
    "mllama_side_by_side": (TEXT["mllama"], tiles(4) | {"grid": [2, 2]}),
    "paligemma": (TEXT["paligemma"], tiles(1)),
    "paligemma_gemma2": (TEXT["paligemma_gemma2"], tiles(1)),
    "phi4_multimodal": (TEXT["phi4_multimodal"], tiles(3) | {"grid": [1, 2], "size": [21, 42]}),
    "phi4_multimodal_odd": (
        TEXT["phi4_multimodal"] | {"vision_config": cases_vision.PHI4 | {"image_size": 21, "crop_size": 21, "feature_layer": -1}},
        tiles(3, 21) | {"grid": [2, 1], "size": [35, 14]}),
    "pixtral": (TEXT["pixtral"], {"pixels": [1, 3, 35, 21], "size": [35, 21]}),
    "qwen2_vl": (TEXT["qwen2_vl"], patches(6, 4)),
    "qwen2_5_vl": (TEXT["qwen2_5_vl"], patches(6, 10)),
    "qwen3_vl": (TEXT["qwen3_vl"], patches(4, 8)),
    "qwen3_vl_moe": (TEXT["qwen3_vl_moe"], patches(4, 4)),
    "qwen3_5": (HYBRID, patches(4, 8)),
    "smolvlm": (TEXT["smolvlm"], tiles(2, 42)),
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
    if config["model_type"] == "mllama":
        return mllama_pictures(config, image, pixels)
    if config["model_type"] == "phi4_multimodal":
        return phi4_pictures(config, image, pixels)
    if config["model_type"] == "gemma4":
        rows, columns = image["grid"]
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        arguments["image_position_ids"] = cells.repeat(len(numbers), 1, 1)
        pixels = [own[None] for own in pixels]
    elif "grid" in image and len(shape) == 2:
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


def mllama_pictures(config, image, pixels):
    """Images of one prompt, as Mllama's processor pads them."""
    most = config["vision_config"]["max_num_tiles"]
    n_tiles, count = image["pixels"][0], len(pixels)
    padded = np.stack([np.pad(own, ((0, most - n_tiles), (0, 0), (0, 0), (0, 0))) for own in pixels])[None]
    ratio = get_all_supported_aspect_ratios(most).index(tuple(image["grid"])) + 1
    mask = (torch.arange(most) < n_tiles).long().expand(1, count, most)
    return {"pixel_values": torch.from_numpy(padded), "aspect_ratio_ids": torch.full((1, count), ratio), "aspect_ratio_mask": mask}


def phi4_pictures(config, image, pixels):
    """Images of one prompt, of which `size` is no padding."""
    eyes, (rows, columns), count = config["vision_config"], image["grid"], len(pixels)
    side = eyes["crop_size"] // eyes["patch_size"]
    kept = torch.zeros(rows * side, columns * side)
    kept[:image["size"][0] // eyes["patch_size"], :image["size"][1] // eyes["patch_size"]] = 1
    crops = kept.view(rows, side, columns, side).transpose(1, 2).reshape(-1, side, side)
    mask = torch.cat([torch.ones(1, side, side), crops])
    sizes = torch.tensor([[rows * eyes["crop_size"], columns * eyes["crop_size"]]] * count)
    return {"image_pixel_values": torch.from_numpy(np.stack(pixels)), "image_sizes": sizes, "image_attention_mask": mask.expand(count, -1, -1, -1)}


def phi4_features(model, arguments):
    """As many tokens as the model's own processor counts, for sides of any number of patches."""
    mask, sizes = arguments["image_attention_mask"][0], arguments["image_sizes"][0]
    side, columns = (mask.shape[-1] + 1) // 2, int(sizes[1]) // model.config.vision_config.crop_size
    kept = mask[1:, 0::2, 0::2]
    n_tokens = side * side + 1 + int(kept.sum()) + int(kept[::columns, :, 0].sum()) + side
    ids = torch.full((1, n_tokens), TOKENS["image_token_id"])
    return model.model.embed_tokens_extend.image_embed(ids, torch.zeros(1, n_tokens, model.config.hidden_size), **arguments)


def features(model, arguments):
    """The embeddings `[tokens, hidden]` of an image, and what is added behind the first layers."""
    if "aspect_ratio_mask" in arguments:
        seen = model.model.vision_model(**arguments).last_hidden_state
        return model.model.multi_modal_projector(seen).flatten(0, -2)[None]
    if "image_attention_mask" in arguments:
        return phi4_features(model, arguments)
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
    if "aspect_ratio_mask" in arguments:
        most, n_tiles = arguments["aspect_ratio_mask"].shape[-1], arguments["aspect_ratio_mask"].sum(-1).tolist()
        seen = [get_cross_attention_token_mask(row, TOKENS["image_token_id"]) for row in ids.tolist()]
        mask = convert_sparse_cross_attention_mask_to_dense(seen, n_tiles, most, ids.shape[1])
        arguments = arguments | {"cross_attention_mask": torch.from_numpy(mask)}
    if config["model_type"] == "paligemma":
        # The words are read as an answer's: none sees later ones.
        arguments = arguments | {"token_type_ids": 1 - is_image}
    if "image_grid_thw" in arguments or "image_position_ids" in arguments:
        arguments = arguments | {"mm_token_type_ids": is_image}
    return model(ids, use_cache=False, **arguments).logits[0, 2::3]


@torch.no_grad()
def main():
    made, about = {}, {}
    for name, (config, image) in CASES.items():
        config = cases_vision.seeing(config, VOCAB_SIZE)
        model, shapes = load(config)
        found = features(model, pictures(name, config, image, [0]))
        n_tokens = 1 if config["model_type"] == "mllama" else found.shape[1]
        # PaliGemma's images come one after the other.
        before = [2, 0] if config["model_type"] == "paligemma" or name == "mllama_side_by_side" else [2, 1]
        rows = [
            prompt_logits(model, config, prompt(name, n_tokens, [5]), pictures(name, config, image, [0])),
            prompt_logits(model, config, prompt(name, n_tokens, before), pictures(name, config, image, [1, 2])),
        ]
        made[name], made[f"{name} logits"] = found.numpy(), torch.stack(rows).numpy()
        about[name] = json.dumps({"config": config, "image": image, "tensors": shapes})
        print(f"{name}: {n_tokens} tokens, {len(found) - 1} more, std {found.std():.3f}, logits' std {rows[1].std():.3f}")
    save_file(made, logits.OUT / "vision.safetensors", about)


if __name__ == "__main__":
    main()
