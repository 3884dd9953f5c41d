//! The images that a batch of windows look at beside their tokens, and which token sees which.
//!
//! A token sees the last image before it, or all of those that stand side by side there (transformers'
//! `get_cross_attention_token_mask`). One before the first image attends to all of its window, padding too, as transformers has
//! it: only what the MLP adds is left out for it.

use super::{Compute, Error};
use std::ops::Range;
use tch::Tensor;

/// An image that a window looks at.
#[derive(Debug)]
pub struct Hung {
    /// The place in the window of the token that stands for it.
    pub start: usize,
    /// What tower and projector make of it, `[rows, hidden]`.
    pub rows: Tensor,
    /// How many of the rows are the image; the others padded it.
    pub n_own: usize,
}

impl Hung {
    /// The same image, for another window or another part of it.
    #[must_use]
    pub fn at(&self, start: usize) -> Self {
        Self {
            start,
            rows: self.rows.shallow_clone(),
            n_own: self.n_own,
        }
    }
}

/// The images of a batch.
#[derive(Debug)]
pub struct Gallery {
    /// `[1, rows, hidden]`
    rows: Tensor,
    /// Rows that are images, not padding.
    own: Vec<Range<i64>>,
    views: Vec<View>,
    /// `[windows, tokens, 1]`
    sees: Tensor,
}

/// Tokens that attend to the same rows.
#[derive(Debug)]
struct View {
    window: i64,
    tokens: Range<i64>,
    rows: Vec<Range<i64>>,
}

impl Gallery {
    /// Of windows of `seq_len` tokens, each with its images in the order of their tokens. Nothing where there is no image.
    pub fn new(
        compute: Compute,
        seq_len: usize,
        windows: &[&[Hung]],
    ) -> Result<Option<Self>, Error> {
        let (mut rows, mut own, mut views) = (Vec::new(), Vec::new(), Vec::new());
        let mut end = 0;
        for (window, images) in windows.iter().enumerate() {
            let first_row = end;
            let mut own_here: Vec<Range<i64>> = Vec::new();
            for image in *images {
                own_here.push(end..end + image.n_own as i64);
                end += image.rows.size()[0];
                rows.push(compute.place(&image.rows)?);
            }
            let view = |tokens: Range<usize>, rows| View {
                window: window as i64,
                tokens: tokens.start as i64..tokens.end as i64,
                rows,
            };
            let Some(first) = images.first() else {
                continue;
            };
            if first.start > 0 {
                views.push(view(
                    0..first.start,
                    std::iter::once(first_row..end).collect(),
                ));
            }
            let mut beside = 0;
            for (index, image) in images.iter().enumerate() {
                if index > 0 && images[index - 1].start + 1 != image.start {
                    beside = index;
                }
                let next = images.get(index + 1).map_or(seq_len, |next| next.start);
                let rows = own_here[beside..=index].to_vec();
                views.push(view(image.start..next, rows));
            }
            own.extend(own_here);
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let starts: Vec<Option<usize>> = (windows.iter())
            .map(|images| images.first().map(|image| image.start))
            .collect();
        Ok(Some(Self {
            rows: Tensor::f_cat(&rows, 0)?.f_unsqueeze(0)?,
            own,
            views,
            sees: Self::mark(compute, seq_len, &starts)?,
        }))
    }

    /// 1 for tokens from their window's first image on, else 0, `[windows, seq_len, 1]`.
    pub fn mark(
        compute: Compute,
        seq_len: usize,
        starts: &[Option<usize>],
    ) -> Result<Tensor, Error> {
        let mut sees = vec![0.0f32; seq_len * starts.len()];
        for (window, start) in sees.chunks_mut(seq_len).zip(starts) {
            if let Some(start) = start {
                window[*start..].fill(1.0);
            }
        }
        let sees = Tensor::f_from_slice(&sees)?.f_view([-1, seq_len as i64, 1])?;
        compute.place(&sees)
    }

    /// All rows, `[1, rows, hidden]`.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// Those that are images, `[rows, hidden]`.
    pub fn own_rows(&self) -> Result<Tensor, Error> {
        own(&self.rows, 1, &self.own)?
            .f_squeeze_dim(0)
            .map_err(Error::from)
    }

    /// What fills [`super::Slot::Sees`].
    pub fn sees(&self) -> &Tensor {
        &self.sees
    }

    /// What each token of `query` `[B, T, n_heads, head_dim]` makes of the rows that it sees, `[B, T, n_heads * head_dim]`; `key`
    /// and `value` are `[1, rows, n_kv_heads, head_dim]`. Zeros in windows without images.
    pub(super) fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        scale: f64,
    ) -> Result<Tensor, Error> {
        let mixed = query.f_zeros_like()?.f_flatten(2, 3)?;
        let query = query.f_transpose(1, 2)?;
        let [key, value] = [key.f_transpose(1, 2)?, value.f_transpose(1, 2)?];
        let grouped = query.size()[1] != key.size()[1];
        for view in &self.views {
            let (start, len) = (view.tokens.start, view.tokens.end - view.tokens.start);
            let query = query.f_narrow(0, view.window, 1)?.f_narrow(2, start, len)?;
            let found = Tensor::f_scaled_dot_product_attention(
                &query,
                &own(&key, 2, &view.rows)?,
                &own(&value, 2, &view.rows)?,
                None::<&Tensor>,
                0.0,
                false,
                Some(scale),
                grouped,
            )?;
            let found = found.f_transpose(1, 2)?.f_flatten(2, 3)?;
            let mut place = mixed.f_narrow(0, view.window, 1)?.f_narrow(1, start, len)?;
            place.f_copy_(&found)?;
        }
        Ok(mixed)
    }
}

/// The parts `ranges` of `x`, one after the other.
fn own(x: &Tensor, dim: i64, ranges: &[Range<i64>]) -> Result<Tensor, Error> {
    let parts = ranges
        .iter()
        .map(|part| x.f_narrow(dim, part.start, part.end - part.start));
    Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, dim)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::model::tests::F32;
    use tch::{Device, Kind};

    /// transformers 5.23, `get_cross_attention_token_mask` of 12 tokens: images at 2, 5 and 6.
    #[test]
    fn tokens_see_the_images_before_them_that_stand_side_by_side() {
        let image = |start, n_own| Hung {
            start,
            rows: Tensor::zeros([4, 3], (Kind::Float, Device::Cpu)),
            n_own,
        };
        let images = [image(2, 4), image(5, 1), image(6, 2)];
        let gallery = Gallery::new(F32, 12, &[&[], &images]).unwrap().unwrap();
        let views: Vec<_> = (gallery.views.iter())
            .map(|view| {
                let rows: Vec<_> = view
                    .rows
                    .iter()
                    .map(|rows| [rows.start, rows.end])
                    .collect();
                (view.window, view.tokens.clone(), rows)
            })
            .collect();
        let expected = [
            (1, 0..2, vec![[0, 12]]),
            (1, 2..5, vec![[0, 4]]),
            (1, 5..6, vec![[4, 5]]),
            (1, 6..12, vec![[4, 5], [8, 10]]),
        ];
        assert_eq!(views, expected);
        assert_eq!(gallery.own_rows().unwrap().size(), [7, 3]);
        assert_eq!(gallery.sees().sum(Kind::Float).double_value(&[]), 10.0);
        assert!(Gallery::new(F32, 12, &[&[], &[]]).unwrap().is_none());
    }
}
