//! Processors against transformers'.

#![expect(clippy::unwrap_used, reason = "tests")]

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

/// tests/golden/generate/images.py: transformers 5.23.0 with torchvision 0.28.0.
#[test]
fn processors_match_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases = header.metadata().clone().unwrap();
    assert!(cases.len() > 12);
    let mut wrong = Vec::new();
    for (name, about) in &cases {
        let about: Value = serde_json::from_str(about).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, json: &Value| {
            std::fs::write(folder.path().join(file), json.to_string()).unwrap();
        };
        write("preprocessor_config.json", &about["preprocessor"]);
        write("processor_config.json", &about["processor"]);
        let processor = Processor::open(folder.path(), &about["config"]).unwrap();
        assert_eq!(processor.image_token(), about["token"], "{name}");
        for image in about["images"].as_array().unwrap() {
            let [width, height] = [0, 1].map(|side| image["size"][side].as_u64().unwrap() as u32);
            let place = format!("{name} {width} {height}");
            let written = processor.prompt(width, height).unwrap();
            let text = short(&written.text, processor.image_token());
            if text != image["text"].as_str().unwrap() {
                wrong.push(format!("{place}: {text:?}, not {}", image["text"]));
            }
            let count = written.text.matches(processor.image_token()).count();
            assert_eq!(count, written.n_tokens, "{place}");
            let pixels = processor.pixels(&picture(width, height)).unwrap();
            if json!(pixels.shape) != image["shape"] {
                wrong.push(format!(
                    "{place}: {:?}, not {}",
                    pixels.shape, image["shape"]
                ));
                continue;
            }
            assert_eq!(pixels.values.len(), pixels.shape.iter().product::<usize>());
            let step = image["step"].as_u64().unwrap() as usize;
            let expected = file.tensor(&place).unwrap();
            let expected = expected.data().as_chunks().0.iter();
            let expected = expected.map(|&bytes| f32::from_le_bytes(bytes));
            let errors = pixels.values.iter().step_by(step).zip(expected);
            let worst = errors.map(|(found, expected)| (found - expected).abs());
            let worst = worst.fold(0.0, f32::max);
            // Less than half a step of a value of 0 to 255.
            if worst > 5e-3 {
                wrong.push(format!("{place}: values differ by {worst}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
            "patch_size is 0, expected a number above 0",
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
    let next = json!({"image_processor_type": "LlavaNextImageProcessor"});
    let error = opened(Some(&next), "llava_next").unwrap_err().to_string();
    assert!(error.contains("image_grid_pinpoints is absent"), "{error}");
    let clip = json!({"image_processor_type": "CLIPFeatureExtractor"});
    let clip = json!({"feature_extractor_type": clip["image_processor_type"]});
    assert!(opened(Some(&clip), "llava").is_ok());
    let error = opened(Some(&clip), "paligemma").unwrap_err().to_string();
    assert!(error.contains("\"paligemma\" writes images"), "{error}");

    let processor = opened(Some(&qwen), "qwen2_vl").unwrap();
    let error = processor.prompt(4000, 10).err().unwrap().to_string();
    assert!(
        error.contains("4000 by 10 pixels: one side is more than 200 times"),
        "{error}"
    );
    assert!(matches!(processor.prompt(0, 10), Err(Error::Shape { .. })));
    assert!(matches!(decode(b"no image"), Err(Error::Decode(_))));
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
