//! One batch's activations between two stages, in memory that is taken once.
//!
//! Tensors that came and went with every stage, among the temporaries around them, would leave gaps that the allocator
//! can neither use for the next ones nor give back.

use std::ops::Range;
use std::sync::Once;

use anyhow::Result;
use tch::{Device, Tensor};

use crate::model::{Slot, State, Versions};

/// The state of a batch, on the host or on the GPU that computes.
///
/// On the host the GPU reads and writes it by itself, while the program goes on: what the GPU is given to do, it does in order, but
/// the host has to wait before it reads or writes there.
pub struct Batch {
    /// Views of memory that the batch keeps.
    state: State,
    /// Where the stages run.
    device: Device,
    /// What the slots' memory is taken from, one-dimensional.
    storage: Tensor,
    /// Where in `storage` each filled slot lies.
    places: Vec<(Slot, Range<usize>)>,
}

impl Batch {
    /// Starts from `hidden` `[B, T, hidden]`, where the activations are to wait; at most `width` elements a token wait in slots.
    /// On the host it is memory that `device` can copy by itself, if that is a GPU.
    pub fn new(hidden: Tensor, width: usize, device: Device) -> Result<Self> {
        let tokens = hidden.size()[0] * hidden.size()[1];
        let options = (hidden.kind(), hidden.device());
        let storage = Tensor::f_empty([tokens * width as i64], options)?;
        Ok(Self {
            storage: within_reach(storage, device),
            state: State::new(within_reach(hidden, device)),
            device,
            places: Vec::new(),
        })
    }

    /// For its sizes, and to be copied to where the stages run.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// To be read and written where it is: what the GPU had to do with it is done.
    pub fn settled(&self) -> Result<&State> {
        if self.state.hidden.device() != self.device {
            crate::tensor::wait_for(self.device)?;
        }
        Ok(&self.state)
    }

    /// Takes over what a stage made of the tokens from `start` on, but for what is as it arrived.
    pub fn store(&mut self, start: i64, made: &State, arrived: &Versions) -> Result<()> {
        let len = made.hidden.size()[1];
        if !arrived.has_hidden_of(made)? {
            self.overwrite(&self.state.hidden.f_narrow(1, start, len)?, &made.hidden)?;
        }
        for slot in made.filled() {
            if arrived.has_slot_of(made, slot)? {
                continue;
            }
            let source = made.slot(slot);
            if !self.state.filled().any(|filled| filled == slot) {
                self.make_room(slot, source)?;
            }
            self.overwrite(&self.state.slot(slot).f_narrow(1, start, len)?, source)?;
        }
        Ok(())
    }

    /// Copies `source` to `target`, which is the batch's, unless that is where it lies already. From a GPU it is on its way when this
    /// returns.
    fn overwrite(&self, target: &Tensor, source: &Tensor) -> Result<()> {
        if target.data_ptr() == source.data_ptr() {
            return Ok(());
        }
        if source.device() == target.device() {
            self.settled()?;
        }
        Ok(crate::tensor::copy_without_waiting(target, source)?)
    }

    /// Empties a slot that no later stage reads.
    pub fn release(&mut self, slot: Slot) {
        self.state.set_slot(slot, None);
        self.places.retain(|place| place.0 != slot);
    }

    /// Gives `slot` zeros as wide as the residual stream, unless it is in use.
    pub fn open(&mut self, slot: Slot) -> Result<()> {
        if !self.state.filled().any(|filled| filled == slot) {
            let like = self.state.hidden.shallow_clone();
            self.make_room(slot, &like)?;
            let _ = self.settled()?.slot(slot).shallow_clone().f_zero_()?;
        }
        Ok(())
    }

    /// Gives `slot` memory for all tokens, as wide as `like`, beside that of the slots that are in use.
    fn make_room(&mut self, slot: Slot, like: &Tensor) -> Result<()> {
        let [batch, tokens] = [0, 1].map(|dim| self.state.hidden.size()[dim]);
        let width = like.size()[2];
        let len = (batch * tokens * width) as usize;
        let start = first_fit(&self.places, len);
        assert!(
            start + len <= self.storage.size()[0] as usize,
            "{slot:?} was not planned for"
        );
        let room = self.storage.f_narrow(0, start as i64, len as i64)?;
        let room = room.f_view([batch, tokens, width])?;
        self.state.set_slot(slot, Some(room));
        self.places.push((slot, start..start + len));
        Ok(())
    }
}

