//! Ten questions to a circuit breaker (T1 to T10). Part of this program and of the rivals'.
//!
//! Real time, open for 60 ms, one permit, one required success; a window of the last 10 results with a rate of 0.5,
//! or 5 consecutive failures. Calls are polled by hand, so that every one of them stands exactly where the question
//! wants it. A *gated* operation ends when the test says.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How long a breaker under test stays open.
pub(crate) const OPEN: Duration = Duration::from_millis(60);
/// Surely longer.
const WAIT: Duration = Duration::from_millis(75);
/// More calls than any breaker of the battery may need to open.
const MANY: u32 = 10_000;

/// The operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

/// What an operation does, shared with the test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    started: Arc<AtomicU32>,
    then: Arc<AtomicU32>,
}

const WAITS: u32 = 0;
const SUCCEEDS: u32 = 1;
const FAILS: u32 = 2;
const PANICS: u32 = 3;

impl Script {
    fn of(then: u32) -> Self {
        let script = Self::default();
        script.end(then);
        script
    }

    fn end(&self, then: u32) {
        self.then.store(then, Ordering::SeqCst);
    }

    fn started(&self) -> u32 {
        self.started.load(Ordering::SeqCst)
    }

    /// Runs it; what a breaker guards.
    pub(crate) fn run(self) -> Operation {
        Operation { script: self, polled: false }
    }
}

/// A scripted operation. It counts as started when it is polled for the first time.
#[derive(Debug)]
pub(crate) struct Operation {
    script: Script,
    polled: bool,
}

impl Future for Operation {
    type Output = Result<(), Failed>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if !std::mem::replace(&mut self.polled, true) {
            self.script.started.fetch_add(1, Ordering::SeqCst);
        }
        match self.script.then.load(Ordering::SeqCst) {
            SUCCEEDS => Poll::Ready(Ok(())),
            FAILS => Poll::Ready(Err(Failed)),
            PANICS => panic!("planned"),
            _ => Poll::Pending,
        }
    }
}

/// A guarded call; `Some` with the operation's result, `None` for a refusal.
pub(crate) type Call = Pin<Box<dyn Future<Output = Option<Result<(), Failed>>>>>;

/// A breaker under test: starts a guarded call of a script.
pub(crate) trait Subject {
    fn call(&self, script: Script) -> Call;
}

impl<F: Fn(Script) -> Call> Subject for F {
    fn call(&self, script: Script) -> Call {
        self(script)
    }
}

fn poll(call: &mut Call) -> Poll<Option<Result<(), Failed>>> {
    call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[allow(clippy::disallowed_methods, reason = "the rivals know no clock but the real one")]
fn wait() {
    std::thread::sleep(WAIT);
}

/// The breaker and what the questions have in common.
struct Test<'a>(&'a dyn Subject);

impl Test<'_> {
    /// One call that ends at once; whether its operation was started.
    fn once(&self, then: u32) -> bool {
        let script = Script::of(then);
        let mut call = self.0.call(script.clone());
        let _ = poll(&mut call);
        script.started() > 0
    }

    /// A gated call after its first poll.
    fn gated(&self) -> (Script, Call) {
        let script = Script::of(WAITS);
        let mut call = self.0.call(script.clone());
        let _ = poll(&mut call);
        (script, call)
    }

    /// Lets a gated call end.
    fn end(&self, (script, mut call): (Script, Call), then: u32) {
        script.end(then);
        let _ = poll(&mut call);
    }

    /// Fails until a call is refused; how many it took.
    fn trip(&self) -> Option<u32> {
        (0..=MANY).find(|_| !self.once(FAILS))
    }

    /// Whether `n` calls in a row are started and succeed.
    fn is_closed(&self) -> bool {
        self.once(SUCCEEDS) && self.once(SUCCEEDS)
    }

    /// Whether it closes again within ten open times.
    fn recovers(&self) -> bool {
        (0..10).any(|_| {
            wait();
            self.is_closed()
        })
    }
}

/// An answer: whether it is the wanted one, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) passed: bool,
    pub(crate) seen: String,
}

fn answer(passed: bool, fine: &str, wrong: impl Into<String>) -> Answer {
    Answer { passed, seen: if passed { fine.to_owned() } else { wrong.into() } }
}

