use std::fmt;

use serde::Serialize;

/// Names a value in a [`Slab`] by its index and by how often that index was given out. The handle of a removed value
/// never names the next value at the same index.
///
/// The default handle names nothing, because generations count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Handle {
    index: u32,
    generation: u32,
}

impl Handle {
    /// The index, which later values reuse. It addresses arrays beside the slab: see [`SideTable`](crate::SideTable).
    #[inline]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// How often the index was given out, this time included.
    #[inline]
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// The generation lies in front, beside the first fields of the value, because both are looked at together. An entry
/// begins with a cache line, so that what lies in its first 64 bytes costs one cache miss.
#[derive(Debug)]
#[repr(C, align(64))]
struct Entry<T> {
    generation: u32,
    /// `None` once the index is retired, because its generations are used up.
    value: Option<T>,
}

/// Values with [`Handle`]s that never alias. The index that was freed last is reused first.
///
/// This is [`slab::Slab`] with a generation for each index. Once the slab has held as many values as it ever will,
/// neither insertion nor removal allocates.
#[derive(Debug)]
pub struct Slab<T> {
    entries: ::slab::Slab<Entry<T>>,
    /// How often each index was given out. It outlives the values, also across [`drain`](Self::drain).
    generations: Vec<u32>,
    /// The number of retired indices. They stay occupied in `entries`, so that they are never given out again.
    retired: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: ::slab::Slab::new(), generations: Vec::new(), retired: 0 }
    }
}

impl<T> Slab<T> {
    /// The number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.retired
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a value in.
    pub fn insert(&mut self, value: T) -> Handle {
        loop {
            let vacant = self.entries.vacant_entry();
            let index = vacant.key();
            if self.generations.len() <= index {
                self.generations.resize(index + 1, 0);
            }
            // One generation more than the last would wrap around, and an old handle would name the new value.
            let Some(generation) = self.generations[index].checked_add(1) else {
                vacant.insert(Entry { generation: u32::MAX, value: None });
                self.retired += 1;
                continue;
            };
            self.generations[index] = generation;
            vacant.insert(Entry { generation, value: Some(value) });
            return Handle { index: index as u32, generation };
        }
    }

    /// Takes a value out. Returns `None` when the handle names nothing, or nothing any more.
    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get(handle)?;
        self.entries.try_remove(handle.index as usize)?.value
    }

    /// The value that the handle names, unless it was removed.
    #[must_use]
    pub fn get(&self, handle: Handle) -> Option<&T> {
        let entry = self.entries.get(handle.index as usize)?;
        if entry.generation == handle.generation { entry.value.as_ref() } else { None }
    }

    /// The value that the handle names, unless it was removed.
    #[must_use]
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let entry = self.entries.get_mut(handle.index as usize)?;
        if entry.generation == handle.generation { entry.value.as_mut() } else { None }
    }

    /// All values, in ascending order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.entries.iter().filter_map(|(index, entry)| {
            let handle = Handle { index: index as u32, generation: entry.generation };
            Some((handle, entry.value.as_ref()?))
        })
    }

    /// Takes all values out. Their handles name nothing from then on.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.retired = 0;
        self.entries.drain().filter_map(|entry| entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_never_names_the_next_value_at_its_index() {
        let mut slab = Slab::default();
        let a = slab.insert('a');
        assert_eq!(slab.remove(a), Some('a'));
        let b = slab.insert('b');
        assert_eq!(a.index(), b.index());
        assert_ne!(a, b);
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.get_mut(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&'b'));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn the_default_handle_names_nothing() {
        let mut slab = Slab::default();
        slab.insert('a');
        assert_eq!(slab.get(Handle::default()), None);
    }

    #[test]
    fn an_index_whose_generations_are_used_up_is_never_given_out_again() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        slab.remove(first);
        slab.generations[0] = u32::MAX - 1;
        let last = slab.insert('b');
        assert_eq!((last.index(), last.generation()), (0, u32::MAX));
        assert_eq!(slab.remove(last), Some('b'));
        for _ in 0..2 {
            let next = slab.insert('c');
            assert_ne!(next.index(), 0);
            assert_eq!((slab.get(last), slab.get(first)), (None, None));
            assert_eq!(slab.remove(last), None);
            assert_eq!((slab.len(), slab.iter().collect::<Vec<_>>()), (1, vec![(next, &'c')]));
            assert_eq!(slab.drain().collect::<Vec<_>>(), ['c']);
            assert!(slab.is_empty());
        }
    }

    #[test]
    fn a_handle_names_nothing_once_the_slab_was_drained() {
        let mut slab = Slab::default();
        let old = slab.insert('a');
        assert_eq!(slab.drain().collect::<Vec<_>>(), ['a']);
        let new = slab.insert('b');
        assert_eq!(old.index(), new.index());
        assert_eq!((slab.get(old), slab.get(new)), (None, Some(&'b')));
    }
}
