use super::*;

/// SplitMix64.
fn random(state: &mut u64, below: u32) -> u32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % u64::from(below)) as u32
}

fn some(keys: u32, count: u32, state: &mut u64) -> Vec<u32> {
    let mut all: Vec<u32> = (0..keys).collect();
    for i in 0..count {
        let j = i + random(state, keys - i);
        all.swap(i as usize, j as usize);
    }
    all.truncate(count as usize);
    all.sort_unstable();
    all
}

fn coded(selected: &[u32], keys: u32, last: &[u32]) -> (Mode, Vec<u8>) {
    let (mut room, mut out) = (Room::default(), Vec::new());
    let code = plan(selected, keys, last, &mut room);
    write(&code, selected, &room, &mut out);
    (code.mode, out)
}

#[test]
fn every_selection_is_read_back_whatever_was_selected_before() {
    let mut state = 20_261_130;
    println!("seed {state}");
    let mut room = Room::default();
    for case in 0..6000 {
        let keys = 1 + random(&mut state, [4, 60, 1000][case % 3]);
        let count = random(&mut state, keys + 1);
        let selected = some(keys, count, &mut state);
        let last = match case % 4 {
            0 => Vec::new(),
            // Of a token further on, whose draft was rejected.
            1 => some(keys + 3, random(&mut state, keys + 4), &mut state),
            2 => selected.iter().copied().filter(|_| random(&mut state, 10) > 0).collect(),
            _ => some(keys, random(&mut state, keys + 1), &mut state),
        };
        let (mode, mut bytes) = coded(&selected, keys, &last);
        let length = bytes.len();
        bytes.extend([0xa5; 9]);
        let mut found = Vec::new();
        let taken = read(mode, (count, keys), &bytes, &last, &mut room, &mut found);
        assert_eq!((taken, &found), (Ok(length), &selected), "case {case}: {count} of {keys} after {last:?}");
    }
    for selected in [vec![0, 1, 2, 4_000_000_000], vec![u32::MAX - 1], vec![5, 1_000_000]] {
        let (mode, bytes) = coded(&selected, u32::MAX, &[]);
        let mut found = Vec::new();
        let shape = (selected.len() as u32, u32::MAX);
        assert_eq!(read(mode, shape, &bytes, &[], &mut room, &mut found), Ok(bytes.len()));
        assert_eq!(found, selected);
    }
}

#[test]
fn random_selections_take_no_more_than_a_twentieth_above_the_bound_at_every_density() {
    let mut state = 7;
    println!("seed {state}");
    let bits = |n: u32, m: u32| (0..m).map(|i| (f64::from(n - i) / f64::from(i + 1)).log2()).sum::<f64>();
    for keys in [4096, 65_536] {
        for count in [keys / 100, keys / 32, keys / 10, keys / 3, keys / 2, keys / 5 * 3, keys / 10 * 9] {
            let selected = some(keys, count, &mut state);
            let (mode, bytes) = coded(&selected, keys, &[]);
            let ratio = bytes.len() as f64 * 8.0 / bits(keys, count);
            assert!(mode == Mode::Fresh && ratio < 1.05, "{count} of {keys}: {ratio}");
        }
    }
    assert_eq!(coded(&some(300, 300, &mut state), 300, &[]), (Mode::All, Vec::new()));
}

#[test]
fn bytes_that_are_no_selection_are_refused_or_read_and_never_panic() {
    let mut state = 9;
    println!("seed {state}");
    let mut room = Room::default();
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random(&mut state, 40)).map(|_| random(&mut state, 256) as u8).collect();
        // Long runs of zeros are codes of great gaps.
        let bytes: Vec<u8> = bytes.into_iter().map(|byte| if byte < 128 { 0 } else { byte }).collect();
        let keys = 1 + random(&mut state, 100);
        let last = some(keys, random(&mut state, keys + 1), &mut state);
        let count = random(&mut state, keys + 1);
        let mut found = Vec::new();
        for mode in [Mode::Fresh, Mode::Delta] {
            if read(mode, (count, keys), &bytes, &last, &mut room, &mut found).is_ok() {
                assert!(found.len() == count as usize && found.iter().all(|&key| key < keys));
            }
        }
    }
}
