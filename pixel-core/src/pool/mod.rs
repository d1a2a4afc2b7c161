//! Threads for work of some microseconds.
//!
//! A model is a thousand parallel steps a token, most of them shorter than it takes to wake a thread. The threads of
//! this team therefore stay awake for a while after a step, and look for the next one: a step costs its caller about a
//! microsecond more than its work. They are as many as rayon's global pool has (`RAYON_NUM_THREADS`, or what a program
//! asked rayon for), and begin when they are first needed.
//!
//! A thread that sleeps, or that the system has taken off its core, holds nobody up: whoever is there takes the tasks,
//! and the caller waits for those alone that have begun one.

mod ahead;

pub(crate) use ahead::reading;

use ahead::Ahead;
use rayon::prelude::*;
use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long a thread looks for the next step before it sleeps: what a program does between two tokens takes less.
const AWAKE: Duration = Duration::from_millis(2);

/// Looks in a row before a thread lets others of its core run.
const LOOKS: u32 = 2000;

/// How many threads work together.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `run` with every task number below `tasks`, on all threads, and returns when all are done. On a thread of
/// rayon, and while the team works for another caller, the tasks are rayon's.
///
/// # Panics
/// If a task panics, with its message.
pub(crate) fn for_each(tasks: usize, run: impl Fn(usize) + Sync) {
    if tasks <= 1 || threads() == 1 {
        return (0..tasks).for_each(run);
    }
    if rayon::current_thread_index().is_none()
        && let Some(_owner) = team().own()
    {
        return team().run(tasks, &run);
    }
    (0..tasks).into_par_iter().for_each(&run);
}

/// Calls `run` for every `len` values of `out`, in parallel if asked to, with the number of the piece.
pub(crate) fn for_each_chunk<T: Send>(out: &mut [T], len: usize, parallel: bool, run: impl Fn(usize, &mut [T]) + Sync) {
    let count = out.len().div_ceil(len.max(1));
    let chunks = out.chunks_mut(len.max(1)).enumerate();
    if !parallel || count <= 1 || threads() == 1 {
        return chunks.for_each(|(i, chunk)| run(i, chunk));
    }
    let chunks = Mutex::new(chunks);
    for_each(threads().min(count), |_| {
        loop {
            let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((i, chunk)) = next else { break };
            run(i, chunk);
        }
    });
}

/// The tasks of a step.
type Run<'a> = dyn Fn(usize) + Sync + 'a;

/// The threads, and the step they work on.
struct Team {
    /// The number of the step, whether it takes threads, and how many work on it; see [`State`].
    state: AtomicU64,
    /// The next task of the step.
    next: AtomicUsize,
    step: UnsafeCell<Step>,
    /// The message of a task that panicked.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// What threads bring nearer while they wait for a step.
    ahead: Ahead,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Held by the caller of a step.
    owner: Mutex<()>,
}

/// What a step is.
#[derive(Clone, Copy)]
struct Step {
    run: Option<&'static Run<'static>>,
    tasks: usize,
}

// SAFETY: `step` is written by the owner while no thread works, and read by threads that have entered; the state orders
// the two. Everything else is atomic or locked.
unsafe impl Sync for Team {}

/// The bits of [`Team::state`]: threads at work in the lower 32, then whether more may enter, then the step's number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    const OPEN: u64 = 1 << 32;
    const STEP: u64 = 1 << 33;

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn working(self) -> u64 {
        self.0 & (Self::OPEN - 1)
    }

    fn step(self) -> u64 {
        self.0 / Self::STEP
    }
}

/// The team, with its threads.
fn team() -> &'static Team {
    static TEAM: OnceLock<Team> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let team = TEAM.get_or_init(|| Team {
        state: AtomicU64::new(0),
        next: AtomicUsize::new(0),
        step: UnsafeCell::new(Step { run: None, tasks: 0 }),
        panic: Mutex::new(None),
        ahead: Ahead::default(),
        sleepers: AtomicUsize::new(0),
        sleep: Mutex::new(()),
        wake: Condvar::new(),
        owner: Mutex::new(()),
    });
    STARTED.get_or_init(|| {
        for i in 1..threads() {
            // Where the system gives no thread, those that are there do the work.
            let _ = std::thread::Builder::new().name(format!("pixel-{i}")).spawn(|| TEAM.wait().work());
        }
    });
    team
}

