//! What a layer's stages hand on.

use super::Slot;
use tch::{Device, TchError, Tensor};

/// What flows from stage to stage.
#[derive(Debug)]
pub struct State {
    /// The residual stream, `[B, T, hidden]`.
    pub hidden: Tensor,
    /// What mixing steps left for later stages, `[B, T, ..]` each, by [`Slot`].
    slots: [Option<Tensor>; Slot::ALL.len()],
}

impl State {
    /// The state before the first stage of a layer.
    pub fn new(hidden: Tensor) -> Self {
        Self {
            hidden,
            slots: Slot::ALL.map(|_| None),
        }
    }

    /// What a mixing step left there.
    ///
    /// # Panics
    /// Where none did: the plan of the layer is wrong.
    pub fn slot(&self, slot: Slot) -> &Tensor {
        let found = self.slots[slot as usize].as_ref();
        found.unwrap_or_else(|| panic!("no step left {slot:?}"))
    }

    /// What a mixing step left there, if one did.
    pub fn find(&self, slot: Slot) -> Option<&Tensor> {
        self.slots[slot as usize].as_ref()
    }

    /// What a mixing step left there, if one did; the slot is empty then.
    pub fn take_slot(&mut self, slot: Slot) -> Option<Tensor> {
        self.slots[slot as usize].take()
    }

    /// Puts `tensor` there, or nothing.
    pub fn set_slot(&mut self, slot: Slot, tensor: Option<Tensor>) {
        self.slots[slot as usize] = tensor;
    }

    /// The slots that hold something.
    pub fn filled(&self) -> impl Iterator<Item = Slot> + '_ {
        let filled = |slot: &Slot| self.slots[*slot as usize].is_some();
        Slot::ALL.into_iter().filter(filled)
    }

    /// The state with each of its tensors changed.
    pub fn try_map<E>(&self, change: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let mut changed = Self::new(change(&self.hidden)?);
        for slot in self.filled() {
            changed.set_slot(slot, Some(change(self.slot(slot))?));
        }
        Ok(changed)
    }

    /// The state on `device`; shares memory where it is there already.
    pub fn to_device(&self, device: Device) -> Result<Self, TchError> {
        self.try_map(|tensor| tensor.f_to_device(device))
    }

    /// The same tensors, not copied.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let slots = self.slots.each_ref();
        Self {
            hidden: self.hidden.shallow_clone(),
            slots: slots.map(|slot| slot.as_ref().map(Tensor::shallow_clone)),
        }
    }
}
