use std::fmt;

use serde::Serialize;

/// Names a thing in a [`Slab`]: a place, and how often that place was given out. A handle of a thing that
/// was removed never names its successor.
///
/// The default handle names nothing: generations count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Handle {
    index: u32,
    generation: u32,
}

impl Handle {
    /// The place, reused by later things: an index for arrays beside the slab.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// How often the place was given out, this time included.
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

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    thing: Option<T>,
}

/// Things in an array with [`Handle`]s that never alias. The place freed last is reused first.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    vacant: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), vacant: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// How many things are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `thing` in.
    pub fn insert(&mut self, thing: T) -> Handle {
        if let Some(index) = self.vacant.pop() {
            let place = &mut self.places[index as usize];
            place.generation += 1;
            place.thing = Some(thing);
            return Handle { index, generation: place.generation };
        }
        let index = self.places.len() as u32;
        self.places.push(Place { generation: 1, thing: Some(thing) });
        // A later removal must find room to note the vacancy without asking the heap.
        self.vacant.reserve(self.places.len() - self.vacant.len());
        Handle { index, generation: 1 }
    }

    /// Takes the thing out; `None` when the handle names nothing (any more).
    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        let place = self.places.get_mut(handle.index as usize)?;
        if place.generation != handle.generation {
            return None;
        }
        let thing = place.thing.take()?;
        // A place whose generations are used up is never given out again.
        if place.generation < u32::MAX {
            self.vacant.push(handle.index);
        }
        Some(thing)
    }

    /// The thing, unless it was removed.
    #[must_use]
    pub fn get(&self, handle: Handle) -> Option<&T> {
        let place = self.places.get(handle.index as usize)?;
        if place.generation == handle.generation { place.thing.as_ref() } else { None }
    }

    /// The thing, unless it was removed.
    #[must_use]
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let place = self.places.get_mut(handle.index as usize)?;
        if place.generation == handle.generation { place.thing.as_mut() } else { None }
    }

    /// All things, by place.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let handle = Handle { index: index as u32, generation: place.generation };
            Some((handle, place.thing.as_ref()?))
        })
    }

    /// Takes everything out.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.vacant.clear();
        self.places.drain(..).filter_map(|place| place.thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_never_names_the_next_thing_in_its_place() {
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
}