/// The first start of `len` elements that are in none of `places`.
pub fn first_fit(places: &[(Slot, Range<usize>)], len: usize) -> usize {
    let starts = std::iter::once(0).chain(places.iter().map(|place| place.1.end));
    let free = |start: &usize| {
        let end = start + len;
        (places.iter()).all(|(_, place)| place.end <= *start || end <= place.start)
    };
    starts
        .filter(free)
        .min()
        .expect("behind the last there is room")
}

/// The same numbers in pinned memory, where `device` is a GPU and they are on the host.
fn within_reach(tensor: Tensor, device: Device) -> Tensor {
    static SAID: Once = Once::new();
    if !device.is_cuda() || tensor.device() != Device::Cpu {
        return tensor;
    }
    tensor.f_pin_memory(device).unwrap_or_else(|error| {
        SAID.call_once(|| {
            tracing::warn!("activations wait in pageable memory, which is slower: {error}");
        });
        tensor
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn slots_share_the_memory_and_keep_what_they_hold() {
        let options = (Kind::Float, Device::Cpu);
        let mut batch = Batch::new(Tensor::zeros([2, 5, 3], options), 7, Device::Cpu).unwrap();
        let storage = batch.storage.data_ptr();
        let filled = |slot, width: i64, value: f64, len: i64| {
            let mut state = State::new(Tensor::full([2, len, 3], value, options));
            state.set_slot(slot, Some(Tensor::full([2, len, width], value, options)));
            state
        };
        let nothing = State::new(Tensor::zeros([0], options)).versions().unwrap();
        for _ in 0..2 {
            // In two slices.
            batch
                .store(0, &filled(Slot::Attended, 3, 1.0, 2), &nothing)
                .unwrap();
            batch
                .store(2, &filled(Slot::Attended, 3, 2.0, 3), &nothing)
                .unwrap();
            batch
                .store(0, &filled(Slot::Activated, 4, 3.0, 5), &nothing)
                .unwrap();
            let sum = |slot| batch.state().slot(slot).sum(Kind::Double).double_value(&[]);
            assert_eq!(sum(Slot::Attended), f64::from(2 * 3 * (2 + 2 * 3)));
            assert_eq!(sum(Slot::Activated), f64::from(2 * 5 * 4 * 3));
            assert_eq!(batch.state().slot(Slot::Attended).data_ptr(), storage);
            // A narrower slot finds room where another one was.
            batch.release(Slot::Attended);
            batch
                .store(0, &filled(Slot::Query, 2, 3.0, 5), &nothing)
                .unwrap();
            assert_eq!(batch.state().slot(Slot::Query).data_ptr(), storage);
            batch.release(Slot::Query);
            batch.release(Slot::Attended);
            batch.release(Slot::Activated);
        }
        // What is as it arrived is not copied.
        let mut arrived = State::new(Tensor::full([2, 5, 3], 9.0, options));
        arrived.set_slot(Slot::Query, Some(Tensor::full([2, 5, 2], 9.0, options)));
        let versions = arrived.versions().unwrap();
        let sum = |batch: &Batch| batch.state().hidden.sum(Kind::Double).double_value(&[]);
        batch.store(0, &arrived, &versions).unwrap();
        assert!(batch.state().find(Slot::Query).is_none());
        assert_eq!(sum(&batch), f64::from(2 * 5 * 3 * 3));
        // A part of it that was written to is.
        let _ = arrived.slot(Slot::Query).narrow(1, 1, 1).fill_(1.0);
        batch.store(0, &arrived, &versions).unwrap();
        let query = batch.state().slot(Slot::Query);
        assert_eq!(query.sum(Kind::Double).double_value(&[]), 16.0 * 9.0 + 4.0);
        let hidden = &batch.state().hidden;
        assert_eq!(
            hidden.sum(Kind::Double).double_value(&[]),
            f64::from(2 * 5 * 3 * 3)
        );
    }
}
