//! What tells two checkpoints apart.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{Checkpoint, Weights};

/// Places of a tensor that are looked at, and bytes at each.
const PLACES: usize = 16;
const BYTES: usize = 64;

/// A name for what a checkpoint computes: see [`Checkpoint::fingerprint`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Checkpoint {
    /// A SHA-256 over the parsed configuration and, of every tensor that is stored, its name, its type, its shape and a
    /// sample of its bytes: 64 bytes at each of 16 places that are evenly spaced, the first and the last bytes among them,
    /// or all of a tensor of at most 1,024 bytes. Dummy weights are a function of the configuration and their seed, which is
    /// hashed in their place.
    ///
    /// A GGUF file is hashed by the names and blocks that it has, so that its fingerprint differs from that of the directory it was made
    /// of. The directory, the sharding, the tokenizer and fields of `config.json` that mean nothing here do not matter. What it
    /// cannot tell apart: checkpoints that differ only in bytes between the sampled ones, such as a model in which single
    /// weights of large matrices were edited. Training or quantising changes nearly all bytes, and is seen. Another version
    /// of this program may give a checkpoint another fingerprint.
    ///
    /// Costs the reading of 16 pages a tensor, which loading reads in any case.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut sha = Sha256::new();
        text(&mut sha, &format!("{:?}", self.config));
        match &self.weights {
            Weights::Drawn { seed } => {
                text(&mut sha, "dummy");
                sha.update(seed.to_le_bytes());
            }
            Weights::Gguf(gguf) => {
                for (name, what, bytes) in gguf.contents() {
                    text(&mut sha, name);
                    text(&mut sha, &what);
                    sample(&mut sha, bytes);
                }
            }
            Weights::Stored { index, .. } => {
                let mut names: Vec<&str> = index.keys().map(String::as_str).collect();
                names.sort_unstable();
                for name in names {
                    let Some((_, tensor)) = self.stored(name) else { continue };
                    text(&mut sha, name);
                    text(&mut sha, &format!("{:?} {:?}", tensor.dtype, tensor.shape));
                    sample(&mut sha, tensor.bytes);
                }
            }
        }
        Fingerprint(sha.finalize().into())
    }
}

/// A text with its length, so that no two lists of texts are hashed alike.
fn text(sha: &mut Sha256, text: &str) {
    sha.update((text.len() as u64).to_le_bytes());
    sha.update(text.as_bytes());
}

fn sample(sha: &mut Sha256, bytes: &[u8]) {
    sha.update((bytes.len() as u64).to_le_bytes());
    if bytes.len() <= PLACES * BYTES {
        sha.update(bytes);
        return;
    }
    let last = bytes.len() - BYTES;
    for place in 0..PLACES {
        // In 128 bits no product of a length overflows.
        let start = (last as u128 * place as u128 / (PLACES as u128 - 1)) as usize;
        sha.update(&bytes[start..start + BYTES]);
    }
}
