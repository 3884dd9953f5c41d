//! What windows see, from the first layer to the last that is given features.

use std::collections::HashSet;

use anyhow::Result;
use tch::{Device, Tensor};

use crate::model::vision::Features;
use crate::model::{
    Compute, EmbeddedImages, Gallery, Hung, Model, Places, Sighting, Slot, State, Tokens, Weights,
};

/// The images of windows of one length.
#[derive(Debug)]
pub struct Shown {
    /// Of each window, in order.
    windows: Vec<Vec<Sighting>>,
    /// Of each window, the places of the tokens that stand for images.
    tokens: Vec<HashSet<i64>>,
    /// What is to be added to the tokens of an image behind the first layers, the next one last, on the host: the window, the
    /// tokens' places in it and `[tokens, hidden]` for each of the layers.
    deep: Vec<(usize, Tensor, Vec<Tensor>)>,
    /// Of each window, the images that layers of their own attend to, on the host.
    hung: Vec<Vec<Hung>>,
    /// What took the place of tokens' embeddings, on the host, for layers that read these again: the window, the tokens' places
    /// in it and `[tokens, hidden]`; `None` for a model without such layers.
    embedded: Option<Vec<(usize, Tensor, Tensor)>>,
}

impl Shown {
    /// Nothing yet.
    pub fn new(model: &Model, n_windows: usize) -> Self {
        Self {
            windows: vec![Vec::new(); n_windows],
            tokens: vec![HashSet::new(); n_windows],
            deep: Vec::new(),
            hung: (0..n_windows).map(|_| Vec::new()).collect(),
            embedded: model.config.layer_input.map(|_| Vec::new()),
        }
    }

    /// Puts what an image became in the place of its tokens' embeddings, as many as `places` are, in `hidden`, the residual stream
    /// of `window`, `[tokens, hidden]`; or keeps it for the layers that attend to it.
    pub fn show(
        &mut self,
        window: usize,
        places: &[usize],
        features: &Features,
        hidden: &Tensor,
    ) -> Result<()> {
        let Some(&start) = places.first() else {
            return Ok(());
        };
        if let Some(n_own) = features.n_looked_at {
            let rows = features.embeddings.f_to_device(Device::Cpu)?;
            self.hung[window].push(Hung {
                start,
                rows: rows.f_to_kind(hidden.kind())?,
                n_own,
            });
            self.hung[window].sort_by_key(|hung| hung.start);
            self.tokens[window].insert(start as i64);
            return Ok(());
        }
        let n_tokens = places.len();
        self.windows[window].push(Sighting {
            start,
            n_tokens,
            grid: features.grid,
        });
        self.windows[window].sort_by_key(|sighting| sighting.start);
        let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        self.tokens[window].extend(&places);
        let places = Tensor::f_from_slice(&places)?;
        let kept = |tensor: &Tensor| -> Result<Tensor> {
            let kept = tensor.f_narrow(0, 0, n_tokens as i64)?;
            Ok(kept.f_to_device(Device::Cpu)?.f_to_kind(hidden.kind())?)
        };
        let embeddings = kept(&features.embeddings)?;
        let there = |tensor: &Tensor| tensor.f_to_device(hidden.device());
        let _ = hidden
            .shallow_clone()
            .f_index_copy_(0, &there(&places)?, &there(&embeddings)?)?;
        if let Some(kept) = &mut self.embedded {
            kept.push((window, places.shallow_clone(), embeddings));
        }
        let deep = features.deep.iter().rev().map(kept);
        let deep = deep.collect::<Result<Vec<_>>>()?;
        if !deep.is_empty() {
            self.deep.push((window, places, deep));
        }
        Ok(())
    }

    /// Gives `state` what `layer` takes of the tokens `ids` of these windows themselves, where it takes anything, and which of them
    /// see an image, where it attends to these: before its stages.
    pub fn enter_layer(
        &self,
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
        (ids, windows): (&[u32], std::ops::Range<usize>),
        state: &mut State,
    ) -> Result<()> {
        let seq_len = ids.len() / windows.len();
        let images = self.embedded(windows.clone(), seq_len)?;
        let tokens = Tokens {
            ids,
            start: 0,
            images: images.as_ref(),
        };
        model.enter_layer(weights, compute, layer, tokens, state)?;
        if model.layers[layer].config.looks {
            state.set_slot(Slot::Sees, self.sees(compute, windows, seq_len)?);
        }
        Ok(())
    }

