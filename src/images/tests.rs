//! Processors against transformers'.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use super::*;
use safetensors::SafeTensors;
use serde_json::json;

/// tests/golden/generate/images.py has the same.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let value = |c: u32| {
            let squares = 40 * ((x / 16 + y / 16) % 2);
            ((x * (3 + c) + y * (5 - c) + squares + (x * y / 7) % 31) % 256) as u8
        };
        image::Rgb([value(0), value(1), value(2)])
    })
}

/// Runs of `token` as their length.
fn short(text: &str, token: &str) -> String {
    let mut made = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let bare = rest.trim_start_matches(token);
        let count = (rest.len() - bare.len()) / token.len();
        if count > 0 {
            made.extend(["[", &count.to_string(), "]"]);
        }
        let end = bare.find(token).unwrap_or(bare.len());
        made += &bare[..end];
        rest = &bare[end..];
    }
    made
}

/// tests/golden/generate/images.py
fn golden() -> (Vec<u8>, BTreeMap<String, Value>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases = header.metadata().clone().unwrap().into_iter();
    let cases = cases.map(|(name, about)| (name, serde_json::from_str(&about).unwrap()));
    let cases = cases.collect();
    (bytes, cases)
}

/// The processor of a directory with these files.
fn processor_of(files: &Value) -> Result<Processor, Error> {
    let folder = tempfile::tempdir().unwrap();
    for (name, json) in files.as_object().unwrap() {
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    Processor::open(folder.path(), &files["config.json"])
}

/// What is wrong with the text and the shape for an image of this size, and its place in the golden file.
fn compare_text(
    name: &str,
    processor: &Processor,
    image: &Value,
    wrong: &mut Vec<String>,
) -> ([u32; 2], String) {
    let [width, height] = [0, 1].map(|side| image["size"][side].as_u64().unwrap() as u32);
    let place = format!("{name} {width} {height}");
    let written = processor.prompt(width, height).unwrap();
    let text = short(&written.text, processor.image_token());
    if text != image["text"].as_str().unwrap() {
        wrong.push(format!("{place}: {text:?}, not {}", image["text"]));
    }
    let count = written.text.matches(processor.image_token()).count();
    assert_eq!(written.n_tokens, count, "{place}");
    ([width, height], place)
}

/// transformers 5.23.0 with torchvision 0.28.0.
#[test]
fn processors_match_transformers() {
    let (bytes, cases) = golden();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert!(cases.len() > 30);
    let mut wrong = Vec::new();
    for (name, about) in &cases {
        let processor = processor_of(&about["files"]).unwrap();
        assert_eq!(processor.image_token(), about["token"], "{name}");
        assert_eq!(processor.placeholder(), about["placeholder"], "{name}");
        for image in about["texts"].as_array().unwrap() {
            let ([width, height], place) = compare_text(name, &processor, image, &mut wrong);
            let shape = processor.shape(width, height).unwrap();
            if json!(shape) != image["shape"] {
                wrong.push(format!("{place}: {shape:?}, not {}", image["shape"]));
            }
        }
        for size in about["refused"].as_array().into_iter().flatten() {
            let [width, height] = [0, 1].map(|side| size[side].as_u64().unwrap() as u32);
            let found = processor.prompt(width, height);
            assert!(matches!(found, Err(Error::Shape { .. })), "{name} {size}");
        }
        for image in about["images"].as_array().unwrap() {
            let ([width, height], place) = compare_text(name, &processor, image, &mut wrong);
            let pixels = processor.pixels(&picture(width, height)).unwrap();
            if json!(pixels.shape) != image["shape"] {
                wrong.push(format!(
                    "{place}: {:?}, not {}",
                    pixels.shape, image["shape"]
                ));
                continue;
            }
            assert_eq!(pixels.values.len(), pixels.shape.iter().product::<usize>());
            if let Some(kept) = image.get("kept") {
                assert_eq!(json!(pixels.grid), image["grid"], "{place}");
                assert_eq!(json!(pixels.size), *kept, "{place}");
            }
            let step = image["step"].as_u64().unwrap() as usize;
            let expected = file.tensor(&place).unwrap();
            let expected = expected.data().as_chunks().0.iter();
            let expected = expected.map(|&bytes| f32::from_le_bytes(bytes));
            let errors = pixels.values.iter().step_by(step).zip(expected);
            let worst = errors.map(|(found, expected)| (found - expected).abs());
            let worst = worst.fold(0.0, f32::max);
            let squares = pixels.values.iter().map(|&value| f64::from(value).powi(2));
            let mean_square = squares.sum::<f64>() / pixels.values.len() as f64;
            let mean_error = (mean_square - image["mean_square"].as_f64().unwrap()).abs();
            // The resampled bytes are the same; what is left is how floats are rounded.
            if worst > 1e-5 || mean_error > 1e-5 {
                wrong.push(format!(
                    "{place}: values differ by {worst}, their mean squares by {mean_error}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Pillow 12.3.0, and transformers' conversion to RGB.
#[test]
fn files_are_decoded_as_pillow_does() {
    let (bytes, _) = golden();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut n_files = 0;
    for name in file.names() {
        let Some(name) = name.strip_prefix("file ") else {
            continue;
        };
        n_files += 1;
        let encoded = file.tensor(&format!("file {name}")).unwrap();
        let decoded = file.tensor(&format!("decoded {name}")).unwrap();
        let image = decode(encoded.data()).unwrap();
        let shape = [image.height() as usize, image.width() as usize, 3];
        assert_eq!(shape, decoded.shape(), "{name}");
        let half = &encoded.data()[..encoded.data().len() / 2];
        assert!(matches!(decode(half), Err(Error::Decode(_))), "{name}");
        let errors = image.as_raw().iter().zip(decoded.data());
        let worst = errors.map(|(&found, &expected)| found.abs_diff(expected));
        // JPEG leaves the rounding of its transforms to the decoder.
        let bound = if name.ends_with("jpg") { 2 } else { 0 };
        let worst = worst.max().unwrap();
        assert!(worst <= bound, "{name}: {worst}");
    }
    assert_eq!(n_files, 14);
}

fn opened(preprocessor: Option<&Value>, model_type: &str) -> Result<Processor, Error> {
    let folder = tempfile::tempdir().unwrap();
    if let Some(json) = preprocessor {
        std::fs::write(
            folder.path().join("preprocessor_config.json"),
            json.to_string(),
        )
        .unwrap();
    }
    Processor::open(folder.path(), &json!({"model_type": model_type}))
}

#[test]
fn what_cannot_be_prepared_is_refused_by_name() {
    let error = opened(None, "qwen2_vl").unwrap_err().to_string();
    assert!(
        error.contains(": no preprocessor_config.json, and no image_processor"),
        "{error}"
    );
    let qwen = json!({"image_processor_type": "Qwen2VLImageProcessorFast"});
    for (changes, reason) in [
        (
            json!({"image_processor_type": "DonutImageProcessor"}),
            "image_processor_type is \"DonutImageProcessor\", expected one of CLIP",
        ),
        (
            json!({"patch_size": 0}),
            "patch_size is 0, expected a number from 1 to 16384",
        ),
        (
            json!({"resample": 9}),
            "resample is 9, expected 1 (Lanczos)",
        ),
        (
            json!({"image_mean": [1, 2]}),
            "image_mean is [1,2], expected three numbers",
        ),
        (
            json!({"do_resize": false}),
            "do_resize is false, expected true",
        ),
    ] {
        let mut json = qwen.clone();
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        let error = opened(Some(&json), "qwen2_vl").unwrap_err().to_string();
        assert!(
            error.contains("preprocessor_config.json: ") && error.contains(reason),
            "{error}"
        );
    }
    for (kind, size) in [
        ("CLIPImageProcessor", json!({"shortest_edge": 0})),
        ("SiglipImageProcessor", json!({"height": 224})),
        ("PixtralImageProcessor", json!({"longest_edge": 1e9})),
        ("GotOcr2ImageProcessor", json!("large")),
        ("MllamaImageProcessor", json!({"height": 10, "width": 20})),
    ] {
        let json = json!({"image_processor_type": kind, "size": size});
        let error = opened(Some(&json), "llava").unwrap_err().to_string();
        let reason = format!("preprocessor_config.json: size is {size}, expected ");
        assert!(error.contains(&reason), "{error}");
    }
    let next = json!({"image_processor_type": "LlavaNextImageProcessor"});
    let error = opened(Some(&next), "llava_next").unwrap_err().to_string();
    assert!(error.contains("image_grid_pinpoints is absent"), "{error}");
    let clip = json!({"image_processor_type": "CLIPFeatureExtractor"});
    let clip = json!({"feature_extractor_type": clip["image_processor_type"]});
    assert!(opened(Some(&clip), "llava").is_ok());
    let error = opened(Some(&clip), "donut").unwrap_err().to_string();
    assert!(error.contains("\"donut\" writes images"), "{error}");

    for (changes, reason) in [
        (
            json!({"size": {"height": 448, "width": 224}}),
            "as high as wide",
        ),
        (
            json!({"size": 440}),
            "patch_size is absent, expected a divisor of the size, 440",
        ),
        (
            json!({"patch_size": 15}),
            "patch_size is 15, expected a divisor of the size, 448",
        ),
        (
            json!({"dynamic_hd": 0}),
            "dynamic_hd is 0, expected a number from 1 to 16384",
        ),
        (
            json!({"resample": 2}),
            "resample is 2, expected 3 (bicubic)",
        ),
    ] {
        let mut json = changes.clone();
        json["image_processor_type"] = json!("Phi4MultimodalImageProcessor");
        let error = opened(Some(&json), "phi4_multimodal")
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
    let phi = json!({"image_processor_type": "Phi4MultimodalImageProcessor"});
    let error = opened(Some(&phi), "qwen2_vl").unwrap_err().to_string();
    assert!(error.contains("\"qwen2_vl\" writes images"), "{error}");
    let phi = opened(Some(&phi), "phi4_multimodal").unwrap();
    let error = phi.pixels(&picture(401, 3)).unwrap_err().to_string();
    assert!(
        error.contains("401 by 3 pixels: 448 by 3 pixels are left of it in 448 by 448, no side may have less than 10"),
        "{error}"
    );
    assert!(matches!(phi.shape(u32::MAX, 1), Err(Error::Shape { .. })));
    assert!(matches!(phi.shape(10, 0), Err(Error::Shape { .. })));

    let processor = opened(Some(&qwen), "qwen2_vl").unwrap();
    let error = processor.prompt(4000, 10).err().unwrap().to_string();
    assert!(
        error.contains("4000 by 10 pixels: one side is more than 200 times"),
        "{error}"
    );
    assert!(matches!(processor.prompt(0, 10), Err(Error::Shape { .. })));
    let gemma = json!({"image_processor_type": "Gemma4ImageProcessor"});
    let gemma = opened(Some(&gemma), "gemma4").unwrap();
    assert!(gemma.prompt(40_000, 10).is_ok());
    assert!(matches!(gemma.shape(0, 10), Err(Error::Shape { .. })));
    assert!(matches!(decode(b"no image"), Err(Error::Decode(_))));
    assert!(matches!(decode(b""), Err(Error::Decode(_))));
}

/// transformers 5 nests what it saves, and reads the nested settings where there are both.
#[test]
fn nested_settings_come_first() {
    let clip = |side: u32| json!({"image_processor_type": "CLIPImageProcessor", "size": side, "crop_size": side});
    let both = json!({
        "config.json": {"model_type": "llava"},
        "preprocessor_config.json": clip(112),
        "processor_config.json": {"image_processor": clip(56)},
    });
    let processor = processor_of(&both).unwrap();
    assert_eq!(processor.shape(9, 9).unwrap(), [1, 3, 56, 56]);
    let mut broken = both.clone();
    broken["processor_config.json"]["image_processor"]["patch_size"] = json!(0);
    broken["processor_config.json"]["image_processor"]["crop_size"] = json!([1]);
    let error = processor_of(&broken).unwrap_err().to_string();
    assert!(
        error.contains("processor_config.json: crop_size is [1], expected a number"),
        "{error}"
    );
}

/// Phi-4's processor has the token of its tokenizer, which says it in one of three places, or by its number alone.
#[test]
fn the_token_is_the_tokenizer_s() {
    let preprocessor = json!({"image_processor_type": "Phi4MultimodalImageProcessor"});
    for (tokenizer, token) in [
        (json!({}), "<|endoftext10|>"),
        (json!({"image_token": "<a>"}), "<a>"),
        (
            json!({"image_token": {"content": "<b>", "special": true}}),
            "<b>",
        ),
        (
            json!({"image_token": null, "extra_special_tokens": {"image_token": "<c>"}}),
            "<c>",
        ),
        (
            json!({"model_specific_special_tokens": {"image_token": "<d>"}}),
            "<d>",
        ),
        (json!({"extra_special_tokens": ["<e>"]}), "<endoftext>"),
        (
            json!({"added_tokens_decoder": {"200010": {"content": "<f>"}}}),
            "<f>",
        ),
    ] {
        let files = json!({
            "config.json": {"model_type": "phi4_multimodal"},
            "preprocessor_config.json": preprocessor,
            "processor_config.json": {"image_token": "<endoftext>"},
            "tokenizer_config.json": tokenizer,
        });
        let mut files = files;
        if ["<|endoftext10|>", "<f>"].contains(&token) {
            files["processor_config.json"] = json!({});
        }
        let processor = processor_of(&files).unwrap();
        assert_eq!(processor.image_token(), token);
        assert_eq!(processor.placeholder(), token);
        // A whole of 16 squares a side, and 8 rows of 16 of the image.
        let written = processor.prompt(448, 224).unwrap();
        assert_eq!(written.n_tokens, 8 * 17 + 1 + 16 * 17);
        assert_eq!(written.text, token.repeat(written.n_tokens));
    }
}

/// Half transparent red on white.
#[test]
fn transparent_parts_are_laid_on_white() {
    let image = image::RgbaImage::from_pixel(2, 1, image::Rgba([255, 0, 0, 128]));
    let mut bytes = Vec::new();
    image
        .write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    assert_eq!(decode(&bytes).unwrap().get_pixel(1, 0).0, [255, 127, 127]);
}
