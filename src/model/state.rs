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

/// The tensors that a state had, without keeping them.
#[derive(Debug)]
pub struct Versions {
    hidden: Version,
    slots: [Option<Version>; Slot::ALL.len()],
}

#[derive(Debug, PartialEq, Eq)]
struct Version {
    place: usize,
    size: Vec<i64>,
    writes: i64,
}

impl Version {
    fn of(tensor: &Tensor) -> Result<Self, TchError> {
        Ok(Self {
            place: tensor.data_ptr() as usize,
            size: tensor.size(),
            writes: tensor.f_internal_version()?,
        })
    }
}

impl Versions {
    /// Whether the residual stream of `state` is that of then, unchanged.
    pub fn has_hidden_of(&self, state: &State) -> Result<bool, TchError> {
        Ok(self.hidden == Version::of(&state.hidden)?)
    }

    /// Whether what `state` has in `slot` is what was there then, unchanged.
    pub fn has_slot_of(&self, state: &State, slot: Slot) -> Result<bool, TchError> {
        Ok(self.slots[slot as usize] == Some(Version::of(state.slot(slot))?))
    }
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
    ///
    /// From pinned memory of the host to a GPU it is copied while the caller goes on: all that the GPU does later waits for it, but
    /// before the host writes there again, it has to wait for the GPU.
    pub fn to_device(&self, device: Device) -> Result<Self, TchError> {
        self.try_map(|tensor| match device {
            Device::Cuda(_) => tensor.f_to_device_(device, tensor.kind(), true, false),
            _ => tensor.f_to_device(device),
        })
    }

    /// Where its tensors lie, and how often each has been written to.
    pub fn versions(&self) -> Result<Versions, TchError> {
        let mut slots = Slot::ALL.map(|_| None);
        for slot in self.filled() {
            slots[slot as usize] = Some(Version::of(self.slot(slot))?);
        }
        Ok(Versions {
            hidden: Version::of(&self.hidden)?,
            slots,
        })
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
