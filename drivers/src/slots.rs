//! The lanes of one group, by their ids.
//!
//! Comes in: lanes, and ids that callers name. Goes out: ids, and the lane that an id names. Promises: an
//! id names one lane of its group and, once that is gone, none ever after; a look-up is an index and a
//! comparison; a free slot is known without a search.

use crate::lane::{AddError, LaneId};

/// Bits of a [`LaneId`] that name the slot; the rest is the slot's generation.
const SLOT_BITS: u32 = 10;
/// Lanes of one group, at most.
pub(crate) const LANES_MAX: u16 = 1 << SLOT_BITS;
/// A generation that came round would let an old id name a new lane.
const GENERATION_MAX: u32 = u32::MAX >> SLOT_BITS;

/// The slot that an id names, of whatever generation.
pub(crate) fn slot_of(lane: LaneId) -> usize {
    (lane.0 & (u32::from(LANES_MAX) - 1)) as usize
}

struct Slot<L> {
    generation: u32,
    lane: Option<Box<L>>,
}

/// See the module.
pub(crate) struct Slots<L> {
    slots: Vec<Slot<L>>,
    free: Vec<u16>,
}

impl<L> Slots<L> {
    /// Room for so many lanes, at most [`LANES_MAX`].
    pub(crate) fn new(lanes: u16) -> Self {
        let lanes = lanes.min(LANES_MAX);
        let empty = || Slot {
            generation: 0,
            lane: None,
        };
        Self {
            slots: std::iter::repeat_with(empty).take(lanes.into()).collect(),
            free: (0..lanes).rev().collect(),
        }
    }

    /// Room, in lanes.
    pub(crate) fn room(&self) -> usize {
        self.slots.len()
    }

    /// The id of the lane that is put in next.
    pub(crate) fn next_id(&self) -> Result<LaneId, AddError> {
        let full = AddError::GroupFull(self.slots.len());
        let slot = *self.free.last().ok_or(full)?;
        let generation = self.slots[usize::from(slot)].generation;
        Ok(LaneId((generation << SLOT_BITS) | u32::from(slot)))
    }

    /// Puts a lane in under the id that [`Slots::next_id`] said.
    pub(crate) fn put(&mut self, id: LaneId, lane: L) {
        let slot = self.free.pop();
        debug_assert_eq!(slot.map(usize::from), Some(slot_of(id)));
        self.slots[slot_of(id)].lane = Some(Box::new(lane));
    }

    /// The lane with this id.
    pub(crate) fn get(&self, id: LaneId) -> Option<&L> {
        let slot = self.slots.get(slot_of(id))?;
        let lane = slot.lane.as_deref()?;
        (slot.generation == id.0 >> SLOT_BITS).then_some(lane)
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, id: LaneId) -> Option<&mut L> {
        let slot = self.slots.get_mut(slot_of(id))?;
        let lane = slot.lane.as_deref_mut()?;
        (slot.generation == id.0 >> SLOT_BITS).then_some(lane)
    }

    /// The lane in a slot.
    pub(crate) fn at(&self, slot: usize) -> Option<&L> {
        self.slots.get(slot)?.lane.as_deref()
    }

    /// The same, to change it.
    pub(crate) fn at_mut(&mut self, slot: usize) -> Option<&mut L> {
        self.slots.get_mut(slot)?.lane.as_deref_mut()
    }

    /// All lanes.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = &L> {
        self.slots.iter().filter_map(|slot| slot.lane.as_deref())
    }

    /// Takes a lane out. Its slot stays empty until it is given free.
    pub(crate) fn take(&mut self, slot: usize) -> Option<Box<L>> {
        self.slots.get_mut(slot)?.lane.take()
    }

    /// Lets another lane have the slot of one that was taken out.
    pub(crate) fn give_free(&mut self, slot: usize) {
        let Some(place) = self.slots.get_mut(slot) else {
            return;
        };
        debug_assert!(place.lane.is_none(), "its lane is still there");
        if place.generation < GENERATION_MAX {
            place.generation += 1;
            self.free.push(slot as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_slot_whose_generations_are_used_up_is_used_no_more() {
        let mut slots = Slots::new(1);
        slots.slots[0].generation = GENERATION_MAX;
        let last = slots.next_id().unwrap();
        slots.put(last, 'x');
        assert_eq!(slots.get(last), Some(&'x'));
        assert_eq!(slots.take(0).as_deref(), Some(&'x'));
        slots.give_free(0);
        assert_eq!(slots.get(last), None);
        assert!(matches!(slots.next_id(), Err(AddError::GroupFull(1))));
    }

    proptest! {
        /// Against a map of every id that there ever was.
        #[test]
        fn an_id_names_its_lane_and_never_another(
            steps in prop::collection::vec((any::<bool>(), 0usize..6, any::<bool>()), 1..200),
        ) {
            let mut slots = Slots::new(4);
            let mut known: HashMap<LaneId, Option<usize>> = HashMap::new();
            let mut kept = 0;
            for (number, (add, slot, free)) in steps.into_iter().enumerate() {
                if add {
                    match slots.next_id() {
                        Ok(id) => {
                            prop_assert!(known.insert(id, Some(number)).is_none(), "used twice");
                            slots.put(id, number);
                        }
                        Err(_) => prop_assert_eq!(slots.lanes().count() + kept, 4),
                    }
                } else if let Some(lane) = slots.take(slot) {
                    let entry = known.values_mut().find(|entry| **entry == Some(*lane));
                    prop_assert!(entry.is_some_and(|entry| entry.take().is_some()));
                    if free {
                        slots.give_free(slot);
                    } else {
                        kept += 1;
                    }
                }
                for (id, lane) in &known {
                    prop_assert_eq!(slots.get(*id), lane.as_ref());
                    prop_assert_eq!(slots.get_mut(*id).copied(), *lane);
                    let here = slots.at(slot_of(*id)).copied();
                    prop_assert!(lane.is_none() || here == *lane);
                    prop_assert_eq!(slots.at_mut(slot_of(*id)).copied(), here);
                }
            }
            prop_assert_eq!(slots.room(), 4);
        }
    }
}
