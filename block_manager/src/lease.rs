use std::mem;

use crate::{BlockId, GroupId};

/// A block that its one owner may write. Give it back with [`BlockPool::release`](crate::BlockPool::release)
/// or seal it.
#[must_use = "a lease that is dropped is a block lost to the pool"]
#[derive(Debug, PartialEq, Eq)]
pub struct Writable(BlockId, GroupId);

/// A full block whose tokens are all accepted, held with others perhaps; nobody writes it any more. Give it
/// back with [`BlockPool::release`](crate::BlockPool::release).
#[must_use = "a lease that is dropped is a block lost to the pool"]
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed(BlockId, GroupId);

/// Either kind of lease.
#[must_use = "a lease that is dropped is a block lost to the pool"]
#[derive(Debug, PartialEq, Eq)]
pub enum Lease {
    /// See [`Writable`].
    Writable(Writable),
    /// See [`Sealed`].
    Sealed(Sealed),
}

macro_rules! lease {
    ($kind:ident) => {
        impl $kind {
            pub(crate) fn new(group: GroupId, id: BlockId) -> Self {
                Self(id, group)
            }

            /// The block it is for.
            #[must_use]
            pub fn id(&self) -> BlockId {
                self.0
            }

            /// The group of the block.
            #[must_use]
            pub fn group(&self) -> GroupId {
                self.1
            }

            pub(crate) fn into_parts(self) -> (GroupId, BlockId) {
                let parts = (self.1, self.0);
                mem::forget(self);
                parts
            }
        }

        impl Drop for $kind {
            fn drop(&mut self) {
                debug_assert!(
                    std::thread::panicking(),
                    "the lease of block {} was dropped; leases end by being given back to the pool",
                    self.0.0
                );
            }
        }

        impl From<$kind> for Lease {
            fn from(lease: $kind) -> Self {
                Self::$kind(lease)
            }
        }
    };
}

lease!(Writable);
lease!(Sealed);

impl Lease {
    /// The block it is for.
    #[must_use]
    pub fn id(&self) -> BlockId {
        match self {
            Self::Writable(lease) => lease.id(),
            Self::Sealed(lease) => lease.id(),
        }
    }

    pub(crate) fn into_parts(self) -> (GroupId, BlockId) {
        match self {
            Self::Writable(lease) => lease.into_parts(),
            Self::Sealed(lease) => lease.into_parts(),
        }
    }
}
