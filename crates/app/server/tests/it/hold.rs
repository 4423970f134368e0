//! Commands under a lease: the real wrapper, real processes, a real terminal.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{PATIENCE, bounded, eventually, line, mainstay, quick_dir, run, stderr, stdout, within};
use crate::machine::finish;

/// A folder with a lease file and what the jobs write.
struct Place {
    dir: tempfile::TempDir,
    store: String,
}

impl Place {
    fn new() -> Self {
        let dir = quick_dir();
        let store = format!("sqlite:{}", dir.path().join("leases").display());
        Self { dir, store }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// `mainstay VERB --store .. WORDS`, in the folder, with a path. A lease lasts longer than any machine stands still,
    /// unless the words say how long.
    fn command(&self, verb: &str, words: &[&str]) -> Command {
        let mut command = mainstay(&[verb, "--store", &self.store]);
        if verb != "lease" && !words.contains(&"--ttl") {
            command.args(LONG);
        }
        command.args(words).current_dir(self.dir.path()).env("PATH", "/usr/bin:/bin");
        command
    }

    fn wrapper(&self, verb: &str, words: &[&str]) -> Wrapper {
        Wrapper(self.command(verb, words).stdout(Stdio::null()).spawn().unwrap())
    }

    #[track_caller]
    fn output(&self, verb: &str, words: &[&str]) -> Output {
        finish(self.command(verb, words), PATIENCE)
    }

    #[track_caller]
    fn code(&self, verb: &str, words: &[&str]) -> i32 {
        self.output(verb, words).status.code().unwrap()
    }

    /// A holder of `x` with a short lease, whose job has begun: it has written `begun`. A machine too slow for the lease
    /// loses it before that, which is the wrapper's duty; then a longer one is taken.
    fn holding(&self, job: &str, begun: &str) -> Wrapper {
        for ttl in ["3s", "6s", "12s", "24s", "48s"] {
            let mut holder = self.wrapper("lock", &["--ttl", ttl, "--grace", "600ms", "x", "-c", job]);
            let has_begun = eventually("the job begins, or the lease is lost before it", || {
                // Looked at first: what has ended writes no more.
                let ended = holder.0.try_wait().unwrap().is_some();
                let has_begun = self.text(begun).ends_with('\n');
                (has_begun || ended).then_some(has_begun)
            });
            if has_begun {
                return holder;
            }
            assert_eq!(holder.code(), Some(75), "it ended, and not for its lease");
        }
        panic!("no lease was long enough for the job to begin");
    }

    fn wait_for(&self, name: &str) -> String {
        eventually(&format!("{name} is written"), || Some(self.text(name)).filter(|t| t.ends_with('\n')))
    }
}

/// A wrapper of its own; killed by its id when dropped.
struct Wrapper(Child);

impl Wrapper {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        eventually("the wrapper ends", || self.0.try_wait().unwrap()).code()
    }

    fn stderr(mut self) -> String {
        self.code();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut text).unwrap();
        text
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::CONT);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the process is there and not a zombie.
fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z') && !rest.starts_with('X'))
}

/// For leases that are not meant to end by themselves.
const LONG: [&str; 2] = ["--ttl", "2m"];

/// What comes after a holder, and stays long enough for a job that outlived its lease to be seen beside it.
const SUCCESSOR: &str = "echo b >> log; sleep 0.2";

/// A job that does not obey, with a child that does not either; both write for as long as they live.
const STUBBORN: &str = "trap '' TERM INT HUP; echo a >> log; (while :; do echo a >> log; sleep 0.01; done) & \
    echo $! > child; echo $$ > job; while :; do echo a >> log; sleep 0.01; done";

/// No line of the first job after the first one of its successor.
fn no_overlap(log: &str) {
    let successor = log.find('b').unwrap_or_else(|| panic!("no successor in {log}"));
    assert!(!log[successor..].contains('a'), "both ran: {}", &log[successor.saturating_sub(40)..]);
    assert!(log[..successor].contains('a'), "the first one never ran");
}

