//! The scripts, by their digests.

use redis::{Arg, Cmd};

/// The script for several callers runs the one for a single caller wherever they do not share their reads, so
/// that both mean the same.
const ACQUIRE_ALL: &str = concat!(
    include_str!("lua/line.lua"),
    "local function one(KEYS, ARGV)\n",
    include_str!("lua/acquire.lua"),
    "end\n",
    include_str!("lua/acquire_all.lua")
);

/// Arguments of a usual call.
pub(crate) const USUAL: usize = 16;
/// Bytes of an argument, about: a key with a name of its own length and an op id.
const EACH: usize = 40;

/// A script with its keys and arguments.
pub(crate) struct Call {
    pub(crate) by_digest: Cmd,
    source: &'static str,
}

impl Call {
    /// For a server that does not know the script.
    pub(crate) fn by_source(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(self.source);
        for arg in self.by_digest.args_iter().skip(2) {
            if let Arg::Simple(bytes) = arg {
                cmd.arg(bytes);
            }
        }
        cmd
    }
}

/// One script.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) source: &'static str,
    digest: String,
}

impl Script {
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, digest: redis::Script::new(source).get_hash().to_owned() }
    }

    /// With about this many arguments; `fill` adds the number of keys, the keys and the rest.
    pub(crate) fn call(&self, arguments: usize, fill: impl FnOnce(&mut Cmd)) -> Call {
        let mut by_digest = Cmd::with_capacity(arguments, arguments * EACH);
        by_digest.arg("EVALSHA").arg(&self.digest);
        fill(&mut by_digest);
        Call { by_digest, source: self.source }
    }
}

/// What a store can ask of a server.
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) acquire: Script,
    pub(crate) acquire_all: Script,
    pub(crate) annotate: Script,
    pub(crate) break_lease: Script,
    pub(crate) downgrade: Script,
    pub(crate) inspect: Script,
    pub(crate) leave: Script,
    pub(crate) raise: Script,
    pub(crate) record_delete: Script,
    pub(crate) record_put: Script,
    pub(crate) release: Script,
    pub(crate) release_all: Script,
    pub(crate) renew: Script,
    pub(crate) resize: Script,
    pub(crate) share: Script,
    pub(crate) share_release: Script,
    pub(crate) share_renew: Script,
    pub(crate) transfer: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            acquire: Script::new(concat!(include_str!("lua/line.lua"), include_str!("lua/acquire.lua"))),
            acquire_all: Script::new(ACQUIRE_ALL),
            annotate: Script::new(include_str!("lua/annotate.lua")),
            break_lease: Script::new(include_str!("lua/break.lua")),
            downgrade: Script::new(include_str!("lua/downgrade.lua")),
            inspect: Script::new(include_str!("lua/inspect.lua")),
            leave: Script::new(include_str!("lua/leave.lua")),
            raise: Script::new(include_str!("lua/raise.lua")),
            record_delete: Script::new(include_str!("lua/record_delete.lua")),
            record_put: Script::new(include_str!("lua/record_put.lua")),
            release: Script::new(include_str!("lua/release.lua")),
            release_all: Script::new(include_str!("lua/release_all.lua")),
            renew: Script::new(include_str!("lua/renew.lua")),
            resize: Script::new(include_str!("lua/resize.lua")),
            share: Script::new(concat!(include_str!("lua/line.lua"), include_str!("lua/share.lua"))),
            share_release: Script::new(include_str!("lua/share_release.lua")),
            share_renew: Script::new(include_str!("lua/share_renew.lua")),
            transfer: Script::new(include_str!("lua/transfer.lua")),
        }
    }

    pub(crate) fn all(&self) -> [&Script; 18] {
        [
            &self.acquire,
            &self.acquire_all,
            &self.annotate,
            &self.break_lease,
            &self.downgrade,
            &self.inspect,
            &self.leave,
            &self.raise,
            &self.record_delete,
            &self.record_put,
            &self.release,
            &self.release_all,
            &self.renew,
            &self.resize,
            &self.share,
            &self.share_release,
            &self.share_renew,
            &self.transfer,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Script;

    #[test]
    fn a_call_by_source_says_what_the_one_by_digest_says() {
        let script = Script::new("return 1");
        let call = script.call(1, |cmd| {
            cmd.arg(1).arg("key").arg("").arg(7);
        });
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(1).arg("key").arg("").arg(7);
        assert_eq!(call.by_source().get_packed_command(), expected.get_packed_command());
    }
}