    /// What stands in the place of tokens' embeddings in these windows, for layers that read the embeddings again.
    fn embedded(
        &self,
        windows: std::ops::Range<usize>,
        seq_len: usize,
    ) -> Result<Option<EmbeddedImages>> {
        let own = self.embedded.iter().flatten();
        let own = own.filter(|(window, ..)| windows.contains(window));
        let (mut places, mut rows) = (Vec::new(), Vec::new());
        for (window, own_places, own_rows) in own {
            places.push(own_places.f_add_scalar(((window - windows.start) * seq_len) as i64)?);
            rows.push(own_rows);
        }
        if rows.is_empty() {
            return Ok(None);
        }
        Ok(Some(EmbeddedImages {
            places: Tensor::f_cat(&places, 0)?,
            rows: Tensor::f_cat(&rows, 0)?,
        }))
    }

    /// Adds what images left for the layer that all have been through, behind its stages. `hidden` gives the residual stream of
    /// a window, `[tokens, hidden]`.
    pub fn leave_layer(&mut self, hidden: impl Fn(usize) -> Result<Tensor>) -> Result<()> {
        for (window, places, mut deep) in std::mem::take(&mut self.deep) {
            if let Some(added) = deep.pop() {
                let mut stream = hidden(window)?;
                let there = |tensor: &Tensor| tensor.f_to_device(stream.device());
                let (to, added) = (there(&places)?, there(&added)?);
                let _ = stream.f_index_add_(0, &to, &added)?;
                self.deep.push((window, places, deep));
            }
        }
        Ok(())
    }

    /// Which tokens of these windows see an image that layers attend to, as [`Gallery::sees`], if any do.
    fn sees(
        &self,
        compute: Compute,
        windows: std::ops::Range<usize>,
        seq_len: usize,
    ) -> Result<Option<Tensor>> {
        let starts = self.hung[windows].iter();
        let starts = starts.map(|hung| hung.first().map(|first| first.start));
        let starts: Vec<Option<usize>> = starts.collect();
        if starts.iter().all(Option::is_none) {
            return Ok(None);
        }
        Ok(Some(Gallery::mark(compute, seq_len, &starts)?))
    }

    /// The first window that layers see an image in, and the place of the image's token there.
    pub fn first_look(&self) -> Option<(usize, usize)> {
        let mut windows = self.hung.iter().enumerate();
        windows.find_map(|(window, hung)| Some((window, hung.first()?.start)))
    }

    /// The images whose tokens are among these of a window, for these tokens alone.
    pub fn gallery_of(
        &self,
        compute: Compute,
        window: usize,
        tokens: std::ops::Range<usize>,
    ) -> Result<Option<Gallery>> {
        let own = self.hung[window].iter();
        let own = own.filter(|hung| tokens.contains(&hung.start));
        let own: Vec<Hung> = own.map(|hung| hung.at(hung.start - tokens.start)).collect();
        Ok(Gallery::new(compute, tokens.len(), &[&own])?)
    }

    /// Where the tokens of these windows stand, of `seq_len` each, if there are images among them; for layers that attend to
    /// images (`looks`), with these.
    pub fn places(
        &self,
        model: &Model,
        compute: Compute,
        windows: std::ops::Range<usize>,
        seq_len: usize,
        looks: bool,
    ) -> Result<Option<Places>> {
        if looks {
            let hung: Vec<&[Hung]> = self.hung[windows].iter().map(Vec::as_slice).collect();
            let gallery = Gallery::new(compute, seq_len, &hung)?;
            return Ok(match gallery {
                None => None,
                gallery => Some(model.places(compute, seq_len)?.before(gallery)),
            });
        }
        let windows = &self.windows[windows];
        if windows.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        let windows: Vec<&[Sighting]> = windows.iter().map(Vec::as_slice).collect();
        Ok(Some(model.places_with_images(compute, seq_len, &windows)?))
    }

    /// How many tokens stand for images.
    pub fn n_tokens(&self) -> usize {
        self.tokens.iter().map(HashSet::len).sum()
    }

    /// Whether the token at this place of a window stands for an image.
    pub fn is_image(&self, window: usize, place: i64) -> bool {
        self.tokens[window].contains(&place)
    }
}