#[test]
fn if_w1_the_exit_code_is_the_commands_own_or_128_and_the_signal() {
    let place = Place::new();
    assert_eq!(place.code("lock", &["x", "--", "sh", "-c", "exit 42"]), 42);
    assert_eq!(place.code("lock", &["x", "--", "true"]), 0);
    assert_eq!(place.code("lock", &["x", "-c", "kill -9 $$"]), 137);
    assert_eq!(place.code("lock", &["x", "-c", "kill -TERM $$"]), 143);
}

#[test]
fn if_w1_the_command_is_told_its_name_token_and_deadline() {
    let place = Place::new();
    let print = "echo $MAINSTAY_LOCK_NAME $MAINSTAY_FENCING_TOKEN $FENCING_TOKEN $MAINSTAY_LEASE_DEADLINE";
    let mut last = 0;
    for _ in 0..3 {
        let output = place.output("lock", &["orders/7", "-c", print]);
        let words = stdout(&output);
        let words: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(words[0], "orders/7");
        assert_eq!(words[1], words[2]);
        assert!(words[3].ends_with('Z'), "{words:?}");
        let token: u64 = words[1].parse().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
    }
    let output = place.output("elect", &["boss", "-c", "echo $MAINSTAY_LEADER_TERM $FENCING_TOKEN"]);
    let words = stdout(&output);
    let (term, token) = words.trim().split_once(' ').unwrap();
    assert!(term == token && term.parse::<u64>().unwrap() > 0, "{words}");
}

#[test]
fn if_w2_signals_are_forwarded_at_once() {
    let place = Place::new();
    let job = "for s in HUP QUIT USR1 USR2 WINCH INT; do trap \"echo $s >> heard\" $s; done; \
               trap 'echo TERM >> heard; exit 9' TERM; echo up > up; while :; do sleep 0.01; done";
    let mut wrapper = place.wrapper("lock", &["x", "-c", job]);
    place.wait_for("up");
    let sent = [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH, Signal::INT];
    let names = ["HUP", "QUIT", "USR1", "USR2", "WINCH", "INT"];
    for (signal, name) in sent.into_iter().zip(names) {
        wrapper.signal(signal);
        eventually(name, || place.text("heard").lines().any(|l| l == name).then_some(()));
    }
    wrapper.signal(Signal::TERM);
    assert_eq!(wrapper.code(), Some(9), "the command's own code");
}

#[test]
fn if_w2_a_signal_while_waiting_is_obeyed_and_nobody_stands_in_line_any_more() {
    let place = Place::new();
    let mut holder = place.wrapper("lock", &["x", "-c", "echo up > up; while :; do sleep 0.01; done"]);
    place.wait_for("up");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131)] {
        let mut waiter = place.wrapper("lock", &["x", "-c", "echo ran > ran"]);
        eventually("it stands in line or is seen waiting", || {
            // Listens for signals from before the lease is asked for: /proc says which are caught.
            let status = std::fs::read_to_string(format!("/proc/{}/status", waiter.0.id())).ok()?;
            let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"))?.trim().to_owned();
            let bit = 1_u64 << (signal.as_raw() - 1);
            (u64::from_str_radix(&caught, 16).ok()? & bit != 0).then_some(())
        });
        waiter.signal(signal);
        assert_eq!(waiter.code(), Some(code));
    }
    holder.signal(Signal::TERM);
    assert_eq!(holder.code(), Some(143));
    assert_eq!(place.code("lock", &["-n", "x", "--", "true"]), 0, "free at once");
    assert_eq!(place.text("ran"), "");
}

