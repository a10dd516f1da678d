//! Any bytes as the stream of a completion: wherever it is cut, the same events come of it, and the same answer.
//!
//! The first byte of the input says where the stream is cut; the others are the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagedraft::completion_stream::{Answer, Events};

fuzz_target!(|input: &[u8]| {
    let Some((&seed, stream)) = input.split_first() else { return };
    let whole: &[&[u8]] = &[stream];
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    let pieces = cut(stream, seed);
    let expected = (events(whole), answer(whole));
    for parts in [bytes, pieces] {
        assert_eq!((events(&parts), answer(&parts)), expected);
    }
});

/// The stream in pieces of 0 to 15 bytes, whose lengths follow from `seed`.
fn cut(stream: &[u8], seed: u8) -> Vec<&[u8]> {
    let (mut pieces, mut rest, mut state) = (Vec::new(), stream, u32::from(seed));
    while !rest.is_empty() {
        // Numerical Recipes' generator: its upper bits are random enough for lengths.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (piece, after) = rest.split_at(rest.len().min((state >> 28) as usize));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn events(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let (mut reader, mut events) = (Events::default(), Vec::new());
    for part in parts {
        reader.feed(part, |data| events.push(data.to_vec())).expect("no input is as long as an event may be");
    }
    events
}

/// The number of tokens that were counted, and the answer, or the failure that the stream came to.
fn answer(parts: &[&[u8]]) -> Result<(u32, String), String> {
    let (mut answer, mut tokens) = (Answer::default(), 0);
    for part in parts {
        tokens += answer.feed(part).map_err(|failure| format!("{failure:?}"))?;
    }
    match answer.end(0) {
        Ok(end) => Ok((tokens, format!("{end:?}"))),
        Err(failure) => Err(format!("{failure:?}")),
    }
}
