//! A team of threads that work on one job at a time together.
//!
//! A job is split into as many *shares* as the team has members, and every share is done exactly once, by
//! whichever member claims it. The caller claims shares too, and keeps claiming until none is left, so it
//! never waits for a thread that has not started. Idle members spin briefly and then sleep. A team
//! therefore loses little when it shares its cores with other programs, where teams that meet at spinning
//! barriers lose almost everything.
//!
//! [`Chunks`] balances the work. It is a counter that all shares of a job draw items from; a share that
//! finds none left returns at once.

mod cores;

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::cores::Cores;

/// How long an idle member spins before it sleeps. It is longer than the gaps between the operations of a
/// step, and about twice as long as the caller needs to wake a member (15 to 20 µs on a virtual machine).
const SPIN: Duration = Duration::from_micros(50);

type Job = dyn Fn(usize, usize) + Sync;

/// Threads that live for as long as the team. The caller of [`Team::run`] is a member too.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

struct Shared {
    members: usize,
    /// The number of the job in the upper half, and how many of its shares are claimed in the lower half.
    /// Between jobs all shares are claimed.
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

// SAFETY: only the caller that holds `turn` writes `job`, and only while no share is unclaimed or
// unfinished. It is read only after a claim, and the write happens before that.
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is followed only while `Team::run` keeps the job alive.
unsafe impl Send for Shared {}

const CLAIM: u64 = 0xffff_ffff;

impl Team {
    /// A team of `members` members, the caller included; at least one.
    ///
    /// # Errors
    ///
    /// The system refuses to start another thread.
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

    /// The number of members, the caller included.
    #[must_use]
    pub fn members(&self) -> usize {
        self.shared.members
    }

    /// Runs `job(share, shares)` once for each share, and returns when all shares are done.
    ///
    /// If a job calls `run` itself, or a second thread calls it at the same time, that inner or second job
    /// runs on its caller's thread alone, as a single share.
    ///
    /// # Panics
    ///
    /// If a share panicked: with its panic, after all shares have ended.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        let _turn = match self.turn.try_lock() {
            Ok(turn) if self.shared.members > 1 => turn,
            Err(TryLockError::Poisoned(turn)) if self.shared.members > 1 => turn.into_inner(),
            _ => return job(0, 1),
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. Only those who have claimed a share follow the pointer, and
        // this function does not return before every claimed share is done.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), *const Job>(job) };
        // SAFETY: we hold `turn`, and no share of an earlier job is unclaimed or unfinished.
        unsafe { *shared.job.get() = Some(erased) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.claims.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // The caller has claimed share 0 from the start.
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
    /// Claims the next share of the running job, if one is left.
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
        // SAFETY: a claimed share is not done yet, so the caller of `run` still keeps the job alive.
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

    /// Waits until all shares are done.
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

    /// The loop that a thread of the team runs.
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

/// Spins for up to [`SPIN`], and returns whether the condition became true.
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

/// The items 0..n of a job. Shares draw them in runs that get shorter towards the end: long runs first, so
/// that a share walks memory in order, and short ones last, so that all shares end at about the same time.
#[derive(Debug)]
pub struct Chunks {
    next: AtomicUsize,
    items: usize,
    shares: usize,
    least: usize,
}

impl Chunks {
    /// The items `0..items` for `shares` shares, in runs of at least `least` items (the last run may be
    /// shorter).
    #[must_use]
    pub fn new(items: usize, shares: usize, least: usize) -> Chunks {
        Chunks { next: AtomicUsize::new(0), items, shares: shares.max(1), least: least.max(1) }
    }

    /// Draws the next run of items, or `None` if all are drawn.
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