#[test]
fn if_w2_a_signal_is_obeyed_while_the_store_does_not_answer() {
    let place = Place::new();
    // It takes connections and says nothing.
    let silent = std::sync::Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = silent.local_addr().unwrap();
    for (scheme, path) in [("etcd", ""), ("nats", ""), ("postgres", "/db?sslmode=disable"), ("redis", "")] {
        let store = format!("{scheme}://{}{address}{path}", if scheme == "postgres" { "me@" } else { "" });
        for words in [&["lock", "x"][..], &["cron", "x", "--every", "1h"]] {
            let mut command = mainstay(&[words, &["--store", &store, "--", "true"][..]].concat());
            command.current_dir(place.dir.path()).stdout(Stdio::null());
            let mut waiter = Wrapper(command.spawn().unwrap());
            let at = std::sync::Arc::clone(&silent);
            let _stream = bounded("the wrapper connects", move || at.accept().unwrap());
            waiter.signal(Signal::INT);
            assert_eq!(waiter.code(), Some(130), "{words:?} on {scheme}");
        }
    }
}

#[test]
fn those_who_wait_get_the_lock_in_the_order_in_which_they_came() {
    let place = Place::new();
    for (verb, more) in [("lock", &[][..]), ("rwlock", &["--write"]), ("sem", &["--limit", "1"])] {
        let start = |line: &str| place.wrapper(verb, &[more, &[verb, "-c", line][..]].concat());
        let hold = format!("echo up > {verb}.up; while [ ! -e {verb}.go ]; do sleep 0.01; done");
        let holder = start(&hold);
        place.wait_for(&format!("{verb}.up"));
        // Late enough that whoever asked at random would have been in front of another one.
        let waiters: Vec<Wrapper> = (1..=4)
            .map(|n| {
                let waiter = start(&format!("echo {n} >> {verb}.log"));
                eventually("it stands in line", || {
                    let output = place.command("lease", &["-o", "json", "inspect", verb]).output().unwrap();
                    let lease: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                    (lease["waiting"] == n).then_some(())
                });
                waiter
            })
            .collect();
        assert_eq!(
            place.code(verb, &[more, &["-n", verb, "--", "true"][..]].concat()),
            124,
            "nobody overtakes"
        );
        std::fs::write(place.file(&format!("{verb}.go")), "").unwrap();
        for mut ended in waiters.into_iter().chain([holder]) {
            assert_eq!(ended.code(), Some(0));
        }
        assert_eq!(place.text(&format!("{verb}.log")), "1\n2\n3\n4\n", "{verb}");
    }
}

#[test]
fn who_waited_in_vain_is_told_who_holds_it() {
    let place = Place::new();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for verb in ["lock", "elect"] {
        let line = format!("echo up > {verb}.up; while :; do sleep 0.01; done");
        let _holder = place.wrapper(verb, &["x", "-c", &line]);
        place.wait_for(&format!("{verb}.up"));
        // On a machine that stands still the wait may be over before it was long enough to be worth a word.
        let waits = ["1s", "5s", "25s", "60s"];
        let mut tries = waits.iter().map(|wait| place.output(verb, &["--wait", wait, "x", "--", "true"]));
        let late =
            tries.find(|late| stderr(late).contains("waiting for")).expect("it is said in one of them");
        assert_eq!(late.status.code(), Some(124), "{}", stderr(&late));
        for said in ["waiting for", "held by"] {
            assert!(stderr(&late).contains(&format!("{said} {host}:")), "{verb}: {}", stderr(&late));
        }
        assert!(stderr(&late).contains("not acquired in time"), "{}", stderr(&late));
    }
}

#[test]
fn if_w3_a_killed_wrapper_takes_its_job_along_before_the_lease_passes_on() {
    let place = Place::new();
    let mut holder = place.holding(STUBBORN, "job");
    let (child, job) = (place.text("child"), place.text("job"));
    let mut next = place.wrapper("lock", &["x", "-c", SUCCESSOR]);
    holder.0.kill().unwrap();
    assert_eq!(next.code(), Some(0));
    assert!(!alive(&job) && !alive(&child), "the job outlived its lease");
    no_overlap(&place.text("log"));
}

