//! A team of threads that does one thing at a time together.
//!
//! A job is split into as many *shares* as the team has members, and every share is done exactly
//! once, by whoever claims it. The caller does shares too, and those that no thread has claimed by
//! the time it gets there: it never waits for a thread that has not started. Idle members spin
//! briefly and then sleep. So a team loses little when its cores are shared with other programs,
//! where teams that meet at spinning barriers lose almost everything.
//!
//! Work is balanced by [`Chunks`], a counter that all shares of a job draw from; a share that finds
//! it empty returns at once.

mod cores;

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::cores::Cores;

/// How long an idle member spins before it sleeps: longer than the gaps between the operations of a
/// step, and some twice of what waking it costs the caller (15 to 20 us on a virtual machine).
const SPIN: Duration = Duration::from_micros(50);

type Job = dyn Fn(usize, usize) + Sync;

/// Threads that stay; the caller of [`Team::run`] is one of them.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

struct Shared {
    members: usize,
    /// Job number in the upper half, number of shares claimed in the lower; all are claimed between
    /// jobs.
    claims: AtomicU64,
    job: UnsafeCell<Option<*const Job>>,
    done: AtomicUsize,
    stop: AtomicBool,
    sleeping: Vec<AtomicBool>,
    cores: Cores,
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the one caller that has the turn, while no share is unclaimed or
// unfinished, and read only after a claim, which the write happens before.
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is only followed while `Team::run` keeps the job alive.
unsafe impl Send for Shared {}

const CLAIM: u64 = 0xffff_ffff;

impl Team {
    /// A team of `members`, the caller included (at least one).
    ///
    /// # Errors
    ///
    /// The system starts no more threads.
    pub fn new(members: usize) -> std::io::Result<Team> {
        let members = members.clamp(1, 1024);
        let shared = Arc::new(Shared {
            members,
            claims: AtomicU64::new(members as u64),
            job: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleeping: (1..members).map(|_| AtomicBool::new(false)).collect(),
            cores: Cores::new(members - 1),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Team { shared, threads: Vec::new(), turn: Mutex::new(()) };
        for member in 1..members {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("team-{member}"));
            team.threads.push(thread.spawn(move || shared.member(member - 1))?);
        }
        Ok(team)
    }

    /// Number of members, the caller included.
    #[must_use]
    pub fn members(&self) -> usize {
        self.shared.members
    }

    /// Runs `job(share, shares)` once for each share and returns when all are done.
    ///
    /// A job that calls `run` again, or a second thread that calls it meanwhile, gets its own job done
    /// as a single share.
    ///
    /// # Panics
    ///
    /// When a share panicked, with its panic, after all have ended.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        let _turn = match self.turn.try_lock() {
            Ok(turn) if self.shared.members > 1 => turn,
            Err(TryLockError::Poisoned(turn)) if self.shared.members > 1 => turn.into_inner(),
            _ => return job(0, 1),
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. The job is followed by claimers of its shares alone, and
        // this function does not return before every claimed share is done.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), *const Job>(job) };
        // SAFETY: we have the turn, and no share of an earlier job is unclaimed or unfinished.
        unsafe { *shared.job.get() = Some(erased) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.claims.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // Share 0 is ours from the start.
        shared.claims.store(number | 1, Ordering::SeqCst);
        let mut way_made = false;
        for (sleeping, thread) in shared.sleeping.iter().zip(&self.threads) {
            if sleeping.load(Ordering::SeqCst) {
                if !std::mem::replace(&mut way_made, true) {
                    shared.cores.make_way();
                }
                thread.thread().unpark();
            }
        }
        shared.perform(0);
        while let Some(share) = shared.claim() {
            shared.perform(share);
        }
        shared.wait();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// The next unclaimed share of the running job.
    fn claim(&self) -> Option<usize> {
        let mut claims = self.claims.load(Ordering::Acquire);
        while claims & CLAIM < self.members as u64 {
            match self.claims.compare_exchange_weak(claims, claims + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((claims & CLAIM) as usize),
                Err(now) => claims = now,
            }
        }
        None
    }

    fn perform(&self, share: usize) {
        // SAFETY: a claimed share is not yet done, so the caller still keeps the job where it was.
        let job = unsafe { (*self.job.get()).map(|job| &*job) };
        let result = catch_unwind(AssertUnwindSafe(|| {
            if let Some(job) = job {
                job(share, self.members);
            }
        }));
        if let Err(panic) = result {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        let last = self.done.fetch_add(1, Ordering::SeqCst) + 1 == self.members;
        if last && self.caller_sleeps.load(Ordering::SeqCst) {
            let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(caller) = caller {
                caller.unpark();
            }
        }
    }

    /// Until all shares are done.
    fn wait(&self) {
        let done = || self.done.load(Ordering::SeqCst) == self.members;
        if spin_until(&done) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !done() {
            std::thread::park();
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// The life of a thread of the team.
    fn member(&self, index: usize) {
        let sleeping = &self.sleeping[index];
        self.cores.enter(index);
        let work = || {
            self.claims.load(Ordering::SeqCst) & CLAIM < self.members as u64
                || self.stop.load(Ordering::SeqCst)
        };
        loop {
            while let Some(share) = self.claim() {
                self.perform(share);
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if !spin_until(&work) {
                sleeping.store(true, Ordering::SeqCst);
                while !work() {
                    std::thread::park();
                }
                sleeping.store(false, Ordering::SeqCst);
            }
        }
    }
}

/// Spins for a while; whether the condition came true.
fn spin_until(condition: &impl Fn() -> bool) -> bool {
    for _ in 0..64 {
        if condition() {
            return true;
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..8 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A member catches the panics of its shares, so there is no error to report.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} members)", self.members())
    }
}

/// The items 0..n of a job, drawn by its shares in runs that shrink towards the end: long ones
/// first, so that a share walks memory in order, short ones last, so that all end together.
#[derive(Debug)]
pub struct Chunks {
    next: AtomicUsize,
    items: usize,
    shares: usize,
    least: usize,
}

impl Chunks {
    /// Items 0..`items` for `shares` shares, in runs of at least `least` (the last may be shorter).
    #[must_use]
    pub fn new(items: usize, shares: usize, least: usize) -> Chunks {
        Chunks { next: AtomicUsize::new(0), items, shares: shares.max(1), least: least.max(1) }
    }

    /// The next run of items, or `None` when all are drawn.
    #[must_use]
    pub fn draw(&self) -> Option<std::ops::Range<usize>> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.items.checked_sub(start).filter(|&left| left > 0)?;
            let fair = if self.shares == 1 { left } else { left / (2 * self.shares) };
            let end = start + fair.max(self.least).min(left);
            match self.next.compare_exchange_weak(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..end),
                Err(now) => start = now,
            }
        }
    }
}

#[cfg(test)]
mod tests;