impl Team {
    /// The right to run a step, if nobody else has it.
    fn own(&self) -> Option<MutexGuard<'_, ()>> {
        match self.owner.try_lock() {
            Ok(owner) => Some(owner),
            // A task of an earlier step panicked; the step has ended like any other.
            Err(TryLockError::Poisoned(owner)) => Some(owner.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Runs a step, in which the caller takes tasks as well; it holds [`owner`](Self::owner).
    fn run(&self, tasks: usize, run: &Run<'_>) {
        // SAFETY: nobody keeps the reference beyond `close`, without which this function does not return.
        let run_static = unsafe { std::mem::transmute::<&Run<'_>, &'static Run<'static>>(run) };
        // SAFETY: the state is closed and no thread works, as the step before has left it, so nobody reads.
        unsafe { *self.step.get() = Step { run: Some(run_static), tasks } };
        self.next.store(0, Ordering::Relaxed);
        let step = State(self.state.load(Ordering::Relaxed)).step() + 1;
        self.state.store((step * State::STEP) | State::OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| self.take_tasks(run, tasks)));
        self.close();
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Err(panic), _) | (_, Some(panic)) = (own, panic) {
            resume_unwind(panic);
        }
    }

    /// Ends the step: nobody enters any more, tasks that nobody has begun are left (after a panic there are some), and
    /// those who have entered are waited for.
    fn close(&self) {
        self.next.fetch_max(usize::MAX / 2, Ordering::Relaxed);
        self.state.fetch_and(!State::OPEN, Ordering::Relaxed);
        let mut looks = 0;
        while State(self.state.load(Ordering::Acquire)).working() > 0 {
            spin_loop();
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            }
        }
    }

    fn take_tasks(&self, run: &Run<'_>, tasks: usize) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            run(task);
        }
    }

    /// What a thread of the team does.
    fn work(&self) {
        let mut last = 0;
        loop {
            last = self.wait_for_step(last);
            if !self.enter(last) {
                continue;
            }
            // SAFETY: this thread has entered, so the owner waits for it before the step is written again or ends.
            let Step { run, tasks } = unsafe { *self.step.get() };
            let run = run.expect("an open step has tasks");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(run, tasks))) {
                self.next.store(tasks, Ordering::Relaxed);
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Joins those that work on step `step`; `false` if it is over.
    fn enter(&self, step: u64) -> bool {
        let open = |state: u64| State(state).is_open() && State(state).step() == step;
        self.state.try_update(Ordering::Acquire, Ordering::Relaxed, |state| open(state).then_some(state + 1)).is_ok()
    }

    /// The number of an open step after `last`, awake at first, then asleep.
    fn wait_for_step(&self, last: u64) -> u64 {
        let next = |order| {
            let state = State(self.state.load(order));
            (state.is_open() && state.step() != last).then_some(state.step())
        };
        let since = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if let Some(step) = next(Ordering::Relaxed) {
                    return step;
                }
                if !self.ahead.fetch() {
                    spin_loop();
                }
            }
            if since.elapsed() > AWAKE {
                break;
            }
            std::thread::yield_now();
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let step = loop {
            if let Some(step) = next(Ordering::SeqCst) {
                break step;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_is_done_when_the_call_returns() {
        for tasks in [0, 1, 2, 3, 17, 1000] {
            for _ in 0..200 {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for_each(tasks, |task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{tasks} tasks");
            }
        }
    }

    #[test]
    fn chunks_are_handed_out_once_each() {
        for (len, chunk) in [(0, 3), (1, 3), (10, 3), (1000, 7)] {
            let mut values = vec![0usize; len];
            for_each_chunk(&mut values, chunk, true, |i, values| values.iter_mut().for_each(|value| *value += i + 1));
            assert!(values.iter().enumerate().all(|(at, value)| *value == at / chunk + 1), "{len} by {chunk}");
        }
    }

    #[test]
    fn a_task_may_have_tasks_and_several_callers_take_turns() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        for_each(4, |_| {
                            for_each(3, |task| {
                                sum.fetch_add(task, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * 100 * 4 * 3);
    }

    /// A measurement: `cargo test --release -p pixel-core --lib -- --ignored --nocapture fork_and_join`.
    #[test]
    #[ignore = "wants the processors for itself"]
    fn fork_and_join_take_less_than_two_microseconds() {
        let step = || {
            let begun = AtomicUsize::new(0);
            let start = Instant::now();
            for_each(threads(), |_| {
                // All threads have to come.
                begun.fetch_add(1, Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < threads() {
                    spin_loop();
                }
            });
            start.elapsed()
        };
        let mut times: Vec<_> = (0..10_000).map(|_| step()).collect();
        times.sort();
        let [median, slow] = [times[5000], times[9000]];
        println!("{} threads: {median:?}, nine of ten below {slow:?}", threads());
        assert!(median < Duration::from_micros(2), "{median:?}");
    }

    #[test]
    fn threads_that_fell_asleep_come_back() {
        for _ in 0..3 {
            std::thread::sleep(2 * AWAKE);
            let done = AtomicUsize::new(0);
            for_each(8, |_| {
                std::thread::sleep(Duration::from_millis(1));
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 8);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        for bad in [0, 7] {
            let panic = catch_unwind(|| for_each(8, |task| assert_ne!(task, bad, "task {bad}"))).unwrap_err();
            let message = panic.downcast_ref::<String>().expect("a message");
            assert!(message.contains(&format!("task {bad}")), "{message}");
            let done = AtomicUsize::new(0);
            for_each(8, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 8);
        }
    }
}