/// The signal of the kernel for a parent's death belongs to the thread that started the child, comes too late for one whose
/// parent is dead already, and is gone after an exec of what has other rights.
#[test]
fn if_x02_a_job_begins_only_under_its_wrapper_and_ends_with_it_also_without_the_kernels_signal() {
    let place = Place::new();
    // Its parent is somebody else: the wrapper died before the child asked for the signal.
    let mut orphan = mainstay(&["hold-exec", "--parent", "1", "--", "touch", "begun"]);
    orphan.current_dir(place.dir.path()).env("PATH", "/usr/bin:/bin");
    let output = finish(orphan, PATIENCE);
    assert!(!output.status.success() && stderr(&output).contains("parent 1 is gone"), "{}", stderr(&output));
    assert!(!place.file("begun").exists());
    // A job that has no such signal any more, as after an exec with other rights.
    let deaf = format!("cat > deaf <<'EOF'\n{STUBBORN}\nEOF\nexec setpriv --pdeathsig clear -- sh deaf");
    let mut holder = place.holding(&deaf, "job");
    let job = place.text("job");
    let mut next = place.wrapper("lock", &["x", "-c", SUCCESSOR]);
    holder.0.kill().unwrap();
    assert_eq!(next.code(), Some(0));
    assert!(!alive(&job) && !alive(&place.text("child")), "the job outlived its lease");
    no_overlap(&place.text("log"));
}

#[test]
fn if_w4_the_whole_group_ends_with_the_command_before_the_lease_is_given_back() {
    let place = Place::new();
    let job = "trap '' TERM; (while :; do echo a >> log; sleep 0.01; done) & echo $! > child; \
               while [ ! -s log ]; do sleep 0.01; done; exit 3";
    let mut holder = place.wrapper("lock", &["--grace", "200ms", "x", "-c", job]);
    let child = place.wait_for("child");
    let mut next = place.wrapper("lock", &["x", "-c", SUCCESSOR]);
    assert_eq!(holder.code(), Some(3), "the command's own code");
    assert!(!alive(&child), "a member of the group is left");
    assert_eq!(next.code(), Some(0));
    no_overlap(&place.text("log"));
}

#[test]
fn if_w5_words_are_not_given_to_a_shell() {
    let place = Place::new();
    let output = place.output("lock", &["x", "--", "echo", "$HOME", "a  b", ";", "exit"]);
    assert_eq!(stdout(&output), "$HOME a  b ; exit\n");
    let output = place.output("lock", &["x", "-c", "echo $MAINSTAY_LOCK_NAME; exit 4"]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("x\n", Some(4)));
    // The signal reaches the command, not a shell in front of it.
    let mut wrapper = place.wrapper("lock", &["x", "--", "sleep", "1000"]);
    eventually("it holds", || (place.code("lock", &["-n", "x", "--", "true"]) == 124).then_some(()));
    wrapper.signal(Signal::TERM);
    assert_eq!(wrapper.code(), Some(143));
}

/// How often the rounds of W6 are played; `cargo xtask full` asks for the thousand.
fn rounds() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "the long campaign is asked for by a variable")]
    let asked = std::env::var("MAINSTAY_HOLD_ROUNDS").ok();
    asked.map_or(6, |r| r.parse().unwrap())
}

#[test]
fn f09_if_w6_a_stopped_or_killed_wrapper_never_lets_two_jobs_run() {
    for round in 0..rounds() {
        let place = Place::new();
        let mut holder = place.holding(STUBBORN, "job");
        let mut next = place.wrapper("lock", &["x", "-c", SUCCESSOR]);
        if round % 3 == 2 {
            holder.signal(Signal::KILL);
        } else {
            holder.signal(Signal::STOP);
        }
        assert_eq!(next.code(), Some(0), "round {round}");
        no_overlap(&place.text("log"));
        if round % 3 != 2 {
            holder.signal(Signal::CONT);
            assert_eq!(holder.code(), Some(75), "round {round}: a lost lease is never 0");
        }
    }
}

