//! One `.safetensors` file, mapped into memory or embedded in the program.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype as StoredDtype, SafeTensorError, SafeTensors};

use crate::error::ModelError;
use crate::lfs_pointer;

/// The bytes of a file.
pub(super) enum Bytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

impl Bytes {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

struct Entry {
    dtype: StoredDtype,
    shape: Vec<usize>,
    /// Where its bytes are in the file.
    range: Range<usize>,
}

/// A safetensors file whose header was checked against its length: every tensor lies inside the
/// file, none overlap, and each has the bytes its shape and type ask for.
pub(super) struct Shard {
    path: PathBuf,
    bytes: Bytes,
    entries: HashMap<String, Entry>,
}

/// A tensor as it lies in a shard.
pub(super) struct Stored<'a> {
    pub dtype: StoredDtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl Shard {
    /// Maps a file. It must not be changed or cut short while the model is in use, as with every
    /// program that maps its weights.
    pub fn open(path: &Path) -> Result<Shard, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source, hint: "" };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        if length < 8 {
            return Err(ModelError::BadSafetensors {
                path: path.to_owned(),
                reason: format!("it has {length} bytes, too few for a safetensors header"),
            });
        }
        // SAFETY: the mapping is read-only and private to this process's readers; that nobody
        // truncates the file meanwhile is the documented condition of this function.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        lfs_pointer::refuse(path, &map)?;
        Shard::parse(path.to_owned(), Bytes::Mapped(map))
    }

    /// Takes a file's bytes. `path` is its name in complaints.
    pub fn from_bytes(path: PathBuf, bytes: Cow<'static, [u8]>) -> Result<Shard, ModelError> {
        Shard::parse(path, Bytes::Held(bytes))
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Shard, ModelError> {
        let all = bytes.as_slice();
        let (header, metadata) = match SafeTensors::read_metadata(all) {
            Ok(parsed) => parsed,
            Err(error) => {
                let reason = explain(all, &error);
                return Err(ModelError::BadSafetensors { path, reason });
            }
        };
        let start = 8 + header;
        let mut entries = HashMap::new();
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let range = match (start.checked_add(from), start.checked_add(to)) {
                (Some(from), Some(to)) if from <= to && to <= all.len() => from..to,
                _ => {
                    let reason = format!("tensor `{name}` lies outside the file");
                    return Err(ModelError::BadSafetensors { path, reason });
                }
            };
            let entry = Entry { dtype: info.dtype, shape: info.shape.clone(), range };
            entries.insert(name, entry);
        }
        Ok(Shard { path, bytes, entries })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<Stored<'_>> {
        let entry = self.entries.get(name)?;
        Some(Stored {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: self.bytes.as_slice().get(entry.range.clone())?,
        })
    }
}

/// Says in words what a header that was refused does wrong, with the numbers.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    let length = bytes.len() as u64;
    let header = bytes.first_chunk::<8>().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    match error {
        SafeTensorError::HeaderTooSmall => {
            format!("it has {length} bytes, too few for a safetensors header")
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => format!(
            "its header claims {header} bytes, the file has {length} (truncated, or no safetensors file)"
        ),
        SafeTensorError::MetadataIncompleteBuffer => match data_end(bytes, header) {
            Some(end) => format!(
                "its tensors end at byte {}, the file has {length} (a broken download?)",
                end.saturating_add(8).saturating_add(header)
            ),
            None => "its header and its length disagree".to_owned(),
        },
        SafeTensorError::InvalidHeader(error) => format!("its header is not UTF-8: {error}"),
        SafeTensorError::InvalidHeaderDeserialization(error) => {
            format!("its header is no valid JSON of tensors: {error}")
        }
        SafeTensorError::InvalidOffset(tensor) => format!(
            "the data_offsets of tensor `{tensor}` overlap another tensor, leave a gap, or run backwards"
        ),
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            let odd = odd_tensor(bytes, header).unwrap_or_else(|| "a tensor".to_owned());
            format!("the data_offsets of {odd} do not fit its shape and type")
        }
        other => other.to_string(),
    }
}

/// The header as JSON, whatever it says.
fn header_json(bytes: &[u8], header: u64) -> Option<serde_json::Map<String, serde_json::Value>> {
    let end = usize::try_from(header).ok()?.checked_add(8)?;
    serde_json::from_slice(bytes.get(8..end)?).ok()
}

/// The first tensor whose bytes are not as many as its shape and type make them, with its figures.
fn odd_tensor(bytes: &[u8], header: u64) -> Option<String> {
    let json = header_json(bytes, header)?;
    let tensors = json.iter().filter(|(name, _)| *name != "__metadata__");
    tensors.into_iter().find_map(|(name, tensor)| {
        let offset = |i: usize| tensor.get("data_offsets")?.get(i)?.as_u64();
        let found = offset(1)?.checked_sub(offset(0)?);
        let dtype = tensor.get("dtype")?.as_str()?;
        let bits = match dtype {
            "BOOL" | "U8" | "I8" => 8,
            "F16" | "BF16" | "U16" | "I16" => 16,
            "F64" | "U64" | "I64" => 64,
            other if other.starts_with("F8") => 8,
            _ => 32,
        };
        let shape = tensor.get("shape")?;
        let elements = shape.as_array()?.iter().try_fold(1u64, |n, size| n.checked_mul(size.as_u64()?));
        let expected = elements.and_then(|n| Some(n.checked_mul(bits)? / 8));
        (expected.is_none() || expected != found)
            .then(|| format!("tensor `{name}` (dtype {dtype}, shape {shape})"))
    })
}

fn data_end(bytes: &[u8], header: u64) -> Option<u64> {
    let json = header_json(bytes, header)?;
    let ends = json.values();
    ends.filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max()
}
