//! Sets of small numbers as Rice-coded gaps.
//!
//! A set of m numbers below n is one of C(n, m), so that no code needs fewer than `log2 C(n, m)` bits for all of them: 13,141 bits for 2,048
//! of 65,536. The gaps between the members of a random set are nearly geometric. Rice's code of such a gap, with the best parameter, takes 1 to
//! 4.5 % more than their entropy: `gap >> b` zeros, a one, and the lowest b bits of the gap. If more than half are members, the others are
//! coded. So the code is near the bound at every density, and a number is read with one count of zeros and two shifts.

use super::bits::{BitReader, BitWriter};

/// Bits of the parameter that stands before the gaps.
const PARAMETER_BITS: u32 = 5;
/// Bits that a [`BitWriter`] takes at a time, and a [`BitReader`] shows.
const AT_ONCE: u32 = 56;

/// How a set is coded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Whether the numbers are coded that are not members.
    complement: bool,
    parameter: u32,
    /// The size of the code.
    pub(super) bits: u64,
}

/// Lists the numbers below `n` that are not in `members`, which ascend.
fn others(members: &[u32], n: u32, out: &mut Vec<u32>) {
    out.clear();
    let mut next = 0;
    for &member in members {
        out.extend(next..member);
        next = member + 1;
    }
    out.extend(next..n);
}

/// The gap before each number: how many are left out since the one before it.
fn gaps(list: &[u32]) -> impl Iterator<Item = u32> {
    let first = list.iter().take(1).copied();
    first.chain(list.windows(2).map(|pair| pair[1] - pair[0] - 1))
}

/// The best way to code `members`, which ascend and lie below `n`. `room` is where [`write`] looks for the others.
pub(super) fn plan(members: &[u32], n: u32, room: &mut Vec<u32>) -> Plan {
    let complement = members.len() as u64 * 2 > u64::from(n);
    let list = if complement {
        others(members, n, room);
        room.as_slice()
    } else {
        members
    };
    let count = list.len() as u64;
    let head = u64::from(1 + PARAMETER_BITS);
    let Some(&last) = list.last() else { return Plan { complement, parameter: 0, bits: head } };
    let mean = (u64::from(last) + 1 - count) / count;
    let least = mean.checked_ilog2().unwrap_or(0).saturating_sub(1);
    // The best parameter is near log2 of 0.7 times the mean gap.
    let mut sums = [0u64; 3];
    for gap in gaps(list) {
        for (sum, more) in sums.iter_mut().zip(0..) {
            *sum += u64::from(gap >> (least + more).min(31));
        }
    }
    let size = |(sum, more): (u64, u32)| (sum + count * u64::from(least + more + 1), least + more);
    let (bits, parameter) = sums.into_iter().zip(0..).map(size).min().unwrap_or_default();
    Plan { complement, parameter, bits: head + bits }
}

/// Appends the code of `members` by its plan. `room` must be as [`plan`] left it.
pub(super) fn write(members: &[u32], plan: Plan, room: &[u32], bits: &mut BitWriter, out: &mut Vec<u8>) {
    bits.put(u64::from(plan.complement) | u64::from(plan.parameter) << 1, 1 + PARAMETER_BITS, out);
    let (list, b) = (if plan.complement { room } else { members }, plan.parameter);
    for gap in gaps(list) {
        let (mut zeros, low) = (gap >> b, u64::from(gap) & ((1 << b) - 1));
        while zeros + 1 + b > AT_ONCE {
            let some = zeros.min(AT_ONCE);
            bits.put(0, some, out);
            zeros -= some;
        }
        bits.put((1 | low << 1) << zeros, zeros + 1 + b, out);
    }
}