#[test]
fn if_w6_the_command_is_told_before_it_is_killed() {
    let place = Place::new();
    let job = "trap 'echo told > told; exit 0' TERM; echo up > up; while :; do sleep 0.01; done";
    // Between the word and the kill there is time for the command on any machine.
    let words = ["--ttl", "30s", "--grace", "14s", "x", "-c", job];
    let mut holder = place.wrapper("lock", &words);
    place.wait_for("up");
    holder.signal(Signal::STOP);
    assert_eq!(place.wait_for("told"), "told\n");
    holder.signal(Signal::CONT);
    assert_eq!(holder.code(), Some(75), "although the command ended with 0");
}

/// A file that was lost or restored gave smaller tokens than before, and nothing could be done about it.
#[test]
fn the_epoch_of_a_lease_file_is_in_its_url() {
    let mut place = Place::new();
    let file = place.store.clone();
    let mut token = |setting: &str| -> u64 {
        place.store = format!("{file}{setting}");
        let held = place.output("lock", &["x", "-c", "echo $MAINSTAY_FENCING_TOKEN"]);
        stdout(&held).trim().parse().unwrap_or_else(|_| panic!("{setting}: {}", stderr(&held)))
    };
    assert_eq!(token("") >> 48, 0);
    let raised = token("?epoch=1000");
    assert_eq!(raised >> 48, 1_000);
    assert!(token("") > raised, "whoever has no such setting goes on from there");
    place.store = format!("{file}?epoch=32768");
    assert_eq!(place.code("lock", &["x", "--", "true"]), 2);
}

