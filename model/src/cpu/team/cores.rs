//! Keeps the threads of a team off their caller's core.
//!
//! A kernel may put a thread that it wakes on the core of the thread that wakes it, and move it to a free
//! core only some milliseconds later. Linux does so after some 30 ms of idleness if it knows of no cache
//! that the cores share, as on many virtual machines. The whole team then runs on one core. Before it wakes
//! members, the caller therefore forbids them the core that it runs on at the moment. The kernel chooses
//! among all other cores.

#[cfg(target_os = "linux")]
pub use linux::Cores;

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// Stands for no core: the members are not forbidden any.
    const NOWHERE: usize = usize::MAX;

    /// The cores that the members of a team may use.
    #[derive(Debug)]
    pub struct Cores {
        /// The cores that the process may use. `None` if there are too few for each member to have one.
        allowed: Option<CpuSet>,
        members: Vec<OnceLock<Pid>>,
        /// The core that the members were forbidden last.
        forbidden: AtomicUsize,
    }

    impl Cores {
        /// The cores that the calling thread may use, for `members` members besides the caller.
        pub fn new(members: usize) -> Self {
            // Cores are forbidden only if each member still has one without the caller's. With more members
            // than that, the kernel spreads them.
            let fits = |cores: &CpuSet| members > 0 && cores.count() as usize > members;
            let allowed = sched_getaffinity(None).ok().filter(fits);
            let members = (0..members).map(|_| OnceLock::new()).collect();
            Self { allowed, members, forbidden: AtomicUsize::new(NOWHERE) }
        }

        /// Registers a member. It is called on the member's own thread.
        pub fn enter(&self, member: usize) {
            if let Some(slot) = self.members.get(member) {
                slot.get_or_init(gettid);
            }
        }

        /// Moves every member off the core that this thread runs on. A member that has not registered yet
        /// stays where it is; so do all of them if the kernel refuses the call.
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

/// Does nothing on systems that have no such calls.
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
