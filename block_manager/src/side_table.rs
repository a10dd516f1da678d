use crate::Handle;

/// Values of one's own for what lies in a [`Slab`](crate::Slab) of somebody else, found by the same [`Handle`]s.
///
/// A handle finds only the value that was put in for it: once another value was put in for the next thing at the same
/// index, the old handle finds nothing. Looking up is one array access, and memory grows to the greatest index used.
#[derive(Clone, Debug)]
pub struct SideTable<T> {
    places: Vec<Place<T>>,
}

/// The generation lies in front, beside the first fields of the value, because both are looked at together.
#[derive(Clone, Debug, Default)]
#[repr(C)]
struct Place<T> {
    /// The generation of the handle that the value is for; 0 while it is for none.
    generation: u32,
    value: T,
}

impl<T> Default for SideTable<T> {
    fn default() -> Self {
        Self { places: Vec::new() }
    }
}

impl<T> SideTable<T> {
    /// The value that was put in for the handle.
    #[must_use]
    pub fn get(&self, handle: impl Into<Handle>) -> Option<&T> {
        let handle = handle.into();
        let place = self.places.get(handle.index() as usize)?;
        if place.generation == handle.generation() && place.generation != 0 {
            Some(&place.value)
        } else {
            None
        }
    }

    /// The value that was put in for the handle.
    #[must_use]
    pub fn get_mut(&mut self, handle: impl Into<Handle>) -> Option<&mut T> {
        let handle = handle.into();
        let place = self.places.get_mut(handle.index() as usize)?;
        if place.generation == handle.generation() && place.generation != 0 {
            Some(&mut place.value)
        } else {
            None
        }
    }

    /// All values that were put in and not removed, in ascending order of their indices.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter(|place| place.generation != 0).map(|place| &place.value)
    }

    /// All values that were put in and not removed, in ascending order of their indices.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().filter(|place| place.generation != 0).map(|place| &mut place.value)
    }

    /// Removes every value.
    pub fn clear(&mut self) {
        self.places.clear();
    }
}

impl<T: Default> SideTable<T> {
    /// Puts a value in for the handle, in place of the value of an earlier handle with the same index. Nothing is put in
    /// for the default handle, which names nothing.
    pub fn insert(&mut self, handle: impl Into<Handle>, value: T) {
        if let Some(claimed) = self.claim(handle) {
            *claimed.value = value;
        }
    }

    /// Gives the handle the value at its index. The value is kept as it is even where it was for an earlier handle, so
    /// that its buffers can be used again: [`Claimed::is_left_over`] then tells the caller to reset it. Returns `None` for
    /// the default handle, which names nothing.
    pub fn claim(&mut self, handle: impl Into<Handle>) -> Option<Claimed<'_, T>> {
        let handle = handle.into();
        if handle.generation() == 0 {
            return None;
        }
        let index = handle.index() as usize;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, Place::default);
        }
        let place = &mut self.places[index];
        let is_left_over = place.generation != handle.generation();
        place.generation = handle.generation();
        Some(Claimed { value: &mut place.value, is_left_over })
    }

    /// Takes out the value that was put in for the handle.
    pub fn remove(&mut self, handle: impl Into<Handle>) -> Option<T> {
        let handle = handle.into();
        let value = std::mem::take(self.get_mut(handle)?);
        if let Some(place) = self.places.get_mut(handle.index() as usize) {
            place.generation = 0;
        }
        Some(value)
    }
}

/// The value that [`SideTable::claim`] gave to a handle.
#[derive(Debug)]
pub struct Claimed<'a, T> {
    /// The value.
    pub value: &'a mut T,
    /// Whether the value was not this handle's before: it is the default value, or left over from an earlier handle.
    pub is_left_over: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails says where")]

    use super::*;
    use crate::Slab;

    #[test]
    fn a_stale_handle_finds_nothing_and_changes_nothing() {
        let (mut slab, mut table) = (Slab::default(), SideTable::default());
        let old = slab.insert(());
        table.insert(old, 1);
        assert_eq!(table.get(old), Some(&1));
        slab.remove(old);
        let new = slab.insert(());
        assert_eq!((old.index(), table.get(new)), (new.index(), None));
        table.insert(new, 2);
        assert_eq!(table.get(old), None);
        assert_eq!(table.remove(old), None);
        assert_eq!(table.get_mut(old), None);
        assert_eq!(table.remove(new), Some(2));
        assert_eq!(table.get(new), None);
        assert_eq!(table.remove(new), None);
    }

    #[test]
    fn the_default_handle_finds_nothing() {
        let (mut slab, mut table) = (Slab::default(), SideTable::default());
        let first = slab.insert(());
        table.insert(first, 'b');
        table.insert(Handle::default(), 'a');
        assert!(table.claim(Handle::default()).is_none());
        assert_eq!(table.get(Handle::default()), None);
        assert_eq!(table.get_mut(Handle::default()), None);
        assert_eq!(table.remove(Handle::default()), None);
        assert_eq!(table.values().collect::<Vec<_>>(), [&'b']);
    }

    #[test]
    fn a_claimed_value_keeps_the_buffer_that_an_earlier_handle_left() {
        let (mut slab, mut table) = (Slab::default(), SideTable::<Vec<u32>>::default());
        let old = slab.insert(());
        assert!(table.claim(old).unwrap().is_left_over);
        table.claim(old).unwrap().value.push(7);
        assert!(!table.claim(old).unwrap().is_left_over);
        slab.remove(old);
        let new = slab.insert(());
        let claimed = table.claim(new).unwrap();
        assert!(claimed.is_left_over && *claimed.value == [7]);
        assert!(!table.claim(new).unwrap().is_left_over);
        assert_eq!(table.get(old), None);
    }
}
