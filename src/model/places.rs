//! Where tokens stand: the rotary tables of their positions, and the images that they belong to.

use super::config::Config;
use super::rope::{Axes, Rope};
use super::vision::{Positions, Sight, Vision};
use super::{Compute, Error, Gallery};
use tch::{Device, Tensor};

/// An image in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The place of its first token in the window.
    pub start: usize,
    /// Its tokens; the window may end before them.
    pub n_tokens: usize,
    /// Rows and columns of its tokens, where they are counted so.
    pub grid: [usize; 2],
}

/// Images whose tokens see later ones of their own.
#[derive(Debug)]
pub(super) struct Images {
    /// `[windows, tokens]`: the number in its window of the run of images that a token belongs to, -1 of none.
    pub runs: Tensor,
    pub sight: Sight,
}

/// Where the tokens of a batch of windows stand.
#[derive(Debug)]
pub struct Places {
    ropes: Vec<Rope>,
    /// Only where images' tokens see later ones.
    images: Option<Images>,
    /// The images that they look at, where some do.
    gallery: Option<Gallery>,
}

impl Places {
    /// One after the other, in all windows.
    pub(super) fn in_line(
        config: &Config,
        compute: Compute,
        seq_len: usize,
    ) -> Result<Self, Error> {
        Ok(Self {
            ropes: ropes(config, compute, seq_len, None)?,
            images: None,
            gallery: None,
        })
    }

    /// As the images of each window ask for.
    pub(super) fn with_images(
        config: &Config,
        vision: &Vision,
        compute: Compute,
        seq_len: usize,
        sightings: &[&[Sighting]],
    ) -> Result<Self, Error> {
        let axes = match vision.positions() {
            Positions::Line => None,
            Positions::Grid => {
                let windows: Vec<_> = (sightings.iter())
                    .map(|sightings| by_axis(seq_len, sightings))
                    .collect();
                let axis = |axis: usize| -> Result<Tensor, Error> {
                    let all = windows.iter().flat_map(|axes| &axes[axis]);
                    let all: Vec<f32> = all.map(|&position| position as f32).collect();
                    Ok(Tensor::f_from_slice(&all)?.f_view([-1, seq_len as i64])?)
                };
                Some([axis(0)?, axis(1)?, axis(2)?])
            }
        };
        let images = match vision.sight() {
            Sight::Causal => None,
            sight => Some(Images {
                runs: runs(seq_len, sightings, compute.device)?,
                sight,
            }),
        };
        Ok(Self {
            ropes: ropes(config, compute, seq_len, axes.as_ref())?,
            images,
            gallery: None,
        })
    }

    /// The same, in front of these images.
    #[must_use]
    pub fn before(self, gallery: Option<Gallery>) -> Self {
        Self { gallery, ..self }
    }

    /// The images that the windows look at.
    ///
    /// # Panics
    /// Where there are none: the layer should have been left out.
    pub fn gallery(&self) -> &Gallery {
        self.gallery.as_ref().expect("images to look at")
    }

    /// One of the rotary embeddings, by its place in [`Config::ropes`].
    pub(super) fn rope(&self, index: usize) -> &Rope {
        &self.ropes[index]
    }

    /// The images, where their tokens see later ones of their own in a layer with a window, or in one without.
    pub(super) fn images(&self, has_window: bool) -> Option<&Images> {
        let images = self.images.as_ref();
        images.filter(|images| has_window || images.sight != Sight::OwnImageInWindows)
    }
}

fn ropes(
    config: &Config,
    compute: Compute,
    seq_len: usize,
    axes: Option<&Axes>,
) -> Result<Vec<Rope>, Error> {
    let original = config.max_position_embeddings;
    let ropes = config.ropes.iter();
    let ropes = ropes.map(|rope| {
        // An embedding without axes counts words.
        let axes = axes.filter(|_| !rope.axes.is_empty());
        Rope::new(rope, original, compute, seq_len, axes)
    });
    ropes.collect()
}

/// Positions in time, in rows and in columns (Wang et al. 2024, arXiv:2409.12191): words advance on all of them, an image's tokens
/// stand at one moment, and what follows stands behind the longer of its sides.
fn by_axis(seq_len: usize, sightings: &[Sighting]) -> [Vec<usize>; 3] {
    let mut axes = [const { Vec::new() }; 3];
    let mut next = 0;
    let mut sightings = sightings.iter().peekable();
    let mut token = 0;
    while token < seq_len {
        match sightings.next_if(|sighting| sighting.start == token) {
            None => {
                for axis in &mut axes {
                    axis.push(next);
                }
                next += 1;
                token += 1;
            }
            Some(sighting) => {
                let [rows, columns] = sighting.grid;
                for index in 0..sighting.n_tokens.min(seq_len - token) {
                    let places = [0, index / columns, index % columns];
                    for (axis, place) in axes.iter_mut().zip(places) {
                        axis.push(next + place);
                    }
                }
                next += rows.max(columns);
                token += sighting.n_tokens;
            }
        }
    }
    axes
}

fn runs(seq_len: usize, sightings: &[&[Sighting]], device: Device) -> Result<Tensor, Error> {
    let mut images = vec![-1i64; seq_len * sightings.len()];
    for (window, sightings) in images.chunks_mut(seq_len).zip(sightings) {
        let (mut run, mut last_end) = (-1, None);
        for sighting in *sightings {
            run += i64::from(last_end != Some(sighting.start));
            let end = sighting.start + sighting.n_tokens;
            window[sighting.start..seq_len.min(end)].fill(run);
            last_end = Some(end);
        }
    }
    let images = Tensor::f_from_slice(&images)?.f_view([-1, seq_len as i64])?;
    Ok(images.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers 5.23, `Qwen2VLModel.get_rope_index` of three words, an image of two rows of three tokens, and two words.
    #[test]
    fn tokens_of_an_image_are_counted_by_row_and_column() {
        let sighting = Sighting {
            start: 3,
            n_tokens: 6,
            grid: [2, 3],
        };
        let [time, rows, columns] = by_axis(11, &[sighting]);
        assert_eq!(time, [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7]);
        assert_eq!(rows, [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7]);
        assert_eq!(columns, [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]);
        let cut = by_axis(5, &[sighting]);
        assert_eq!(cut[2], [0, 1, 2, 3, 4]);
    }
}