#[test]
fn if_w6_a_broken_lease_ends_the_job_and_on_lost_none_lets_it_go_on() {
    let place = Place::new();
    // It notices at its next renewal, after a third of the time.
    let renews = ["--ttl", "30s", "--grace", "600ms"];
    let words = [&renews[..], &["x", "-c", "echo up > up; exec sleep 1000"]].concat();
    let holder = place.wrapper("lock", &words);
    place.wait_for("up");
    let broken =
        place.output("lease", &["break", "x", "--confirm", "x", "--reason", "host-7 died", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert!(shown["token"].as_str().unwrap().parse::<u64>().unwrap() > 0, "{shown}");
    assert_eq!(shown["reason"], "host-7 died");
    let said = holder.stderr();
    assert!(said.contains("lost") && said.contains("ended by force"), "{said}");

    let job = "echo up > up2; while [ ! -e go ]; do sleep 0.01; done; echo end > end";
    let words = [&renews[..], &["--on-lost", "none", "y", "-c", job]].concat();
    let mut holder = place.wrapper("lock", &words);
    place.wait_for("up2");
    assert_eq!(place.code("lease", &["break", "y", "--confirm", "y", "--reason", "tried"]), 0);
    // Held by another while the first job goes on: what the option says.
    assert_eq!(place.code("lock", &["y", "--", "true"]), 0);
    std::fs::write(place.file("go"), "").unwrap();
    assert_eq!(holder.code(), Some(75));
    assert_eq!(place.text("end"), "end\n");
}

#[test]
fn if_w2_a_waiter_that_was_stopped_beyond_a_ttl_comes_after_those_who_were_not() {
    let place = Place::new();
    let mut holder = place.wrapper("lock", &["x", "-c", "echo up > up; exec sleep 1000"]);
    place.wait_for("up");
    let words = ["--ttl", "15s", "--grace", "600ms", "x", "-c", "echo ran >> ran"];
    let mut waiter = place.wrapper("lock", &words);
    let (said, _pipe) = line("it waits", waiter.0.stderr.take().unwrap());
    assert!(said.contains("waiting for"), "{said}");
    // In line: what is stopped before that may be in the middle of a write, and nobody else could open the file.
    eventually("it waits", || {
        let shown = place.command("lease", &["inspect", "x", "-o", "json"]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        (shown["waiting"] == 1).then_some(())
    });
    // Stopped while it waits, beyond a whole ttl: when it goes on, whatever it was granted is over or new.
    waiter.signal(Signal::STOP);
    holder.signal(Signal::TERM);
    assert_eq!(holder.code(), Some(143));
    let mut other = place.wrapper("lock", &["x", "-c", "echo other >> ran"]);
    assert_eq!(other.code(), Some(0));
    waiter.signal(Signal::CONT);
    assert_eq!(waiter.code(), Some(0));
    assert_eq!(place.text("ran"), "other\nran\n", "one after the other");
}

#[test]
fn if_w8_every_refusal_has_its_own_code() {
    let place = Place::new();
    let mut holder = place.wrapper("lock", &["x", "-c", "echo up > up; exec sleep 1000"]);
    place.wait_for("up");
    let held = place.output("lock", &["-n", "x", "--", "true"]);
    assert_eq!(held.status.code(), Some(124));
    assert!(stderr(&held).contains("held by"), "{}", stderr(&held));
    assert_eq!(place.code("lock", &["--wait", "500ms", "x", "--", "true"]), 124);
    assert_eq!(place.code("lock", &["-n", "-E", "33", "x", "--", "true"]), 33);
    assert_eq!(place.code("lock", &["y", "--", "no-such-command"]), 127);
    assert_eq!(place.code("lock", &["y", "--", "/etc/passwd"]), 126);
    let usage: [&[&str]; 7] = [
        &["y"],
        &["y", "-c", "true", "--", "true"],
        &["--ttl", "10s", "--grace", "5s", "y", "--", "true"],
        &["--ttl", "0s", "y", "--", "true"],
        &["--ttl", "1ms", "--grace", "0s", "y", "--", "true"],
        &["--wait", "1s", "-n", "y", "--", "true"],
        &["", "--", "true"],
    ];
    for words in usage {
        assert_eq!(place.code("lock", words), 2, "{words:?}");
    }
    let output = run(&["lock", "--store", "sqlite:/no/such/folder/x", "y", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(stderr(&output).contains("MS0017"), "{}", stderr(&output));
    assert_eq!(run(&["lock", "--store", "ftp:x", "y", "--", "true"]).status.code(), Some(2));
    holder.signal(Signal::TERM);
    assert_eq!(holder.code(), Some(143));
}

#[test]
fn if_w9_input_and_output_pass_through() {
    let place = Place::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut command = place.command("lock", &["x", "--", "tr", "a-z", "A-Z"]);
    command.stdin(reader);
    writer.write_all(b"through\n").unwrap();
    drop(writer);
    let output = finish(command, PATIENCE);
    assert_eq!(stdout(&output), "THROUGH\n");
}

/// An interactive shell on a terminal of its own.
struct Terminal {
    child: Child,
    log: PathBuf,
}

impl Terminal {
    fn start(place: &Place) -> Self {
        let log = place.file("terminal");
        let child = Command::new("script")
            .args(["-qfec", "bash --norc --noprofile -i"])
            .arg(&log)
            .current_dir(place.dir.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PS1", "$ ")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn write(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until `text` is shown; a failure tells what is shown instead.
    fn until(&self, text: &str) {
        let found = within(|| self.shown().contains(text).then_some(()));
        assert!(found.is_some(), "no `{text}` in: {}", self.shown());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shell_line(place: &Place, words: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_mainstay"));
    format!("{} lock --store {} {words}\n", program.display(), place.store)
}

#[test]
fn if_w9_a_stopped_job_whose_lease_is_lost_is_killed_and_not_resumed() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place);
    // Nothing but builtins: a shell that waits for a vforked child which was stopped before its exec cannot stop.
    let job = "trap '' TERM; echo $$ > job; while :; do echo a >> log; done";
    let words = format!("--ttl 20s --grace 600ms x -c \"{}\"", job.replace('$', "\\$"));
    terminal.write(&shell_line(&place, &words));
    let job = place.wait_for("job");
    eventually("it works", || Some(()).filter(|()| place.text("log").len() > 4));
    terminal.write("\u{1a}");
    terminal.until("Stopped");
    // The shell has the terminal again, and somebody else gets the lock.
    terminal.write("echo shell-is-$((40+2))\n");
    terminal.until("shell-is-42");
    assert_eq!(place.code("lock", &["x", "-c", SUCCESSOR]), 0);
    assert!(!alive(&job), "frozen beyond its lease");
    terminal.write("fg\n");
    terminal.write("echo code-is-$?\n");
    terminal.until("code-is-75");
    no_overlap(&place.text("log"));
}

#[test]
fn if_w9_a_job_that_is_continued_in_time_goes_on_with_the_terminal() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place);
    let job = "echo up > up; read line; echo got:\\$line; exit 5";
    terminal.write(&shell_line(&place, &format!("--ttl 2m x -c \"{job}\"")));
    place.wait_for("up");
    terminal.write("\u{1a}");
    terminal.until("Stopped");
    terminal.write("fg\n");
    terminal.write("hello\n");
    terminal.until("got:hello");
    terminal.write("echo code-is-$?\n");
    terminal.until("code-is-5");
}

#[test]
fn readers_share_writers_do_not_and_a_semaphore_counts() {
    let place = Place::new();
    let hold = "echo up > $0; while [ ! -e go ]; do sleep 0.01; done";
    let mut first = place.wrapper("rwlock", &["--read", "r", "--", "sh", "-c", hold, "up1"]);
    place.wait_for("up1");
    assert_eq!(place.code("rwlock", &["--read", "-n", "r", "--", "true"]), 0);
    assert_eq!(place.code("rwlock", &["--write", "-n", "r", "--", "true"]), 124);
    assert_eq!(place.code("rwlock", &["r", "--", "true"]), 2, "read or write must be said");
    let mut one = place.wrapper("sem", &["--limit", "2", "s", "--", "sh", "-c", hold, "up2"]);
    let mut two = place.wrapper("sem", &["--limit", "2", "s", "--", "sh", "-c", hold, "up3"]);
    place.wait_for("up2");
    place.wait_for("up3");
    assert_eq!(place.code("sem", &["--limit", "2", "-n", "s", "--", "true"]), 124);
    std::fs::write(place.file("go"), "").unwrap();
    for wrapper in [&mut first, &mut one, &mut two] {
        assert_eq!(wrapper.code(), Some(0));
    }
    assert_eq!(place.code("rwlock", &["--write", "-n", "r", "--", "true"]), 0);
}

#[test]
fn a_lease_is_listed_inspected_and_broken_only_by_its_name() {
    let place = Place::new();
    let mut holder =
        place.wrapper("lock", &["--note", "nightly", "backup", "-c", "echo up > up; exec sleep 1000"]);
    place.wait_for("up");
    let shown = place.output("lease", &["ls", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown[0]["name"], "backup");
    assert_eq!(shown[0]["note"], "nightly");
    assert!(shown[0]["holders"][0]["token"].as_str().unwrap().parse::<u64>().unwrap() > 0, "{shown}");
    assert!(shown[0]["holders"][0]["left_ms"].as_u64().unwrap() > 0, "{shown}");
    let table = stdout(&place.output("lease", &["inspect", "backup"]));
    assert!(table.contains("backup") && table.contains("nightly"), "{table}");
    for silent in [
        &["--confirm", "bakcup", "--reason", "x"][..],
        &["--confirm", "backup"],
        &["--confirm", "backup", "--reason", " "],
    ] {
        assert_eq!(place.code("lease", &[&["break", "backup"], silent].concat()), 2, "sec_22 {silent:?}");
    }
    assert_eq!(place.code("lock", &["-n", "backup", "--", "true"]), 124, "nothing was broken");
    assert_eq!(
        place.code("lock", &["-n", "--namespace", "other", "backup", "--", "true"]),
        0,
        "another name"
    );
    holder.signal(Signal::TERM);
    assert_eq!(holder.code(), Some(143));
}

const PAGE: &str = include_str!("../../../../../docs/lock.md");

#[test]
fn the_command_of_the_page_runs() {
    let place = Place::new();
    let (_, rest) = PAGE.split_once("```sh\n").unwrap();
    let (line, _) = rest.split_once("\n```").unwrap();
    assert!(line.starts_with("mainstay lock nightly-backup -- "), "{line}");
    std::fs::create_dir(place.file("data")).unwrap();
    std::fs::write(place.file("data/rows"), "1,2,3\n").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_mainstay"));
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(place.dir.path()).env_clear().env("PATH", path);
    shell.env("MAINSTAY_LEASES", &place.store).stdin(Stdio::null());
    let output = finish(shell, PATIENCE);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("saved as 1"), "{}", stdout(&output));
    assert!(place.file("backup.tar").exists());
}

#[tokio::test]
async fn the_table_of_the_page_is_what_the_stores_declare() {
    use mainstay_store::LeaseStore as _;
    use mainstay_store::lease::{Fencing, Guarantees};
    let rt = mainstay_clock::Runtime::system();
    let place = Place::new();
    let sqlite = mainstay_sqlite::SqliteLeases::builder(place.file("l"))
        .driver(mainstay_sqlite::Driver::Inline)
        .open(&rt)
        .unwrap();
    let memory = mainstay_store::memory::MemoryLeaseStore::new(std::sync::Arc::clone(rt.clock()));
    let row = |name: &str, g: Guarantees| {
        let fencing = match g.fencing {
            Fencing::Strict => "strict",
            Fencing::WhileStateSurvives => "while state survives",
            other => panic!("{other:?} has no word on the page"),
        };
        let fair = if g.fair { "yes" } else { "no" };
        format!("| {name} | {fencing} | {} | {} | {fair} |\n", g.clock, g.failover)
    };
    for row in [row("memory", memory.guarantees()), row("SQLite", sqlite.guarantees())] {
        assert!(PAGE.contains(&row), "the page does not have: {row}");
    }
}

/// A watchdog that was told these lines and then of a job in a group of its own; what it says is in a file.
struct Watched {
    job: Wrapper,
    dog: Wrapper,
    said: tempfile::NamedTempFile,
}

impl Watched {
    fn after(lines: &[&str]) -> Self {
        use std::os::unix::process::CommandExt as _;
        let job = Wrapper(Command::new("sleep").arg("600").process_group(0).spawn().unwrap());
        let said = tempfile::NamedTempFile::new().unwrap();
        // It never comes to the kill while a test looks at what was said before.
        let mut dog = mainstay(&["hold-watchdog", "--grace", "1h", "--on-lost", "term"]);
        let dog = dog.stdin(Stdio::piped()).stdout(said.reopen().unwrap()).spawn().unwrap();
        let mut all = Self { job, dog: Wrapper(dog), said };
        lines.iter().for_each(|line| all.tell(line));
        let job = format!("job {}", all.job.0.id());
        all.tell(&job);
        all
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.dog.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.said.path()).unwrap()
    }

    /// Waits until it has said that, and no more.
    fn says(&self, text: &str) {
        eventually(&format!("it says {text:?}"), || (self.said() == text).then_some(()));
    }
}

#[test]
fn if_w7_a_watchdog_knows_what_it_was_told_before_there_was_a_job() {
    // The first limits are over; they were renewed before the job was named.
    let renewed = format!("until {} {}", u64::MAX / 2, u64::MAX);
    let mut held = Watched::after(&["until 1 2", &renewed]);
    held.says("armed\n");
    held.tell("done");
    assert_eq!(held.dog.code(), Some(0));
    assert_eq!((held.said().as_str(), held.job.0.try_wait().unwrap()), ("armed\n", None), "the job goes on");
    // The lease was lost before the job was named.
    let mut lost = Watched::after(&[&renewed, "lost"]);
    lost.says("armed\nterm\n");
    assert_eq!(lost.job.code(), None, "a signal ended it");
    lost.tell("done");
    assert_eq!(lost.dog.code(), Some(0));
}
