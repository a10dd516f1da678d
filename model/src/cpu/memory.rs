//! Zeroed and aligned memory for weights and activations.

#[cfg(not(target_os = "linux"))]
use std::alloc::Layout;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
#[cfg(target_os = "linux")]
use std::sync::Arc;

#[cfg(target_os = "linux")]
use parking_lot::Mutex;

/// Buffers of at least this many bytes have a mapping of their own; smaller ones share mappings.
#[cfg(target_os = "linux")]
const ALONE_FROM: usize = 1 << 20;
/// The size of a huge page on x86-64 and AArch64 Linux, in bytes.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;
/// The smallest page of any system that this runs on, in bytes.
const SMALL_PAGE: usize = 4 << 10;
/// The size of a cache line, in bytes.
const LINE: usize = 64;

/// The system did not grant memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system grants no {bytes} bytes of memory")]
pub struct OutOfMemory {
    /// How many bytes were asked for.
    pub bytes: usize,
}

/// Types for which all bits zero is a valid value, and that need no drop.
///
/// # Safety
///
/// Only plain numbers may implement it.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: `u8` is a plain number.
unsafe impl Plain for u8 {}
// SAFETY: `u16` is a plain number.
unsafe impl Plain for u16 {}
// SAFETY: `f32` is a plain number.
unsafe impl Plain for u32 {}
// SAFETY: `f32` is a plain number.
unsafe impl Plain for f32 {}

/// A fixed number of zeroed `T`, at an address that is a multiple of 64 bytes.
///
/// On Linux the memory lies on huge pages if the system grants them. They gave 15 to 24 % more read
/// bandwidth. Also, a hypervisor that takes pages back from an idle machine takes fewer of them, and each
/// page taken costs about 200 µs in the next step. A buffer of 1 MiB or more has a mapping of its own,
/// which starts at a multiple of 2 MiB; smaller buffers lie side by side in shared ones.
///
/// The system commits mapped memory page by page, when a page is first touched.
pub struct Memory<T: Plain> {
    at: NonNull<T>,
    len: usize,
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "kept for as long as the memory"))]
    origin: Origin,
}

/// Where the memory came from, which decides how it is given back.
enum Origin {
    Empty,
    #[cfg(not(target_os = "linux"))]
    Heap(Layout),
    #[cfg(target_os = "linux")]
    Mapped {
        /// It is unmapped when the last buffer that lies in it is dropped.
        _mapping: Arc<Mapping>,
    },
}

/// Zeroed pages from the system.
#[cfg(target_os = "linux")]
struct Mapping {
    base: NonNull<libc::c_void>,
    reserved: usize,
    /// The first address in the mapping that is a multiple of a huge page.
    at: NonNull<u8>,
}

#[cfg(target_os = "linux")]
impl Mapping {
    /// Maps at least `bytes`, on huge pages if the system grants them.
    fn new(bytes: usize) -> Result<Self, OutOfMemory> {
        let whole = bytes.checked_next_multiple_of(HUGE_PAGE).ok_or(OutOfMemory { bytes })?;
        let reserved = whole.checked_add(HUGE_PAGE).ok_or(OutOfMemory { bytes })?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: this makes a fresh private mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), reserved, access, kind, -1, 0) };
        let base = match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => base,
            _ => return Err(OutOfMemory { bytes }),
        };
        let skipped = base.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `skipped` is less than a huge page, and the mapping is longer than `whole` by one huge
        // page.
        let at = unsafe { base.cast::<u8>().add(skipped) };
        // SAFETY: the range lies in our mapping. The call only advises: if it fails, pages stay small.
        unsafe { libc::madvise(at.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        Ok(Self { base, reserved, at })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it with this length, and no buffer lies in it any more.
        unsafe { libc::munmap(self.base.as_ptr(), self.reserved) };
    }
}

// SAFETY: it hands out each address once, and touches none of them.
#[cfg(target_os = "linux")]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[cfg(target_os = "linux")]
unsafe impl Sync for Mapping {}

/// The huge page in which small buffers are placed now, and how many of its bytes are taken. Bytes that are
/// given back are not reused, because they would have to be zeroed.
#[cfg(target_os = "linux")]
static SHARED: Mutex<Option<(Arc<Mapping>, usize)>> = Mutex::new(None);

