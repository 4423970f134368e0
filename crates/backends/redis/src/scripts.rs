//! The scripts, by their digests.

/// One script.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) source: &'static str,
    pub(crate) digest: String,
}

impl Script {
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, digest: redis::Script::new(source).get_hash().to_owned() }
    }
}

/// What a store can ask of a server.
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) acquire: Script,
    pub(crate) annotate: Script,
    pub(crate) break_lease: Script,
    pub(crate) downgrade: Script,
    pub(crate) inspect: Script,
    pub(crate) raise: Script,
    pub(crate) record_delete: Script,
    pub(crate) record_put: Script,
    pub(crate) release: Script,
    pub(crate) renew: Script,
    pub(crate) resize: Script,
    pub(crate) share: Script,
    pub(crate) share_release: Script,
    pub(crate) share_renew: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            acquire: Script::new(include_str!("lua/acquire.lua")),
            annotate: Script::new(include_str!("lua/annotate.lua")),
            break_lease: Script::new(include_str!("lua/break.lua")),
            downgrade: Script::new(include_str!("lua/downgrade.lua")),
            inspect: Script::new(include_str!("lua/inspect.lua")),
            raise: Script::new(include_str!("lua/raise.lua")),
            record_delete: Script::new(include_str!("lua/record_delete.lua")),
            record_put: Script::new(include_str!("lua/record_put.lua")),
            release: Script::new(include_str!("lua/release.lua")),
            renew: Script::new(include_str!("lua/renew.lua")),
            resize: Script::new(include_str!("lua/resize.lua")),
            share: Script::new(include_str!("lua/share.lua")),
            share_release: Script::new(include_str!("lua/share_release.lua")),
            share_renew: Script::new(include_str!("lua/share_renew.lua")),
        }
    }

    pub(crate) fn all(&self) -> [&Script; 14] {
        [
            &self.acquire,
            &self.annotate,
            &self.break_lease,
            &self.downgrade,
            &self.inspect,
            &self.raise,
            &self.record_delete,
            &self.record_put,
            &self.release,
            &self.renew,
            &self.resize,
            &self.share,
            &self.share_release,
            &self.share_renew,
        ]
    }
}