type Question = fn(&Test<'_>) -> Answer;

/// How many questions there are; their ids are T1 and so on.
pub(crate) const COUNT: usize = 10;

const QUESTIONS: [Question; COUNT] = [t1, t2, t3, t4, t5, t6, t7, t8, t9, t10];

/// All ten, each on a breaker of its own.
pub(crate) fn ask(make: &dyn Fn() -> Box<dyn Subject>) -> Vec<Answer> {
    let hook = std::panic::take_hook();
    // Planned panics are no news.
    std::panic::set_hook(Box::new(|_| {}));
    let asked = QUESTIONS.iter().map(|question| {
        let subject = make();
        let test = Test(&*subject);
        catch_unwind(AssertUnwindSafe(|| question(&test))).unwrap_or_else(|_| answer(false, "", "panics"))
    });
    let answers = asked.collect();
    std::panic::set_hook(hook);
    answers
}

fn t1(test: &Test<'_>) -> Answer {
    let tripped = test.trip().is_some();
    let refused = (0..10).all(|_| !test.once(SUCCEEDS));
    answer(tripped && refused, "ok", if tripped { "runs" } else { "never opens" })
}

fn t2(test: &Test<'_>) -> Answer {
    (0..MANY).for_each(|_| {
        test.once(SUCCEEDS);
    });
    match test.trip() {
        Some(5) => answer(true, "5", ""),
        Some(n) => answer(false, "", n.to_string()),
        None => answer(false, "", format!("> {MANY}")),
    }
}

fn t3(test: &Test<'_>) -> Answer {
    test.trip();
    wait();
    let calls: Vec<_> = (0..50).map(|_| test.gated()).collect();
    let admitted: u32 = calls.iter().map(|(script, _)| script.started()).sum();
    answer(admitted == 1, "1", admitted.to_string())
}

fn t4(test: &Test<'_>) -> Answer {
    test.trip();
    for _ in 0..3 {
        wait();
        drop(test.gated());
    }
    answer(test.recovers(), "ok", "stuck")
}

fn t5(test: &Test<'_>) -> Answer {
    test.trip();
    wait();
    let panicked = catch_unwind(AssertUnwindSafe(|| test.once(PANICS))).is_err();
    answer(panicked && test.recovers(), "ok", if panicked { "stuck" } else { "no probe" })
}

fn t6(test: &Test<'_>) -> Answer {
    let straggler = test.gated();
    test.trip();
    test.end(straggler, SUCCEEDS);
    answer(!test.once(SUCCEEDS), "ok", "closes")
}

fn t7(test: &Test<'_>) -> Answer {
    let straggler = test.gated();
    test.trip();
    wait();
    let probe = test.gated();
    test.end(straggler, SUCCEEDS);
    let admitted = (0..5).filter(|_| test.once(SUCCEEDS)).count();
    drop(probe);
    answer(
        admitted == 0,
        "ok",
        if admitted == 5 { "closes".to_owned() } else { format!("admits {admitted}") },
    )
}

fn t8(test: &Test<'_>) -> Answer {
    let straggler = test.gated();
    test.trip();
    wait();
    let probe = test.gated();
    test.end(straggler, FAILS);
    test.end(probe, SUCCEEDS);
    answer(test.is_closed(), "ok", "reopens")
}

fn t9(test: &Test<'_>) -> Answer {
    (0..500).for_each(|_| drop(test.gated()));
    answer(!test.once(SUCCEEDS), "opens", "blind")
}

fn t10(test: &Test<'_>) -> Answer {
    let mut reached = 0;
    for _ in 0..200 {
        reached += u32::from(catch_unwind(AssertUnwindSafe(|| test.once(PANICS))).is_err());
    }
    answer(reached > 0 && !test.once(SUCCEEDS), "opens", if reached > 0 { "blind" } else { "swallowed" })
}

/// One line for whoever started this program.
pub(crate) fn line(system: &str, answers: &[Answer]) -> String {
    let cell = |a: &Answer| format!("{{\"passed\":{},\"seen\":\"{}\"}}", a.passed, a.seen);
    let cells: Vec<String> = answers.iter().map(cell).collect();
    format!("{{\"battery\":\"{system}\",\"answers\":[{}]}}", cells.join(","))
}
