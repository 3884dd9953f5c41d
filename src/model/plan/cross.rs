//! A layer that attends to images, in self-attention's place.

use super::{Fold, Kept, Mix, NormSite, Resolver, Role, Slot, Stage, StageInput};
use crate::model::arch::{Attention, CrossAttention};

impl Resolver<'_> {
    /// What attends to images, where it does.
    pub(super) fn looks(&self) -> Option<&CrossAttention> {
        self.arch
            .cross_attention
            .as_ref()
            .filter(|_| self.layer.looks)
    }

    /// [`Self::attention`] to images.
    pub(super) fn cross_attention(&self, row: &CrossAttention) -> (Vec<Stage>, Stage) {
        let width = self.rows(Role::Q);
        let (input, fold) = self.input(NormSite::Attention);
        let keys_values = self.linears(row.keys_values, false);
        let attention = Attention {
            output: row.output,
            ..self.arch.attention
        };
        let output = self.attention_output(&attention, &keys_values);
        let stage = |name, (input, fold), linears, mix| Stage {
            name,
            input,
            in_features: self.config.hidden_size,
            linears,
            dense: Vec::new(),
            experts: Vec::new(),
            mixes: vec![mix],
            fold,
            remakable: false,
        };
        let queries = stage(
            "queries",
            (input, fold),
            self.linears(&[row.query], false),
            Mix::Keep(Role::Q, Slot::Query),
        );
        let keys_values = stage(
            "images' keys and values",
            (StageInput::Images, Fold::None),
            keys_values,
            Mix::CrossAttention { width },
        );
        (vec![queries, keys_values], output)
    }

    /// The gates of what attention and the MLP add.
    pub(super) fn gates(&self) -> Vec<(Kept, String, Vec<usize>)> {
        let gates = self.looks().into_iter().flat_map(|row| {
            let named = |name: &str| format!("{}.{name}", self.prefix);
            let gates = [Kept::AttentionGate, Kept::MlpGate].into_iter();
            gates
                .zip(row.gates)
                .map(move |(gate, name)| (gate, named(name), vec![1]))
        });
        gates.collect()
    }
}
