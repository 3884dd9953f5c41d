//! README's table of families, held against the code. `NIBBLE_WRITE_README=1 cargo test readme` writes it again.

use std::collections::BTreeMap;
use std::path::Path;

use crate::model::arch::model_types;
use crate::model::tests::golden_errors;
use crate::pack::{FAMILIES, Family};

const HEAD: &str = "| family | `model_type` | AWQ | GPTQ | difference | loaded by |\n| --- | --- | --- | --- | --- | --- |\n";

/// The least power of ten above an error, from 1e-5 on, and the next one, which may be the least on another CPU.
fn bounds(error: f64) -> [String; 2] {
    let exponent = error.max(1e-6).log10().floor() as i32 + 1;
    [exponent, exponent + 1].map(|exponent| format!("< 1e{exponent}"))
}

/// The table, with the bounds that `readme` has where they are right.
fn table(readme: &str) -> String {
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    for (model_type, error) in golden_errors() {
        let entry = worst.entry(model_type).or_default();
        *entry = entry.max(error);
    }
    let mut table = HEAD.to_owned();
    for model_type in model_types() {
        let family = Family::find(model_type)
            .unwrap_or_else(|| panic!("src/pack/families.rs lacks {model_type}"));
        let rows = bounds(worst[model_type]).map(|bound| {
            format!(
                "| {} | `{model_type}` | yes | yes | {bound} | {} |\n",
                family.name,
                family.loaders()
            )
        });
        let there = rows.iter().find(|row| readme.contains(*row));
        table.push_str(there.unwrap_or(&rows[0]));
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
    let expected = format!("{before}{}\n{after}", table(&readme));
    if std::env::var_os("NIBBLE_WRITE_README").is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    assert!(
        readme == expected,
        "README.md's table of families is not what the code says: NIBBLE_WRITE_README=1 cargo test readme"
    );
}
