//! README's table of families, held against the code. `NIBBLE_WRITE_README=1 cargo test readme` writes it again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::model::arch::model_types;
use crate::model::tests::golden_errors;
use crate::pack::{FAMILIES, Family};

const HEAD: &str = "| family | `model_type` | AWQ | GPTQ | difference | loaded by |\n| --- | --- | --- | --- | --- | --- |\n";

/// The least power of ten above an error, so that another CPU's last bits change nothing.
fn bound(error: f64) -> String {
    let exponent = error.max(1e-6).log10().floor() as i32 + 1;
    format!("< 1e{exponent}")
}

fn table() -> String {
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    for (model_type, error) in golden_errors() {
        let entry = worst.entry(model_type).or_default();
        *entry = entry.max(error);
    }
    let mut table = HEAD.to_owned();
    for model_type in model_types() {
        let family = Family::find(model_type)
            .unwrap_or_else(|| panic!("src/pack/families.rs lacks {model_type}"));
        writeln!(
            table,
            "| {} | `{model_type}` | yes | yes | {} | {} |",
            family.name,
            bound(worst[model_type]),
            family.loaders()
        )
        .unwrap();
    }
    table
}

#[test]
fn the_table_of_families_is_what_the_code_says() {
    let known = |family: &Family| model_types().contains(&family.model_type);
    assert!(FAMILIES.iter().all(known));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme
        .split_once("| family | `model_type`")
        .expect("README has the table");
    let (_, after) = rest.split_once("\n\n").expect("a line after the table");
    let expected = format!("{before}{}\n{after}", table());
    if std::env::var_os("NIBBLE_WRITE_README").is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    assert!(
        readme == expected,
        "README.md's table of families is not what the code says: NIBBLE_WRITE_README=1 cargo test readme"
    );
}
