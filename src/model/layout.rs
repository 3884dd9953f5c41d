//! Checkpoints that store the same linears in another way than their family usually does.

use super::{Fold, LayerPlan, LinearPlan, Model, Packing, Stacked, Stored};

impl Model {
    /// Reads experts from where the checkpoint has them: each one's own tensors or those of all experts, in float or as
    /// MXFP4. `contains` says whether it has a tensor of this name.
    ///
    /// Names may lack their first part, as GPT-2's and BLOOM's published ones do.
    pub fn fit(&mut self, contains: &dyn Fn(&str) -> bool) {
        let embedding = self.arch.embedding;
        if let Some((first, rest)) = embedding.split_once('.')
            && !contains(embedding)
            && contains(rest)
        {
            self.missing_prefix = &embedding[..=first.len()];
            for layer in &mut self.layers {
                layer.rename(self.missing_prefix);
            }
        }
        for layer in &mut self.layers {
            for stage in &mut layer.stages {
                let count = stage.experts.len();
                for (index, expert) in stage.experts.iter_mut().enumerate() {
                    let linears = expert.inputs.iter_mut().chain([&mut expert.output]);
                    for linear in linears {
                        linear.fit(index, count, contains);
                    }
                }
            }
        }
    }
}

impl LayerPlan {
    /// Takes `prefix` off all names.
    fn rename(&mut self, prefix: &str) {
        let shorten = |name: &mut String| {
            if let Some(rest) = name.strip_prefix(prefix) {
                *name = rest.to_owned();
            }
        };
        for stage in &mut self.stages {
            if let Fold::Rows { linear, .. } = &mut stage.fold {
                shorten(linear);
            }
            for linear in stage.linears.iter_mut().chain(&mut stage.dense) {
                shorten(&mut linear.name);
            }
            for expert in &mut stage.experts {
                if let Fold::Rows { linear, .. } = &mut expert.fold {
                    shorten(linear);
                }
                for linear in expert.inputs.iter_mut().chain([&mut expert.output]) {
                    shorten(&mut linear.name);
                    if let Stored::Stacked(stacked) = &mut linear.stored {
                        shorten(&mut stacked.weight);
                        stacked.bias.iter_mut().for_each(shorten);
                    }
                }
            }
        }
        self.norms
            .iter_mut()
            .for_each(|norm| shorten(&mut norm.name));
        self.kept.iter_mut().for_each(|kept| shorten(&mut kept.1));
    }
}

impl LinearPlan {
    fn fit(&mut self, index: usize, count: usize, contains: &dyn Fn(&str) -> bool) {
        let own = self.weight_name();
        if contains(&own) || contains(&format!("{}.qweight", self.name)) {
            self.stored = Stored::Own;
            return;
        }
        match &mut self.stored {
            Stored::Stacked(stacked) => {
                if contains(&format!("{}_blocks", stacked.weight)) {
                    stacked.packing = Packing::Mxfp4;
                }
            }
            Stored::Own | Stored::Transposed => {
                if let Some(stacked) = self.as_stacked(index, count, contains) {
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
