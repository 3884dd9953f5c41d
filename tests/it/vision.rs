use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use nibble::model::Model;
use rustix::process::Signal;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::resume::interrupted;
use crate::support::{Finished, TinyModel, evaluate, json_file, nibble};

const SMALL: &[&str] = &[
    "--group-size",
    "-1",
    "--seq-len",
    "256",
    "--num-samples",
    "6",
    "--quiet",
];

/// The names, configurations and tensors of tests/golden/vision.safetensors.
fn cases() -> Vec<(String, Value, BTreeMap<String, Vec<usize>>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vision.safetensors");
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases = header.metadata().clone().unwrap().into_iter();
    let cases = cases.map(|(name, about)| {
        let mut about: Value = serde_json::from_str(&about).unwrap();
        let shapes = serde_json::from_value(about["tensors"].take()).unwrap();
        (name, about["config"].take(), shapes)
    });
    let mut cases: Vec<_> = cases.collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

/// The files of a processor that fits the case's tower, and what the chat template and the tokenizer call an image.
fn processor(name: &str, config: &Value) -> (Value, Value, &'static str, &'static str) {
    let clip = config["vision_config"]["model_type"] == "clip_vision_model";
    let image = ("<image>", "<image>");
    let square = json!({"height": 28, "width": 28});
    let strategy = config["vision_feature_select_strategy"].as_str();
    let strategy = strategy.unwrap_or(if clip { "default" } else { "full" });
    let llava = json!({"patch_size": 7, "vision_feature_select_strategy": strategy});
    let pinpoints = &config["image_grid_pinpoints"];
    let (preprocessor, processor, (placeholder, token)) = match config["model_type"]
        .as_str()
        .unwrap()
    {
        "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe" | "qwen3_5" => (
            json!({"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "min_pixels": 64, "max_pixels": 600}),
            json!({}),
            ("<|image_pad|>", "<|image_pad|>"),
        ),
        "glm4v" | "glm4v_moe" => (
            json!({"image_processor_type": "Glm4vImageProcessor", "patch_size": 4,
                   "size": {"shortest_edge": 128, "longest_edge": 1200}}),
            json!({}),
            ("<|image|>", "<|image|>"),
        ),
        "gemma3" => (
            json!({"image_processor_type": "Gemma3ImageProcessor", "size": square}),
            json!({"image_seq_length": config["mm_tokens_per_image"]}),
            ("<start_of_image>", "<image_soft_token>"),
        ),
        "gemma4" => (
            json!({"image_processor_type": "Gemma4ImageProcessor", "patch_size": 4, "max_soft_tokens": 6,
                   "pooling_kernel_size": config["vision_config"]["pooling_kernel_size"]}),
            json!({}),
            ("<|image|>", "<|image|>"),
        ),
        "phi4_multimodal" => (
            json!({"image_processor_type": "Phi4MultimodalImageProcessor", "patch_size": 7, "dynamic_hd": 3,
                   "size": config["vision_config"]["crop_size"]}),
            json!({}),
            ("<|endoftext10|>", "<|endoftext10|>"),
        ),
        "idefics3" => (
            json!({"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 56},
                   "max_image_size": {"longest_edge": 28}}),
            json!({"image_seq_len": 4}),
            image,
        ),
        "smolvlm" => (
            json!({"image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 42},
                   "max_image_size": {"longest_edge": 42}}),
            json!({"image_seq_len": 4}),
            image,
        ),
        "internvl" => (
            json!({"image_processor_type": "GotOcr2ImageProcessorFast", "size": square, "crop_to_patches": true,
                   "max_patches": 3}),
            json!({"image_seq_length": 4}),
            ("<IMG_CONTEXT>", "<IMG_CONTEXT>"),
        ),
        "llava_next" => (
            json!({"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 28}, "crop_size": square,
                   "image_grid_pinpoints": pinpoints}),
            llava,
            image,
        ),
        "llava_onevision" => (
            json!({"image_processor_type": "LlavaOnevisionImageProcessor", "size": square, "image_grid_pinpoints": pinpoints}),
            json!({"vision_aspect_ratio": config["vision_aspect_ratio"]}),
            image,
        ),
        "mllama" => (
            json!({"image_processor_type": "MllamaImageProcessor", "size": square, "max_image_tiles": 4}),
            json!({}),
            ("<|image|>", "<|image|>"),
        ),
        "paligemma" => (
            json!({"image_processor_type": "SiglipImageProcessor", "size": square, "image_seq_length": 16}),
            json!({}),
            image,
        ),
        "mistral3" => (
            json!({"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 56}}),
            json!({"patch_size": 7, "spatial_merge_size": 2}),
            ("[IMG]", "[IMG]"),
        ),
        "llava" if name == "pixtral" => (
            json!({"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 35}, "patch_size": 7}),
            json!({"patch_size": 7}),
            ("[IMG]", "[IMG]"),
        ),
        "llava" => (
            json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "crop_size": square}),
            llava,
            image,
        ),
        model_type => panic!("no processor for {model_type}"),
    };
    (preprocessor, processor, placeholder, token)
}

struct Seeing {
    model: TinyModel,
    data: tempfile::TempDir,
}

impl Seeing {
    /// A tiny model of the case with its processor, a chat template and a tokenizer that knows the placeholder; conversations
    /// about images, and text.
    fn new(name: &str, config: &Value, shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let mut config = config.clone();
        config["torch_dtype"] = "bfloat16".into();
        let model = TinyModel::with_tensors(&config, shapes);
        let (preprocessor, processor, placeholder, token) = processor(name, &config);
        let write = |file: &str, text: String| fs::write(model.path(file), text).unwrap();
        write("preprocessor_config.json", preprocessor.to_string());
        write("processor_config.json", processor.to_string());
        let template = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}\
             {{ 'IMAGE' if p.type == 'image' else p.text }}{% endfor %}{% endif %} {% endfor %}";
        write(
            "chat_template.jinja",
            template.replace("IMAGE", placeholder),
        );
        let mut tokenizer = json_file(&model.path("tokenizer.json"));
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64().unwrap() < 64);
        vocab.insert(token.to_owned(), json!(64));
        tokenizer["added_tokens"] = json!([{
            "id": 64, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }]);
        write("tokenizer.json", tokenizer.to_string());
        let seeing = Self {
            model,
            data: tempfile::tempdir().unwrap(),
        };
        seeing.draw("a.png", 30, 22, 3);
        seeing.draw("b.png", 17, 40, 7);
        let asked = |images: &[&str], answer: &str| {
            let mut parts: Vec<Value> = images
                .iter()
                .map(|name| json!({"type": "image", "image": name}))
                .collect();
            parts.push(json!({"type": "text", "text": "what is seen in these scenes"}));
            let turns = [
                json!({"role": "user", "content": parts}),
                json!({"role": "assistant", "content": answer}),
            ];
            json!({ "messages": turns }).to_string()
        };
        let mut lines = vec![
            asked(&["a.png"], "seven sons eat bread and honey"),
            asked(&["b.png"], "an open den then an inn"),
        ];
        // Short texts, between which images find their place.
        lines.extend((0..40).map(|_| {
            json!({"text": "the seven sons never seen in an open den eat bread and honey then sing ".repeat(2)}).to_string()
        }));
        fs::write(seeing.path("data.jsonl"), lines.join("\n")).unwrap();
        seeing
    }

    fn path(&self, name: &str) -> String {
        self.data.path().join(name).to_str().unwrap().to_owned()
    }

    fn draw(&self, name: &str, width: u32, height: u32, seed: u32) {
        let image = RgbImage::from_fn(width, height, |x, y| {
            Rgb([x * seed, y * 5 + seed, x * y].map(|value| (value % 256) as u8))
        });
        image.save(self.data.path().join(name)).unwrap();
    }

    fn quantize(&self, args: &[&str]) -> Finished {
        let data = self.path("data.jsonl");
        let (whole_rows, rest) = SMALL.split_at(2);
        let is_grouped = args.contains(&"--group-size");
        nibble(
            [
                if is_grouped { &[] } else { whole_rows },
                rest,
                args,
                &["--overwrite", "--calib-data", &data, self.model.path_str()],
            ]
            .concat(),
        )
    }
}

/// Features for the first layers, images that layers attend to, and inputs of the tokens for each layer are made again.
#[test]
fn a_run_that_goes_on_sees_what_it_saw() {
    for (name, config, shapes) in cases() {
        if !["qwen3_vl", "mllama", "gemma4"].contains(&&name[..]) {
            continue;
        }
        let seeing = Seeing::new(&name, &config, shapes);
        // Enough to take its time.
        let data = seeing.path("data.jsonl");
        let lines = fs::read_to_string(&data).unwrap() + "\n";
        fs::write(&data, lines.repeat(40)).unwrap();
        let weights = |output: &str| fs::read(format!("{output}/model.safetensors")).unwrap();
        let [whole, pieces] =
            ["whole", "pieces"].map(|name| seeing.model.path(name).to_str().unwrap().to_owned());
        let args = |output| {
            let own = ["--gptq", "--overwrite", "--calib-data", &data];
            let more = ["--num-samples", "200", "--output", output];
            let dir = [seeing.model.path_str()];
            [&SMALL[..4], &own, &more, &dir].concat()
        };
        let first = interrupted(&args(&pieces), Path::new(&pieces), Signal::KILL);
        assert!(first.is_some(), "{name}: too fast");
        for output in [&whole, &pieces] {
            let run = nibble(args(output));
            assert_eq!(run.code, 0, "{name}: {}", run.stderr);
            let went_on = run.stderr.contains("layers are finished");
            assert_eq!(went_on, output == &pieces, "{name}: {}", run.stderr);
        }
        assert!(weights(&whole) == weights(&pieces), "{name}");
    }
}

#[test]
fn every_family_is_calibrated_with_images() {
    for (name, config, shapes) in cases() {
        let plan = Model::from_config(&config).unwrap();
        let language: Vec<String> = plan.tensors().into_iter().map(|tensor| tensor.0).collect();
        let seeing = Seeing::new(&name, &config, shapes);
        for (method, directory) in [("--gptq", "GPTQ-8bit"), ("--awq", "AWQ-4bit")] {
            let run = seeing.quantize(&[method]);
            assert_eq!(run.code, 0, "{name} {method}: {}", run.stderr);
            assert!(!run.stderr.contains("text alone"), "{name}: {}", run.stderr);
            let output = seeing.model.path(directory);
            let report = json_file(&output.join("quantization_report.json"));
            let calibration = &report["calibration"];
            let number = |key: &str| calibration[key].as_u64().unwrap();
            assert!(number("images") >= 4, "{name}: {calibration}");
            assert!(
                (4..number("tokens")).contains(&number("image_tokens")),
                "{name}: {calibration}"
            );
            for linear in report["linears"].as_array().unwrap() {
                let tokens = ["tokens", "image_tokens"].map(|key| linear[key].as_u64().unwrap());
                let all = ["tokens", "image_tokens"].map(number);
                let layer = linear["layer"].as_u64().unwrap() as usize;
                if plan.layers[layer].config.looks {
                    // Only what sees an image, or what is seen of them.
                    assert!((1..=tokens[0]).contains(&tokens[1]), "{name}: {linear}");
                } else if linear["routed_tokens"].is_null() {
                    assert_eq!(tokens, all, "{name}: {linear}");
                } else {
                    // An expert sees a part of both.
                    assert!(tokens[1] <= all[1].min(tokens[0]), "{name}: {linear}");
                }
            }
            let log = fs::read_to_string(output.join("quantization_report.log")).unwrap();
            assert!(log.contains("of the tokens stand for them"), "{log}");
            // What sees is as it was.
            let [before, after] = [
                seeing.model.path("model.safetensors"),
                output.join("model.safetensors"),
            ]
            .map(|path| fs::read(path).unwrap());
            let [before, after] =
                [&before, &after].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
            let mut kept = 0;
            for (tensor, view) in before.tensors() {
                if !language.contains(&tensor) {
                    assert_eq!(after.tensor(&tensor).unwrap(), view, "{name}: {tensor}");
                    kept += 1;
                }
            }
            assert!(kept > 10, "{name}: {kept}");
            let found = evaluate(output.to_str().unwrap(), seeing.model.path_str(), "24");
            let divergence = found["kl_divergence"].as_f64().unwrap();
            // Whole rows in four bits, of a random model.
            let bound = if method == "--gptq" { 0.03 } else { 2.0 };
            assert!(divergence < bound, "{name} {method}: {divergence}");
        }
    }
}

fn first(wanted: &str) -> Seeing {
    let mut cases = cases().into_iter();
    let (name, config, shapes) = cases.find(|case| case.0 == wanted).unwrap();
    Seeing::new(&name, &config, shapes)
}

/// Of layers that attend to images, all but their norms and gates is quantized where there are images, and else nothing is.
#[test]
fn layers_that_look_are_quantized_if_there_is_something_to_see() {
    let seeing = first("mllama");
    let written = |directory: &str| {
        let bytes = fs::read(seeing.model.path(directory).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter();
        let tensors = tensors.map(|(name, view)| (name, view.dtype(), view.data().to_vec()));
        let mut tensors: Vec<_> = tensors.collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    let looking = |name: &str| {
        let layer = name.strip_prefix("language_model.model.layers.");
        layer.is_some_and(|layer| layer.starts_with("1.") || layer.starts_with("3."))
    };
    let count = |directory: &str, suffix: &str| {
        let names = written(directory).into_iter().map(|tensor| tensor.0);
        names
            .filter(|name| looking(name) && name.ends_with(suffix))
            .count()
    };
    for (method, directory, bound) in [("--gptq", "GPTQ-8bit", 0.03), ("--awq", "AWQ-4bit", 2.0)] {
        let run = seeing.quantize(&[method]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(!run.stderr.contains("stay in float16"), "{}", run.stderr);
        assert_eq!(count(directory, ".qweight"), 14, "{method}");
        assert_eq!(count(directory, "_proj.weight"), 0, "{method}");
        let output = seeing.model.path(directory);
        let found = divergence_on_images(&seeing, output.to_str().unwrap());
        assert!(found < bound, "{method}: {found}");
        let gates = |directory| {
            let all = written(directory).into_iter();
            all.filter(|tensor| tensor.0.ends_with("_gate"))
                .collect::<Vec<_>>()
        };
        assert_eq!((gates("."), gates(".").len()), (gates(directory), 4));
    }
    let text = "the seven sons never seen in an open den ".repeat(250);
    let data = seeing.path("data.jsonl");
    fs::write(&data, json!({ "text": text }).to_string()).unwrap();
    for (method, directory) in [("--gptq", "GPTQ-8bit"), ("--awq", "AWQ-4bit")] {
        let run = seeing.quantize(&[method]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(count(directory, ".qweight"), 0);
        assert_eq!(count(directory, "_proj.weight"), 14);
        let log = fs::read_to_string(seeing.model.path(directory).join("quantization_report.log"));
        assert!(
            log.unwrap().contains("14 linears stay in float16"),
            "{method}"
        );
        let config = json_file(&seeing.model.path(directory).join("config.json"));
        // GPTQ's rules are expressions.
        let quantization = config["quantization_config"]
            .to_string()
            .replace("\\\\.", ".");
        assert!(
            quantization.contains("layers.3.mlp.down_proj"),
            "{quantization}"
        );
        assert!(
            quantization.contains("layers.1.cross_attn.q_proj"),
            "{quantization}"
        );
    }
    let only = [
        "--gptq",
        "--overwrite",
        "--only",
        "cross_attn",
        "--calib-data",
        &data,
    ];
    let run = nibble([SMALL, &only, &[seeing.model.path_str()]].concat());
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(
        run.stderr
            .contains("there is no image to calibrate them with"),
        "{}",
        run.stderr
    );
}

/// How far the model in `dir` is from the original, on words of conversations with images.
fn divergence_on_images(seeing: &Seeing, dir: &str) -> f64 {
    let args = [
        "eval",
        dir,
        "--reference",
        seeing.model.path_str(),
        "--text",
        &seeing.path("data.jsonl"),
    ];
    let run = nibble([&args[..], &["--windows", "8", "--seq-len", "96", "--json"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let found: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(found["images"].as_u64().unwrap() > 0, "{found}");
    found["kl_divergence"].as_f64().unwrap()
}

#[test]
fn what_sees_is_quantized_where_it_is_asked_for() {
    for name in [
        "qwen2_5_vl",
        "gemma4_variant",
        "llava_two_layers",
        "internvl",
        "mllama",
        "qwen3_vl",
    ] {
        let seeing = first(name);
        let run = seeing.quantize(&["--gptq", "--quantize-vision"]);
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        assert!(run.stderr.contains("--quantize-vision"), "{}", run.stderr);
        let output = seeing.model.path("GPTQ-8bit");
        let tower = json_file(&output.join("quantization_report.json"))["tower"].take();
        let count = tower["linears"].as_u64().unwrap() as usize;
        let error = tower["relative_weight_error"].as_f64().unwrap();
        assert!(
            count >= 8 && (1e-7..1e-4).contains(&error),
            "{name}: {tower}"
        );
        let bytes = fs::read(output.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let language = seeing.model.path("config.json");
        let plan = Model::from_config(&json_file(&language)).unwrap();
        let language: usize = plan
            .layers
            .iter()
            .map(|layer| layer.quantized().count())
            .sum();
        let names = tensors.names();
        let packed = names
            .iter()
            .filter(|name| name.ends_with(".qweight"))
            .count();
        assert_eq!(packed, language + count, "{name}");
        let divergence = divergence_on_images(&seeing, output.to_str().unwrap());
        assert!((0.0..0.03).contains(&divergence), "{name}: {divergence}");
        // The tower's part of it, alone; a width that the groups do not divide stays.
        let run = seeing.quantize(&[
            "--gptq",
            "--quantize-vision",
            "--only",
            "vis",
            "--group-size",
            "16",
        ]);
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        let alone = divergence_on_images(&seeing, output.to_str().unwrap());
        assert!(
            alone > 1e-9 && alone < divergence,
            "{name}: {alone} {divergence}"
        );
        let report = json_file(&output.join("quantization_report.json"));
        let in_float = report["tower"]["in_float"].as_array().unwrap().len();
        let has_misfits = name.starts_with("qwen") || name == "gemma4_variant";
        assert_eq!(in_float > 0, has_misfits, "{name}: {report}");
        assert_eq!(report["linears"].as_array().unwrap().len(), 0);
    }
    for (args, code, word) in [
        (&["--awq", "--quantize-vision"][..], 2, "8 bits"),
        (&["--gptq", "--bits", "4", "--quantize-vision"], 2, "8 bits"),
    ] {
        let run = first("llava").quantize(args);
        assert_eq!(run.code, code, "{}", run.stderr);
        assert!(run.stderr.contains(word), "{}", run.stderr);
    }
    let blind = TinyModel::new("llama");
    let run = nibble([SMALL, &["--gptq", "--quantize-vision", blind.path_str()]].concat());
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("llama has no vision tower"),
        "{}",
        run.stderr
    );
}

/// Other images of the same size calibrate otherwise.
#[test]
fn what_is_seen_matters() {
    for name in ["gemma4", "mllama", "phi4_multimodal", "qwen3_vl"] {
        images_matter(&first(name));
    }
}

fn images_matter(seeing: &Seeing) {
    let scales = || {
        assert_eq!(seeing.quantize(&["--awq"]).code, 0);
        fs::read(seeing.model.path("AWQ-4bit/model.safetensors")).unwrap()
    };
    let before = scales();
    assert!(before == scales());
    seeing.draw("a.png", 30, 22, 11);
    assert!(before != scales());
}

#[test]
fn images_that_cannot_be_shown_are_refused_by_name() {
    let seeing = first("llava");
    let refused = |words: &[&str]| {
        let run = seeing.quantize(&["--gptq"]);
        assert_eq!(run.code, 3, "{}", run.stderr);
        assert!(
            words.iter().all(|word| run.stderr.contains(word)),
            "{}",
            run.stderr
        );
        assert!(!seeing.model.path("GPTQ-8bit").exists());
    };
    fs::write(seeing.path("a.png"), b"not a picture").unwrap();
    refused(&["data.jsonl:1: ", "a.png", "PNG, JPEG or WebP"]);
    fs::remove_file(seeing.path("a.png")).unwrap();
    refused(&["data.jsonl:1: ", "no image ", "a.png"]);
    seeing.draw("a.png", 30, 22, 3);
    fs::write(
        seeing.model.path("chat_template.jinja"),
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}\
         {% if p.type == 'text' %}{{ p.text }}{% else %}{{ '' }}{% endif %}{% endfor %}{% endif %}{% endfor %}",
    )
    .unwrap();

    fs::remove_file(seeing.model.path("chat_template.jinja")).unwrap();
    let processor = seeing.model.path("processor_config.json");
    let kept = fs::read_to_string(&processor).unwrap();
    fs::write(
        &processor,
        kept.replace("\"patch_size\":7", "\"patch_size\":14"),
    )
    .unwrap();
    refused(&["the tower makes 16 vectors of it", "ask for 4 tokens"]);
    fs::write(&processor, kept).unwrap();
    fs::remove_file(seeing.model.path("preprocessor_config.json")).unwrap();
    refused(&[
        "no preprocessor_config.json",
        "calibration data without images",
    ]);
    // Without images none of this is asked for.
    let text = "the seven sons never seen in an open den ".repeat(120);
    fs::write(
        seeing.path("data.jsonl"),
        json!({ "text": text }).to_string(),
    )
    .unwrap();
    let run = seeing.quantize(&["--gptq"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let log = fs::read_to_string(seeing.model.path("GPTQ-8bit/quantization_report.log")).unwrap();
    assert!(log.contains("text alone to calibrate with"), "{log}");
}
