//! Processes of a campaign: a job under `mainstay lock`, and a holder that uses the library. Both write to a fenced file
//! and say what they do, stamped by the boot clock of the one machine.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Deadline, Rng as _, Runtime, SystemRng, os_boot_now};
use mainstay_coordination::Coordinator;
use mainstay_redis::RedisLeases;
use mainstay_sqlite::SqliteLeases;
use mainstay_store::{FenceCheck, FencedFile, FencingToken, LeaseStore};

pub(crate) const NAME: &str = "account";
pub(crate) const TTL: Duration = Duration::from_secs(1);

/// Which protections are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    All,
    /// The file takes every token.
    Unfenced,
    /// Work does not run under its guard.
    Unstopped,
}

impl Rules {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Unfenced => "unfenced",
            Self::Unstopped => "unstopped",
        }
    }
}

/// Runs this program as a process of a campaign, if its first argument says so.
pub(crate) fn from_arguments() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let rules = |word: &str| match word {
        "unfenced" => Rules::Unfenced,
        "unstopped" => Rules::Unstopped,
        _ => Rules::All,
    };
    match words[..] {
        ["--campaign-job", folder, word] => job(Path::new(folder), rules(word)),
        ["--campaign-holder", folder, url, word] => holder(Path::new(folder), url, rules(word)),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// One hold, as its process sees it.
struct Hold {
    events: File,
    file: FencedFile,
    token: FencingToken,
    fenced: bool,
}

impl Hold {
    fn new(folder: &Path, token: u64, rules: Rules) -> Self {
        let events = OpenOptions::new().create(true).append(true).open(folder.join("events")).unwrap();
        let (file, token) = (FencedFile::new(folder.join("data")), FencingToken::new(token));
        let hold = Self { events, file, token, fenced: rules != Rules::Unfenced };
        hold.say("got", 0);
        hold
    }

    /// One line by one write: lines of several processes do not mix.
    fn say(&self, what: &str, number: u64) {
        let (pid, at) = (std::process::id(), os_boot_now().as_nanos());
        let line = format!("{pid} {} {what} {number} {at}\n", self.token);
        (&self.events).write_all(line.as_bytes()).unwrap();
    }

    /// One write, which takes its time between what it was decided on and what it does.
    fn step(&self) {
        self.say("ran", 0);
        nap(5 + SystemRng::new().below(15));
        self.say("try", 0);
        let token = if self.fenced { self.token } else { FencingToken::new(u64::MAX) };
        let mut written = 0;
        let done = self.file.update(token, |before| {
            let count: u64 = std::str::from_utf8(before).ok().and_then(|t| t.parse().ok()).unwrap_or(0);
            written = count + 1;
            // Under the lock of the file: the order of these lines is the order of the writes.
            self.say("put", written);
            written.to_string().into_bytes()
        });
        match done {
            Ok(FenceCheck::Pass) => self.say("ok", written),
            Ok(FenceCheck::Stale { .. }) => self.say("stale", 0),
            Err(error) => eprintln!("a write failed: {error}"),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "work that blocks, on a real machine")]
fn nap(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// The command of a wrapper: it ends by itself after a while, or is killed.
fn job(folder: &Path, rules: Rules) {
    #[allow(clippy::disallowed_methods, reason = "how the wrapper tells the token")]
    let token = std::env::var("FENCING_TOKEN").unwrap().parse().unwrap();
    let hold = Hold::new(folder, token, rules);
    for _ in 0..10 + SystemRng::new().below(60) {
        hold.step();
        nap(5);
    }
}

fn holder(folder: &Path, url: &str, rules: Rules) {
    let parent = rustix::process::getppid();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let rt = Runtime::system();
        let store: Arc<dyn LeaseStore> = match url.strip_prefix("sqlite:") {
            Some(file) => Arc::new(SqliteLeases::builder(PathBuf::from(file)).open(&rt).unwrap()),
            None => Arc::new(RedisLeases::new(url, &rt).unwrap()),
        };
        let locks = Coordinator::builder(store, rt.clone()).namespace("default").owner("a library");
        let lock = locks.build().unwrap().mutex(NAME).ttl(TTL).build().unwrap();
        // Nobody else ends it when the test is gone.
        while rustix::process::getppid() == parent {
            let limit = Deadline::after(rt.clock().now(), Duration::from_secs(5));
            let Ok(guard) = lock.acquire(limit).await else { continue };
            let hold = Hold::new(folder, guard.token().get(), rules);
            let work = async {
                for _ in 0..10 + SystemRng::new().below(60) {
                    hold.step();
                    rt.clock().sleep(Duration::from_millis(5)).await;
                }
            };
            match rules {
                Rules::Unstopped => work.await,
                // A lost lease is what the campaign is for.
                _ => drop(guard.run(|_| work).await),
            }
            drop(guard.release().await);
            rt.clock().sleep(Duration::from_millis(10)).await;
        }
    });
}