/// Takes `bytes`, which are fewer than [`ALONE_FROM`], from the shared huge page.
#[cfg(target_os = "linux")]
fn share(bytes: usize) -> Result<(Arc<Mapping>, NonNull<u8>), OutOfMemory> {
    let mut shared = SHARED.lock();
    let (mapping, given) = match shared.take() {
        Some((mapping, given)) if given + bytes <= HUGE_PAGE => (mapping, given),
        _ => (Arc::new(Mapping::new(HUGE_PAGE)?), 0),
    };
    // SAFETY: `given` lies before the end of the mapping.
    let at = unsafe { mapping.at.add(given) };
    *shared = Some((Arc::clone(&mapping), (given + bytes).next_multiple_of(LINE)));
    Ok((mapping, at))
}

impl<T: Plain> Memory<T> {
    /// Allocates `len` zeros.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the system does not grant the memory.
    pub fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(OutOfMemory { bytes: usize::MAX })?;
        if bytes == 0 {
            return Ok(Self { at: NonNull::dangling(), len: 0, origin: Origin::Empty });
        }
        Self::of(len, bytes)
    }

    #[cfg(target_os = "linux")]
    fn of(len: usize, bytes: usize) -> Result<Self, OutOfMemory> {
        let (mapping, at) = match bytes {
            ALONE_FROM.. => {
                let mapping = Arc::new(Mapping::new(bytes)?);
                let at = mapping.at;
                (mapping, at)
            }
            _ => share(bytes)?,
        };
        Ok(Self { at: at.cast(), len, origin: Origin::Mapped { _mapping: mapping } })
    }

    #[cfg(not(target_os = "linux"))]
    fn of(len: usize, bytes: usize) -> Result<Self, OutOfMemory> {
        let layout =
            Layout::from_size_align(bytes, LINE.max(align_of::<T>())).map_err(|_| OutOfMemory { bytes })?;
        // SAFETY: the size of the layout is not zero.
        let at = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) });
        let at = at.ok_or(OutOfMemory { bytes })?.cast();
        Ok(Self { at, len, origin: Origin::Heap(layout) })
    }

    /// Makes the system back every page with physical memory now. Otherwise it does so at the first write
    /// to a page, which costs some hundred microseconds per huge page in the middle of a step. The contents
    /// stay.
    pub fn touch(&mut self) {
        // SAFETY: `self` is borrowed mutably, so nobody else uses the memory.
        unsafe { self.touch_shared() };
    }

    /// [`touch`](Self::touch) for memory that has several owners.
    ///
    /// # Safety
    ///
    /// Nobody reads or writes the memory during the call.
    pub unsafe fn touch_shared(&self) {
        let (bytes, at) = (self.len * size_of::<T>(), self.at.cast::<u8>().as_ptr());
        for offset in (0..bytes).step_by(SMALL_PAGE) {
            // SAFETY: the byte lies within the elements, which are initialised, and nobody else uses them.
            // The access is volatile because the compiler would otherwise drop the write, which changes
            // nothing.
            unsafe { at.add(offset).write_volatile(at.add(offset).read_volatile()) };
        }
    }

    /// How many elements there are. This reads none of them, as other threads may be writing them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element. Whoever writes through it must avoid aliases, which the borrow checker does not
    /// see. Within this crate threads write disjoint parts of a buffer.
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.at.as_ptr()
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: there are `len` initialised (zeroed) elements, which we own.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: there are `len` initialised (zeroed) elements, which we own and borrow mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

#[cfg(not(target_os = "linux"))]
impl<T: Plain> Drop for Memory<T> {
    fn drop(&mut self) {
        if let Origin::Heap(layout) = self.origin {
            // SAFETY: `of` allocated it with this layout.
            unsafe { std::alloc::dealloc(self.at.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Plain> std::fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} elements at {:p})", self.len, self.at)
    }
}

// SAFETY: it owns plain numbers only.
unsafe impl<T: Plain> Send for Memory<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for Memory<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_lie_beside_each_other_and_never_in_each_other() {
        let sizes = (0..600).map(|i| 1 + i * 977 % 9000);
        let mut pieces: Vec<(usize, Memory<u16>)> =
            sizes.enumerate().map(|(i, len)| (i, Memory::zeroed(len).unwrap())).collect();
        // Some pieces are given back before others are allocated.
        pieces.retain(|(i, _)| i % 3 != 1);
        pieces.extend((1000..1300).map(|i| (i, Memory::zeroed(1 + i * 31 % 4000).unwrap())));
        for (i, piece) in &mut pieces {
            assert!(piece.iter().all(|&x| x == 0), "piece {i} is not zeroed");
            assert!(piece.as_ptr().addr().is_multiple_of(LINE));
            piece.fill(*i as u16 + 1);
        }
        assert!(pieces.iter().all(|(i, piece)| piece.iter().all(|&x| x == *i as u16 + 1)));
    }

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
