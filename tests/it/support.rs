use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nibble::device::Choice;
use nibble::model::Model;
use nibble::model::formula::FormulaWeights;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tensor's name, dtype, shape and bytes.
pub type StoredTensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// What a finished program left.
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The environment variable with the device that the tests' runs compute on, such as `cuda`, in float32, for which the tests'
/// bounds hold; without it the program chooses both.
const DEVICE: &str = "NIBBLE_TEST_DEVICE";

/// The device that runs compute on, where [`DEVICE`] asks for one.
pub fn device() -> Option<Choice> {
    let device = std::env::var(DEVICE).ok()?;
    Some(device.parse().unwrap())
}

/// Runs the program, with the plain log of a pipe.
pub fn nibble<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Finished {
    finished(command(args))
}

/// The program on the device of [`device`].
pub fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nibble"));
    let args: Vec<A> = args.into_iter().collect();
    command.args(&args);
    // Where the program computes, and the test asks for no device itself.
    let chosen = ["inspect", "devices", "--device", "--force-cpu"].map(OsStr::new);
    if let Ok(device) = std::env::var(DEVICE)
        && !args.iter().any(|arg| chosen.contains(&arg.as_ref()))
    {
        command.args(["--device", &device]);
        if !args.iter().any(|arg| arg.as_ref() == "--dtype") {
            command.args(["--dtype", "float32"]);
        }
    }
    command
}

/// Runs a program to its end.
pub fn finished(mut command: Command) -> Finished {
    let output = command.output().unwrap();
    Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What `nibble eval` finds of the model in `dir` beside `reference`, on four windows of `seq_len` tokens.
pub fn evaluate(dir: &str, reference: &str, seq_len: &str) -> Value {
    let run = nibble([
        "eval",
        dir,
        "--reference",
        reference,
        "--windows",
        "4",
        "--seq-len",
        seq_len,
        "--json",
    ]);
    assert_eq!(run.code, 0, "{dir}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

pub fn json_file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A two-layer model with formula weights, in a directory of its own; inputs of 64 and 96 columns, grouped-query attention.
pub struct TinyModel {
    dir: TempDir,
}

/// Words of the tokenizer: enough for the calibration text below.
const VOCAB_SIZE: usize = 128;

impl TinyModel {
    /// A bfloat16 model of the family.
    pub fn new(model_type: &str) -> Self {
        let mut config = json!({
            "architectures": [match model_type {
                "mistral" => "MistralForCausalLM",
                "qwen2" => "Qwen2ForCausalLM",
                "qwen3" => "Qwen3ForCausalLM",
                _ => "LlamaForCausalLM",
            }],
            "model_type": model_type, "torch_dtype": "bfloat16", "hidden_act": "silu",
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 256, "vocab_size": VOCAB_SIZE, "tie_word_embeddings": model_type == "llama",
        });
        if model_type == "mistral" {
            config["sliding_window"] = 8.into();
        }
        Self::of(&config)
    }

    /// A bfloat16 model with this configuration, whose vocabulary the tokenizer's words fit into.
    pub fn of(config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        let fit = |config: &mut Value| {
            for key in ["vocab_size", "vocab_size_per_layer_input"] {
                config[key] = VOCAB_SIZE.into();
            }
        };
        fit(&mut config);
        config["torch_dtype"] = "bfloat16".into();
        if let Some(text) = config.get_mut("text_config") {
            fit(text);
        }
        let model = Model::from_config(&config).unwrap();
        FormulaWeights::new(&model, tch::Kind::BFloat16)
            .save(&config, dir.path())
            .unwrap();
        let tiny = Self { dir };
        tiny.write_tokenizer();
        tiny
    }

    /// A bfloat16 model with this configuration as it is and tensors of these shapes.
    pub fn with_tensors(config: &Value, shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        FormulaWeights::of(shapes, tch::Kind::BFloat16)
            .save(config, dir.path())
            .unwrap();
        let tiny = Self { dir };
        tiny.write_tokenizer();
        tiny
    }

    /// Single letters and two-letter words, split at white space: any text has some.
    fn write_tokenizer(&self) {
        let letters = ('a'..='z').map(String::from);
        let pairs = ('a'..='z').flat_map(|a| ["e", "n", "s"].map(|b| format!("{a}{b}")));
        let words = letters.chain(pairs).take(VOCAB_SIZE - 1);
        let mut vocab: serde_json::Map<String, Value> = words
            .enumerate()
            .map(|(id, word)| (word, json!(id + 1)))
            .collect();
        vocab.insert("<unk>".into(), json!(0));
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z][ens]?"}, "behavior": "Removed", "invert": true},
            "post_processor": null,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        fs::write(self.path("tokenizer.json"), tokenizer.to_string()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn path_str(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// Names of everything in the directory.
    pub fn listing(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn edit_config(&self, key: &str, value: Value) {
        let mut config = json_file(&self.path("config.json"));
        config[key] = value;
        fs::write(self.path("config.json"), config.to_string()).unwrap();
    }

    /// Replaces all tensors by what `change` makes of each: names, dtypes, shapes and bytes.
    pub fn restore(&self, change: impl Fn(&SafeTensors<'_>) -> Vec<StoredTensor>) {
        let path = self.path("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let changed = change(&SafeTensors::deserialize(&bytes).unwrap());
        let views = changed.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).unwrap();
            (name.as_str(), view)
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }

    /// Overwrites one value of a tensor.
    pub fn poison(&self, name: &str, value: f32) {
        let path = self.path("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let base = bytes.as_ptr() as usize;
        let data = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensor(name)
            .unwrap()
            .data()
            .as_ptr() as usize
            - base;
        bytes[data + 2..data + 4].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
        fs::write(&path, bytes).unwrap();
    }

    /// Splits the one file into two with an index.
    pub fn shard_in_two(&self) {
        let whole = self.path("model.safetensors");
        let bytes = fs::read(&whole).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut shards: [Vec<(String, TensorView<'_>)>; 2] = Default::default();
        for (index, name) in tensors.names().into_iter().enumerate() {
            shards[index % 2].push((name.to_owned(), tensors.tensor(name).unwrap()));
        }
        let mut weight_map = serde_json::Map::new();
        for (number, shard) in shards.into_iter().enumerate() {
            let file = format!("model-0000{}-of-00002.safetensors", number + 1);
            weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), json!(file))));
            safetensors::serialize_to_file(shard, None, &self.path(&file)).unwrap();
        }
        let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": weight_map});
        fs::write(self.path("model.safetensors.index.json"), index.to_string()).unwrap();
        fs::remove_file(whole).unwrap();
    }
}
