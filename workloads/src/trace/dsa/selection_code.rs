//! The code of one selection, given the one before it.
//!
//! Of two selections in a row many members are the same. The code says either all members ([`subset`]), or which of the last
//! selection's members were kept, as a set of their ranks, and which are new. The shorter one is written.

use super::bits::{BitReader, BitWriter};
use super::subset::{self, Plan};

/// How a selection is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Every key that there is; nothing follows.
    All,
    /// Its members.
    Fresh,
    /// What was kept of the last one, and what is new.
    Delta,
}

/// Working memory.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Ranks in the last selection.
    kept: Vec<u32>,
    added: Vec<u32>,
    kept_others: Vec<u32>,
    added_others: Vec<u32>,
    fresh_others: Vec<u32>,
}

/// A selection that is about to be written.
pub(super) struct Code {
    pub(super) mode: Mode,
    plans: [Option<Plan>; 2],
}

/// Bits that the number of kept members may take at most.
const COUNT_BITS: u64 = 32;

/// Chooses the shorter code of `selected`, which ascends and lies below `keys`, where `last` was selected before.
pub(super) fn plan(selected: &[u32], keys: u32, last: &[u32], room: &mut Room) -> Code {
    if selected.len() == keys as usize {
        return Code { mode: Mode::All, plans: [None; 2] };
    }
    let fresh = subset::plan(selected, keys, &mut room.fresh_others);
    let alone = Code { mode: Mode::Fresh, plans: [Some(fresh), None] };
    if last.is_empty() {
        return alone;
    }
    split(selected, last, room);
    let kept = subset::plan(&room.kept, last.len() as u32, &mut room.kept_others);
    let added = subset::plan(&room.added, keys, &mut room.added_others);
    match kept.bits + added.bits + COUNT_BITS < fresh.bits {
        true => Code { mode: Mode::Delta, plans: [Some(kept), Some(added)] },
        false => alone,
    }
}

/// Splits `selected` into ranks of members of `last`, and new members. No branch depends on the numbers, because it could not be
/// foreseen.
fn split(selected: &[u32], last: &[u32], room: &mut Room) {
    let Room { kept, added, .. } = room;
    kept.clear();
    kept.resize(last.len() + 1, 0);
    added.clear();
    added.resize(selected.len() + 1, 0);
    let (mut i, mut j, mut kept_len, mut added_len) = (0, 0, 0, 0);
    while let (Some(&old), Some(&new)) = (last.get(i), selected.get(j)) {
        kept[kept_len] = i as u32;
        kept_len += usize::from(old == new);
        added[added_len] = new;
        added_len += usize::from(new < old);
        i += usize::from(old <= new);
        j += usize::from(new <= old);
    }
    kept.truncate(kept_len);
    added.truncate(added_len);
    added.extend_from_slice(&selected[j..]);
}

/// Appends the code that was planned for `selected`.
pub(super) fn write(code: &Code, selected: &[u32], room: &Room, out: &mut Vec<u8>) {
    let mut bits = BitWriter::default();
    match code.plans {
        [Some(kept), Some(added)] => {
            write_varint(room.kept.len() as u64, out);
            subset::write(&room.kept, kept, &room.kept_others, &mut bits, out);
            subset::write(&room.added, added, &room.added_others, &mut bits, out);
        }
        [Some(fresh), None] => subset::write(selected, fresh, &room.fresh_others, &mut bits, out),
        _ => {}
    }
    bits.finish(out);
}

/// Reads the `count` members of a selection of `keys` keys into `out`, and returns the number of bytes that they took.
///
/// # Errors
///
/// What is wrong with the code.
pub(super) fn read(
    mode: Mode,
    (count, keys): (u32, u32),
    mut from: &[u8],
    last: &[u32],
    room: &mut Room,
    out: &mut Vec<u32>,
) -> Result<usize, &'static str> {
    let cut = "it ends within a selection";
    let before = from.len();
    match mode {
        Mode::All => {
            out.clear();
            out.extend(0..count);
            Ok(0)
        }
        Mode::Fresh => {
            let mut bits = BitReader::new(from);
            subset::read(&mut bits, (count, keys), &mut room.fresh_others, out)?;
            bits.bytes().ok_or(cut)
        }
        Mode::Delta => {
            let kept = read_varint(&mut from).ok_or(cut)?;
            let kept = u32::try_from(kept).ok().filter(|&kept| kept <= count).ok_or("it keeps too much")?;
            let mut bits = BitReader::new(from);
            subset::read(&mut bits, (kept, last.len() as u32), &mut room.kept_others, &mut room.kept)?;
            subset::read(&mut bits, (count - kept, keys), &mut room.added_others, &mut room.added)?;
            for rank in &mut room.kept {
                *rank = last[*rank as usize];
            }
            merge(&mut room.kept, &mut room.added, out);
            let taken = bits.bytes().ok_or(cut)?;
            Ok(before - from.len() + taken)
        }
    }
}

/// Merges two ascending lists, without a branch that depends on the numbers. An end mark stays behind each of them. The result
/// is made in four quarters side by side, since each member must wait for the one before it.
fn merge(one: &mut Vec<u32>, other: &mut Vec<u32>, out: &mut Vec<u32>) {
    let count = one.len() + other.len();
    let quarter = count / 4;
    let mut ways = [0, 1, 2, 3].map(|way| first_of(one, other, way * quarter));
    one.push(u32::MAX);
    other.push(u32::MAX);
    let (one, other) = (one.as_slice(), other.as_slice());
    let take = |[i, j]: &mut [usize; 2]| {
        let (a, b) = (one[*i], other[*j]);
        *i += usize::from(a < b);
        *j += usize::from(b <= a);
        a.min(b)
    };
    out.clear();
    out.resize(count, 0);
    let (quarters, rest) = out.split_at_mut(4 * quarter);
    let (first, second) = quarters.split_at_mut(2 * quarter);
    let (places, [a, b, c, d]) = ((first.split_at_mut(quarter), second.split_at_mut(quarter)), &mut ways);
    let ((first, second), (third, fourth)) = places;
    for (((first, second), third), fourth) in first.iter_mut().zip(second).zip(third).zip(fourth) {
        (*first, *second, *third, *fourth) = (take(a), take(b), take(c), take(d));
    }
    rest.iter_mut().for_each(|place| *place = take(d));
}

/// How many members of each list are among the first `count` of both.
fn first_of(one: &[u32], other: &[u32], count: usize) -> [usize; 2] {
    let (mut least, mut most) = (count.saturating_sub(other.len()), count.min(one.len()));
    while least < most {
        let middle = least.midpoint(most);
        if one[middle] < other[count - 1 - middle] { least = middle + 1 } else { most = middle }
    }
    [least, count - least]
}

/// Appends a number, 7 bits a byte, the lowest first; the highest bit of a byte says that more follow.
pub(super) fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes such a number; `None` if there is none.
pub(super) fn read_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
