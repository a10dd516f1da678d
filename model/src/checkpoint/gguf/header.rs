//! The header of a GGUF file: its metadata, and where its tensors lie.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::ops::Range;

use super::cursor::Cursor;
use super::ggml_type::GgmlType;
use super::value::Value;
use crate::error::ModelError;

/// What every file begins with.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// The versions that are read. Version 1 had smaller counts; nobody writes it any more.
const VERSIONS: Range<u32> = 2..4;
/// Bytes between the places where tensors may begin, where the metadata do not say otherwise.
const ALIGNMENT: u64 = 32;
/// The most dimensions that ggml's tensors have.
const MOST_DIMENSIONS: u32 = 4;

/// What the header says, checked against the length of the file.
pub(super) struct Header {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, Stored>,
}

/// A tensor of the file.
pub(super) struct Stored {
    pub kind: GgmlType,
    /// Rows first, as everywhere here. A file has the sizes the other way round.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub range: Range<usize>,
}

impl Header {
    /// Reads the header of a file, whose bytes the cursor has from the first to the last.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Header, ModelError> {
        let unsupported = |cursor: &Cursor<'_>, feature: String, hint: &str| ModelError::Unsupported {
            path: cursor.path().to_owned(),
            feature,
            hint: hint.to_owned(),
        };
        if cursor.take(4, "the mark GGUF")? != MAGIC {
            return Err(cursor.damaged("it does not begin with GGUF".to_owned()));
        }
        let version = cursor.u32("the version")?;
        if VERSIONS.contains(&version.swap_bytes()) {
            let hint = "convert it to little-endian (gguf-convert-endian of the Python package gguf)";
            return Err(unsupported(cursor, "a big-endian GGUF file".to_owned(), hint));
        }
        if !VERSIONS.contains(&version) {
            let hint = "versions 2 and 3 are read";
            return Err(unsupported(cursor, format!("version {version} of GGUF"), hint));
        }
        let num_tensors = cursor.u64("the number of tensors")?;
        let num_keys = cursor.u64("the number of keys")?;
        let mut metadata = HashMap::new();
        for _ in 0..num_keys {
            let key = cursor.text("a key of the metadata")?;
            let value = Value::read(cursor, key)?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(cursor.damaged(format!("its metadata have the key `{key}` twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(bytes)) if bytes.is_power_of_two() => *bytes,
            Some(_) => {
                let reason = "`general.alignment` is not a power of two".to_owned();
                return Err(cursor.damaged(reason));
            }
        };
        let tensors = tensors(cursor, num_tensors, alignment)?;
        Ok(Header { metadata, tensors })
    }
}

/// A tensor as the header has it. Its offset counts from the first byte of the data.
struct Info<'a> {
    name: &'a str,
    kind: GgmlType,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

fn tensors(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<HashMap<String, Stored>, ModelError> {
    let mut infos = Vec::new();
    for _ in 0..count {
        infos.push(Info::read(cursor, alignment)?);
    }
    let start = (cursor.at() as u64).checked_next_multiple_of(alignment);
    let length = (cursor.at() + cursor.left()) as u64;
    let mut tensors = HashMap::new();
    let mut ends: Vec<(u64, u64, &str)> = Vec::new();
    for Info { name, kind, shape, offset, bytes } in infos {
        let from = start.and_then(|start| start.checked_add(offset));
        let range = from.and_then(|from| Some(from..from.checked_add(bytes)?));
        let Some(range) = range.filter(|range| range.end <= length) else {
            return Err(cursor.damaged(format!(
                "tensor `{name}` ({kind}, shape {shape:?}) takes {bytes} bytes from byte {offset} of the data, and the \
                 file has {length} bytes, {} of them data (cut short, or a size that lies)",
                length.saturating_sub(start.unwrap_or(length))
            )));
        };
        ends.push((range.start, range.end, name));
        // Both ends are within the file, which is in memory.
        let range = range.start as usize..range.end as usize;
        match tensors.entry(name.to_owned()) {
            Place::Occupied(_) => return Err(cursor.damaged(format!("it has the tensor `{name}` twice"))),
            Place::Vacant(place) => drop(place.insert(Stored { kind, shape, range })),
        }
    }
    ends.sort_unstable();
    match ends.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        None => Ok(tensors),
        Some(pair) => Err(cursor.damaged(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2))),
    }
}

impl<'a> Info<'a> {
    fn read(cursor: &mut Cursor<'a>, alignment: u64) -> Result<Info<'a>, ModelError> {
        let name = cursor.text("the name of a tensor")?;
        let what = format!("the description of tensor `{name}`");
        let dimensions = cursor.u32(&what)?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            let reason =
                format!("tensor `{name}` has {dimensions} dimensions; a tensor has 1 to {MOST_DIMENSIONS}");
            return Err(cursor.damaged(reason));
        }
        let mut sizes = Vec::new();
        for _ in 0..dimensions {
            sizes.push(cursor.u64(&what)?);
        }
        let kind =
            GgmlType::of_number(cursor.u32(&what)?).map_err(|found| ModelError::UnsupportedGgmlType {
                path: cursor.path().to_owned(),
                tensor: name.to_owned(),
                found,
                known: GgmlType::ALL.map(GgmlType::name).join(", "),
            })?;
        let offset = cursor.u64(&what)?;
        if !offset.is_multiple_of(alignment) {
            let reason =
                format!("tensor `{name}` begins at byte {offset} of the data, no multiple of {alignment}");
            return Err(cursor.damaged(reason));
        }
        let shape: Option<Vec<usize>> =
            sizes.iter().rev().map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).collect();
        let bytes = shape.as_deref().and_then(|shape| bytes(kind, shape));
        let (Some(shape), Some(bytes)) = (shape, bytes) else {
            return Err(cursor.damaged(format!(
                "tensor `{name}` has sizes {sizes:?}, which are no tensor of type {kind}: the first must be a multiple of {}, \
                 none may be 0, and the bytes of all must be countable",
                kind.block_len()
            )));
        };
        Ok(Info { name, kind, shape, offset, bytes })
    }
}

/// The bytes of a tensor of this shape; `None` where a row is no whole number of blocks, or where they overflow.
fn bytes(kind: GgmlType, shape: &[usize]) -> Option<u64> {
    let (row_len, rows) = shape.split_last()?;
    let row = kind.row_bytes(*row_len)? as u64;
    rows.iter().try_fold(row, |bytes, &size| bytes.checked_mul(size as u64))
}