/// Reads the `count` members of a set of numbers below `n` into `out`.
///
/// # Errors
///
/// What is wrong with the code.
pub(super) fn read(
    bits: &mut BitReader<'_>,
    (count, n): (u32, u32),
    room: &mut Vec<u32>,
    out: &mut Vec<u32>,
) -> Result<(), &'static str> {
    out.clear();
    if count > n {
        return Err("a set has more members than there are numbers");
    }
    let head = bits.peek();
    bits.skip(1 + PARAMETER_BITS);
    let b = (head >> 1) as u32 & ((1 << PARAMETER_BITS) - 1);
    if head & 1 == 0 {
        return read_list(bits, b, (count, n), out);
    }
    read_list(bits, b, (n - count, n), room)?;
    let mut next = 0;
    for &other in room.iter() {
        out.extend(next..other);
        next = other + 1;
    }
    out.extend(next..n);
    Ok(())
}

fn read_list(
    bits: &mut BitReader<'_>,
    b: u32,
    (count, n): (u32, u32),
    out: &mut Vec<u32>,
) -> Result<(), &'static str> {
    out.clear();
    out.resize(count as usize, 0);
    // A gap takes b + 2 bits on average, so that nearly every group of gaps is seen at once.
    let next = match b {
        0..=3 => read_groups::<8>(bits, b, out)?,
        4..=9 => read_groups::<4>(bits, b, out)?,
        _ => read_groups::<1>(bits, b, out)?,
    };
    if next > u64::from(n) { Err("a member of a set is too large") } else { Ok(()) }
}

/// Reads the members of a set, `G` of them from one look at the bits where these reach so far. Returns the first number behind
/// the last member.
#[inline(always)]
fn read_groups<const G: usize>(
    bits: &mut BitReader<'_>,
    b: u32,
    out: &mut [u32],
) -> Result<u64, &'static str> {
    let mask = (1u64 << b) - 1;
    let mut next = 0u64;
    let (groups, rest) = out.as_chunks_mut::<G>();
    for group in groups {
        let (mut word, mut taken, mut end) = (bits.peek(), 0, next);
        for place in group.iter_mut() {
            let zeros = word.trailing_zeros();
            // Shifts of 64 and more only happen behind what was seen; such a group is read anew.
            let gap = u64::from(zeros) << b | word.wrapping_shr(zeros) >> 1 & mask;
            word = word.wrapping_shr(zeros + 1 + b);
            taken += zeros + 1 + b;
            *place = (end + gap) as u32;
            end += gap + 1;
        }
        if taken <= AT_ONCE {
            bits.skip(taken);
            next = end;
        } else {
            next = read_singly(bits, b, next, group)?;
        }
    }
    read_singly(bits, b, next, rest)
}

/// Reads members one by one; `next` is the first number that the first of them may be, and the number behind the last is returned.
fn read_singly(
    bits: &mut BitReader<'_>,
    b: u32,
    mut next: u64,
    out: &mut [u32],
) -> Result<u64, &'static str> {
    let mask = (1u64 << b) - 1;
    for place in out {
        let word = bits.peek();
        let zeros = word.trailing_zeros();
        let gap = if zeros + 1 + b <= AT_ONCE {
            bits.skip(zeros + 1 + b);
            u64::from(zeros) << b | (word >> zeros >> 1) & mask
        } else {
            long_gap(bits, b)?
        };
        *place = (next + gap) as u32;
        next += gap + 1;
    }
    Ok(next)
}

/// A gap whose code is longer than what is seen at once.
#[cold]
fn long_gap(bits: &mut BitReader<'_>, b: u32) -> Result<u64, &'static str> {
    let mut zeros = 0u64;
    loop {
        let seen = bits.peek().trailing_zeros();
        if seen < AT_ONCE {
            bits.skip(seen + 1);
            zeros += u64::from(seen);
            break;
        }
        if bits.is_at_end() {
            return Err("it ends within a number");
        }
        bits.skip(AT_ONCE);
        zeros += u64::from(AT_ONCE);
    }
    if zeros > u64::from(u32::MAX >> b) {
        return Err("a gap is too large");
    }
    let low = bits.peek() & ((1 << b) - 1);
    bits.skip(b);
    Ok(zeros << b | low)
}
