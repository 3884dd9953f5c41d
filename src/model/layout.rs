//! Checkpoints that store the same linears in another way than their family usually does.

use super::arch::Names;
use super::{Fold, LayerPlan, LinearPlan, Model, Packing, Stacked, Stored};

/// Beginnings of names, and what stands in their place.
type Renaming = Vec<(&'static str, &'static str)>;

/// The name of what a family calls `name`, where that is another.
pub(super) fn renamed(renaming: &[(&str, &str)], name: &str) -> Option<String> {
    renaming.iter().find_map(|(from, to)| {
        let rest = name.strip_prefix(from)?;
        Some(format!("{to}{rest}"))
    })
}

/// A language model's names inside a composite.
pub(super) fn renaming(names: Names) -> Renaming {
    vec![("model.", names.model), ("lm_head", names.head)]
}

impl Model {
    /// Reads experts from where the checkpoint has them: each one's own tensors or those of all experts, in float or as
    /// MXFP4. `shape` gives that of the checkpoint's tensor of this name.
    ///
    /// Names may lack their first part, as GPT-2's and BLOOM's published ones do, and those of a language model inside another
    /// model begin in one of several ways. A head that a composite stores is used, whatever the config says.
    pub fn fit(&mut self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) {
        let contains = |name: &str| shape(name).is_some();
        let embedding = self.arch.embedding;
        if let Some(composite) = self.composite {
            let stored = |names: &&Names| {
                let name = renamed(&renaming(**names), embedding);
                name.is_some_and(|name| contains(&name))
            };
            if let Some(&names) = composite.names.iter().find(stored) {
                self.rename(renaming(names));
            }
            let head = format!("{}.weight", self.stored_name(self.arch.head));
            if contains(&head) {
                self.config.tie_word_embeddings = false;
            }
        } else if let Some((first, rest)) = embedding.split_once('.')
            && !contains(embedding)
            && contains(rest)
        {
            self.rename(vec![(&embedding[..=first.len()], "")]);
        }
        for layer in &mut self.layers {
            for stage in &mut layer.stages {
                let count = stage.experts.len();
                for (index, expert) in stage.experts.iter_mut().enumerate() {
                    for linear in expert.linears_mut() {
                        linear.fit(index, count, shape);
                    }
                }
            }
        }
    }

    /// Renames all tensors; `renaming` is of the family's names.
    pub(super) fn rename(&mut self, renaming: Renaming) {
        // Back to the family's names first.
        let back: Vec<(&str, &str)> = self.renamed.iter().map(|&(from, to)| (to, from)).collect();
        for layer in &mut self.layers {
            layer.rename(&back);
            layer.rename(&renaming);
        }
        self.renamed = renaming;
    }
}

impl LayerPlan {
    fn rename(&mut self, renaming: &[(&str, &str)]) {
        let rename = |name: &mut String| {
            if let Some(renamed) = renamed(renaming, name) {
                *name = renamed;
            }
        };
        for stage in &mut self.stages {
            if let Fold::Rows { linear, .. } = &mut stage.fold {
                rename(linear);
            }
            for linear in stage.linears.iter_mut().chain(&mut stage.dense) {
                rename(&mut linear.name);
            }
            for expert in &mut stage.experts {
                if let Fold::Rows { linear, .. } = &mut expert.fold {
                    rename(linear);
                }
                for linear in expert.linears_mut() {
                    rename(&mut linear.name);
                    if let Stored::Stacked(stacked) = &mut linear.stored {
                        rename(&mut stacked.weight);
                        stacked.bias.iter_mut().for_each(rename);
                    }
                }
            }
        }
        self.norms
            .iter_mut()
            .for_each(|norm| rename(&mut norm.name));
        self.kept.iter_mut().for_each(|kept| rename(&mut kept.1));
    }
}

impl LinearPlan {
    fn fit(&mut self, index: usize, count: usize, shape: &dyn Fn(&str) -> Option<Vec<usize>>) {
        let contains = |name: &str| shape(name).is_some();
        let own = self.weight_name();
        if contains(&own) || contains(&format!("{}.qweight", self.name)) {
            self.stored = Stored::Own;
            return;
        }
        match &mut self.stored {
            Stored::Stacked(stacked) => {
                if contains(&format!("{}_blocks", stacked.weight)) {
                    stacked.packing = Packing::Mxfp4;
                } else if let [parts, rows, columns] = stacked.weight_shape[..]
                    && rows != columns
                    && shape(&stacked.weight).is_some_and(|shape| shape == [parts, columns, rows])
                {
                    // Some families' parts are stored either way.
                    stacked.transposed = !stacked.transposed;
                    stacked.weight_shape = vec![parts, columns, rows];
                }
            }
            Stored::Own | Stored::Transposed => {
                if let Some(stacked) = self.as_stacked(index, count, &contains) {
                    self.stored = Stored::Stacked(stacked);
                }
            }
        }
    }

    /// As transformers 5 has the experts in memory, and files that were saved from there: gate's and up's rows in one
    /// tensor, those of down in another.
    fn as_stacked(
        &self,
        index: usize,
        count: usize,
        contains: &dyn Fn(&str) -> bool,
    ) -> Option<Stacked> {
        let (experts, linear) = self.name.split_once(&format!(".experts.{index}."))?;
        let [out, inp] = self.shape();
        let (tensor, rows, first) = match linear {
            "gate_proj" | "w1" => ("gate_up_proj", 2 * out, 0),
            "up_proj" | "w3" => ("gate_up_proj", 2 * out, out),
            "down_proj" | "w2" => ("down_proj", out, 0),
            _ => return None,
        };
        let weight = format!("{experts}.experts.{tensor}");
        contains(&weight).then(|| Stacked {
            weight_shape: vec![count, rows, inp],
            weight,
            bias: None,
            parts: count,
            index,
            transposed: false,
            packing: Packing::Float,
            rows,
            first,
            step: 1,
        })
    }
}
