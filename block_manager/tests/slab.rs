//! The slab and its side table are compared with maps that never reuse a key, and their allocations are counted.
#![allow(clippy::unwrap_used)]

mod counting;

use counting::ALLOCATIONS;
use std::cell::Cell;
use std::collections::BTreeMap;

use pagedraft_block_manager::{Handle, SideTable, Slab};
use proptest::prelude::*;

#[test]
fn a_slab_that_was_full_once_allocates_nothing_more() {
    let (mut slab, mut table) = (Slab::default(), SideTable::default());
    let mut live: Vec<Handle> = (0..1000u64).map(|value| slab.insert(value)).collect();
    live.iter().for_each(|&handle| table.insert(handle, 1u64));
    let before = ALLOCATIONS.with(Cell::get);
    for round in 0..20u64 {
        let gone = 1000 - 50 * round as usize;
        for handle in live.drain(..gone) {
            assert!(slab.remove(handle).is_some() && table.remove(handle).is_some());
        }
        for value in 0..gone as u64 {
            let handle = slab.insert(value);
            table.insert(handle, value);
            live.push(handle);
        }
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert_eq!(slab.len(), 1000);
}

#[derive(Clone, Debug)]
enum Act {
    Insert,
    /// Removes what the handle with this number among all handles ever given out names, if it still does.
    Remove(usize),
    Drain,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![6 => Just(Act::Insert), 5 => any::<usize>().prop_map(Act::Remove), 1 => Just(Act::Drain)]
}

proptest! {
    #[test]
    fn handles_find_what_they_were_given_for_and_nothing_else(acts in prop::collection::vec(act(), 0..200)) {
        let (mut slab, mut table) = (Slab::default(), SideTable::default());
        let (mut all, mut live) = (Vec::new(), BTreeMap::new());
        for (value, act) in acts.into_iter().enumerate() {
            match act {
                Act::Insert => {
                    let handle = slab.insert(value);
                    table.insert(handle, value);
                    prop_assert!(!all.contains(&handle));
                    all.push(handle);
                    live.insert(handle, value);
                }
                Act::Remove(_) if all.is_empty() => {}
                Act::Remove(which) => {
                    let handle: Handle = all[which % all.len()];
                    let expected = live.remove(&handle);
                    prop_assert_eq!(slab.remove(handle), expected);
                    prop_assert_eq!(table.remove(handle), expected);
                }
                Act::Drain => {
                    prop_assert_eq!(slab.drain().collect::<Vec<_>>(), live.values().copied().collect::<Vec<_>>());
                    table.clear();
                    live.clear();
                }
            }
            prop_assert_eq!(slab.len(), live.len());
            prop_assert_eq!(slab.is_empty(), live.is_empty());
            for &handle in &all {
                prop_assert_eq!(slab.get(handle), live.get(&handle));
                prop_assert_eq!(table.get(handle), live.get(&handle));
            }
            let listed: Vec<_> = slab.iter().map(|(handle, &value)| (handle, value)).collect();
            prop_assert_eq!(listed, live.iter().map(|(&handle, &value)| (handle, value)).collect::<Vec<_>>());
        }
    }
}
