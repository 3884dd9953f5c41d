"""Processors as models are published with them: files of a model's directory, by the names and keys of their time."""

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
EVERYTHING = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 0.00392156862745098}
CLIP_TOWER = {"vision_config": {"model_type": "clip_vision_model", "patch_size": 14}}
SIGLIP_TOWER = {"vision_config": {"model_type": "siglip_vision_model", "patch_size": 14}}
LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1, "image_token": "<image>"}


def square(side):
    return {"height": side, "width": side}


# Model type, processor's class, preprocessor_config.json, processor_config.json, what is of use of config.json.
PUBLISHED = {
    "Qwen2-VL-7B": (
        "qwen2_vl", "Qwen2VLProcessor",
        {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14,
         "temporal_patch_size": 2, "merge_size": 2} | CLIP, {}, {}),
    "Qwen3-VL-8B": (
        "qwen3_vl", "Qwen3VLProcessor",
        {"image_processor_type": "Qwen2VLImageProcessorFast", "size": {"longest_edge": 16777216, "shortest_edge": 65536},
         "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2} | HALF, {}, {}),
    "GLM-4.1V-9B": (
        "glm4v", "Glm4vProcessor",
        {"image_processor_type": "Glm4vImageProcessor", "size": {"shortest_edge": 12544, "longest_edge": 9633792},
         "do_rescale": True, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2} | CLIP, {}, {}),
    "GLM-4.6V": (
        "glm4v_moe", "Glm46VProcessor",
        {"image_processor_type": "Glm46VImageProcessor", "size": {"shortest_edge": 12544, "longest_edge": 9633792},
         "do_rescale": True, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2} | CLIP, {}, {}),
    "llava-1.5-7b": (
        "llava", "LlavaProcessor",
        {"image_processor_type": "CLIPImageProcessor", "crop_size": square(336), "do_center_crop": True, "do_convert_rgb": True,
         "resample": 3, "size": {"shortest_edge": 336}} | EVERYTHING | CLIP, LLAVA, CLIP_TOWER),
    # The settings of the tower itself: sides are one number, which means the shorter edge.
    "clip-vit-large-patch14-336": (
        "llava", "LlavaProcessor",
        {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 336, "do_center_crop": True, "do_normalize": True,
         "do_resize": True, "resample": 3, "size": 336} | CLIP, LLAVA, CLIP_TOWER),
    "siglip-so400m-patch14-384": (
        "llava", "LlavaProcessor",
        {"image_processor_type": "SiglipImageProcessor", "resample": 3, "size": square(384)} | EVERYTHING | HALF,
        {"patch_size": 14, "vision_feature_select_strategy": "full"}, SIGLIP_TOWER),
    "gemma-3-4b": (
        "gemma3", "Gemma3Processor",
        {"image_processor_type": "Gemma3ImageProcessor", "do_convert_rgb": None, "do_pan_and_scan": None, "image_seq_length": 256,
         "pan_and_scan_max_num_crops": None, "resample": 2, "size": square(896)} | EVERYTHING | HALF,
        {"image_seq_length": 256}, {}),
    "llava-v1.6-mistral-7b": (
        "llava_next", "LlavaNextProcessor",
        {"image_processor_type": "LlavaNextImageProcessor", "aspect_ratio_setting": "anyres", "crop_size": square(336),
         "do_center_crop": True, "do_convert_rgb": True, "resample": 3, "size": {"shortest_edge": 336},
         "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]} | EVERYTHING | CLIP,
        LLAVA, CLIP_TOWER),
    # Its tower's sides are no multiples of a patch.
    "granite-vision-3.2-2b": (
        "llava_next", "LlavaNextProcessor",
        {"image_processor_type": "LlavaNextImageProcessor", "crop_size": square(384), "do_center_crop": True, "do_pad": True,
         "resample": 3, "size": square(384),
         "image_grid_pinpoints": [[384, 384 * n] for n in range(1, 11)] + [[384 * n, 384] for n in range(2, 11)]} | EVERYTHING | HALF,
        {"patch_size": 14, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}, SIGLIP_TOWER),
    "llava-onevision-qwen2-7b": (
        "llava_onevision", "LlavaOnevisionProcessor",
        {"image_processor_type": "LlavaOnevisionImageProcessor", "do_convert_rgb": True, "do_pad": True, "resample": 3,
         "size": square(384),
         "image_grid_pinpoints": [[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)]} | EVERYTHING | HALF,
        {"num_image_tokens": 729, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}, SIGLIP_TOWER),
    "SmolVLM-256M": (
        "idefics3", "Idefics3Processor",
        {"image_processor_type": "Idefics3ImageProcessor", "do_convert_rgb": True, "do_image_splitting": True, "do_pad": True,
         "max_image_size": {"longest_edge": 512}, "resample": 1, "size": {"longest_edge": 2048}} | EVERYTHING | HALF,
        {"image_seq_len": 64}, {}),
    # Its processor cuts images into tiles, whatever this file says.
    "InternVL3-8B": (
        "internvl", "InternVLProcessor",
        {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_size": None, "crop_to_patches": False, "do_center_crop": None,
         "do_convert_rgb": True, "max_patches": 12, "min_patches": 1, "resample": 3, "size": square(448)} | EVERYTHING | IMAGENET,
        {"image_seq_length": 256}, {}),
    # As the processor is saved of what is published with code of its own, whose files have the names of other classes.
    "Phi-4-multimodal": (
        "phi4_multimodal", "Phi4MultimodalProcessor",
        {"image_processor_type": "Phi4MultimodalImageProcessorFast", "do_convert_rgb": True, "dynamic_hd": 36, "patch_size": 14,
         "resample": 3, "size": square(448)} | EVERYTHING | HALF, {}, {}),
    "pixtral-12b": (
        "llava", "PixtralProcessor",
        {"image_processor_type": "PixtralImageProcessor", "do_convert_rgb": True, "patch_size": square(16), "resample": 3,
         "size": {"longest_edge": 1024}} | EVERYTHING | CLIP,
        {"patch_size": 16, "image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}, {}),
    "Mistral-Small-3.1-24B": (
        "mistral3", "PixtralProcessor",
        {"image_processor_type": "PixtralImageProcessorFast", "do_convert_rgb": True, "patch_size": 14, "resample": 3,
         "size": {"longest_edge": 1540}} | EVERYTHING | CLIP,
        {"patch_size": 14, "spatial_merge_size": 2}, {}),
}
