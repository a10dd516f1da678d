use std::ops::Range;

use serde::Serialize;

/// Any set of layers, in ascending order and without repetition: layers 0 and 3 of 5, or every second one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct LayerSet(Vec<u16>);

impl LayerSet {
    /// All layers of a range.
    #[must_use]
    pub fn range(layers: Range<u16>) -> Self {
        Self(layers.collect())
    }

    /// How many layers it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The layers, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u16> + '_ {
        self.0.iter().copied()
    }

    /// Whether `layer` is one of them.
    #[must_use]
    pub fn contains(&self, layer: u16) -> bool {
        self.place(layer).is_some()
    }

    /// How many layers of the set come before `layer`; `None` when `layer` is not in the set.
    #[must_use]
    pub fn place(&self, layer: u16) -> Option<usize> {
        self.0.binary_search(&layer).ok()
    }
}

impl FromIterator<u16> for LayerSet {
    fn from_iter<I: IntoIterator<Item = u16>>(layers: I) -> Self {
        let mut list: Vec<u16> = layers.into_iter().collect();
        list.sort_unstable();
        list.dedup();
        Self(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_set_is_sorted_and_finds_the_place_of_a_layer() {
        let set: LayerSet = [3, 0, 3].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 3]);
        assert_eq!((set.place(0), set.place(3), set.place(1)), (Some(0), Some(1), None));
        assert_eq!(LayerSet::range(2..2).len(), 0);
    }
}
