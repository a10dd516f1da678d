//! Keeps the threads of a team off their caller's core.
//!
//! A kernel may put a thread that it wakes on the core of whoever wakes it, and only some milliseconds later on one that is
//! free: Linux does where cores share no cache that it knows of, as on many virtual machines, after some 30 ms of
//! idleness. A team then works on one core. So members that are about to be woken are forbidden the core that the caller
//! runs on at the moment; all others are left to the kernel.

#[cfg(target_os = "linux")]
pub use linux::Cores;

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// Of no core.
    const NOWHERE: usize = usize::MAX;

    /// The cores that the members of a team may use.
    #[derive(Debug)]
    pub struct Cores {
        /// Those that the process may use, where there is one for each.
        allowed: Option<CpuSet>,
        members: Vec<OnceLock<Pid>>,
        /// The one that the members were forbidden last.
        forbidden: AtomicUsize,
    }

    impl Cores {
        /// Those that the calling thread may use, for so many members beside it.
        pub fn new(members: usize) -> Self {
            // As many members as are left cores without the caller's, or fewer: more are the kernel's to spread.
            let fits = |cores: &CpuSet| members > 0 && cores.count() as usize > members;
            let allowed = sched_getaffinity(None).ok().filter(fits);
            let members = (0..members).map(|_| OnceLock::new()).collect();
            Self { allowed, members, forbidden: AtomicUsize::new(NOWHERE) }
        }

        /// Of a member, on its own thread.
        pub fn enter(&self, member: usize) {
            if let Some(slot) = self.members.get(member) {
                slot.get_or_init(gettid);
            }
        }

        /// Moves every member off the core that this thread runs on. One that is not there yet is left where it is, as it would
        /// be by a kernel that does not allow this.
        pub fn make_way(&self) {
            let Some(allowed) = &self.allowed else { return };
            let own = sched_getcpu();
            if self.forbidden.load(Ordering::Relaxed) == own || own >= CpuSet::MAX_CPU {
                return;
            }
            let mut others = *allowed;
            others.unset(own);
            let mut all = true;
            for slot in &self.members {
                match slot.get() {
                    Some(&member) => _ = sched_setaffinity(Some(member), &others),
                    None => all = false,
                }
            }
            self.forbidden.store(if all { own } else { NOWHERE }, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_member_is_kept_off_the_core_of_whoever_makes_way() {
            let cores = Cores::new(1);
            let (entered, left) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    cores.enter(0);
                    entered.wait();
                    left.wait();
                });
                entered.wait();
                cores.make_way();
                let forbidden = cores.forbidden.load(Ordering::Relaxed);
                let now = sched_getaffinity(cores.members[0].get().copied());
                left.wait();
                let now = now.unwrap();
                match &cores.allowed {
                    Some(allowed) => {
                        assert!(allowed.is_set(forbidden) && !now.is_set(forbidden));
                        assert_eq!(now.count(), allowed.count() - 1);
                    }
                    None => assert_eq!(forbidden, NOWHERE),
                }
            });
        }
    }
}

/// Where the system has no such calls.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub struct Cores;

#[cfg(not(target_os = "linux"))]
impl Cores {
    pub fn new(_: usize) -> Self {
        Self
    }

    pub fn enter(&self, _: usize) {}

    pub fn make_way(&self) {}
}
