//! The table of error codes. A code never changes its meaning; its page is compiled in.

/// An operator-visible error. The order is that of the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Unknown configuration key.
    UnknownKey,
    /// Invalid configuration value.
    BadValue,
    /// The configuration file cannot be read.
    ConfigUnreadable,
    /// A listener beyond loopback needs tokens.
    NoTokens,
    /// A listener beyond loopback needs TLS.
    NoTls,
    /// The listen address cannot be used.
    CannotListen,
    /// The data folder cannot be used.
    DataDir,
    /// The database is damaged.
    DatabaseCorrupt,
    /// The database was made by a newer version.
    DatabaseNewer,
    /// The data folder is in use.
    InUse,
    /// The definition is not valid.
    BadDefinition,
    /// The server cannot be reached.
    Unreachable,
    /// Internal error.
    Internal,
    /// The token file cannot be used.
    TokensFile,
    /// The certificate or its key cannot be used.
    TlsFiles,
    /// The audit chain is broken.
    AuditBroken,
    /// The lease store cannot be used.
    LeaseStore,
    /// The snapshot of gossip cannot be used.
    GossipState,
    /// The request is malformed.
    BadRequest,
    /// A token is needed.
    Unauthenticated,
    /// The token may not do this.
    Forbidden,
    /// Too many failed attempts.
    TooManyFailures,
    /// Cross-site request refused.
    CrossSite,
    /// The Host header is not allowed.
    BadHost,
    /// Not found.
    NotFound,
    /// The method is not allowed here.
    MethodNotAllowed,
    /// The body is too large.
    BodyTooLarge,
    /// The URL is too long.
    UrlTooLong,
    /// The headers are too large.
    HeadersTooLarge,
    /// The body came too slowly.
    BodyTimeout,
    /// Too many requests in flight.
    Overloaded,
    /// Idempotency-Key is missing.
    KeyMissing,
    /// Idempotency-Key was used for another request.
    KeyReused,
    /// A saga with this id has another input.
    SagaConflict,
    /// If-Match is missing.
    PreconditionRequired,
    /// The saga moved on.
    PreconditionFailed,
    /// The action is not possible now.
    IllegalAction,
    /// The server is stopping.
    Draining,
    /// No such definition.
    UnknownDefinition,
    /// This version exists with another content.
    DefinitionConflict,
    /// The store does not answer.
    StoreUnavailable,
    /// The media type is not supported.
    UnsupportedMedia,
    /// The query is not valid.
    BadQuery,
    /// The request took too long.
    TimedOut,
    /// The first request with this Idempotency-Key is still running.
    KeyBusy,
    /// A bulk action matches more sagas than one job takes.
    BulkTooLarge,
    /// Somebody else holds the lease.
    LeaseHeld,
    /// The token is not that of the holder.
    LeaseGone,
    /// The placement input is not valid.
    PlacementInput,
    /// The placement rules cannot be kept.
    PlacementImpossible,
    /// Two placements disagree.
    PlacementConflict,
}

struct Entry {
    code: Code,
    name: &'static str,
    status: u16,
    title: &'static str,
    page: &'static str,
}

macro_rules! table {
    ($($variant:ident $name:literal $status:literal $title:literal,)*) => {
        const TABLE: &[Entry] = &[$(Entry {
            code: Code::$variant,
            name: $name,
            status: $status,
            title: $title,
            page: include_str!(concat!("../../error_codes/", $name, ".md")),
        },)*];
    };
}

// Status 0: never the answer to a request.
table! {
    UnknownKey "MS0001" 0 "Unknown configuration key",
    BadValue "MS0002" 0 "Invalid configuration value",
    ConfigUnreadable "MS0003" 0 "The configuration file cannot be read",
    NoTokens "MS0004" 0 "A listener beyond loopback needs tokens",
    NoTls "MS0005" 0 "A listener beyond loopback needs TLS",
    CannotListen "MS0006" 0 "The listen address cannot be used",
    DataDir "MS0007" 0 "The data folder cannot be used",
    DatabaseCorrupt "MS0008" 0 "The database is damaged",
    DatabaseNewer "MS0009" 0 "The database was made by a newer version",
    InUse "MS0010" 0 "The data folder is in use",
    BadDefinition "MS0011" 422 "The definition is not valid",
    Unreachable "MS0012" 0 "The server cannot be reached",
    Internal "MS0013" 500 "Internal error",
    TokensFile "MS0014" 0 "The token file cannot be used",
    TlsFiles "MS0015" 0 "The certificate or its key cannot be used",
    AuditBroken "MS0016" 0 "The audit chain is broken",
    LeaseStore "MS0017" 0 "The lease store cannot be used",
    GossipState "MS0018" 0 "The snapshot of gossip cannot be used",
    BadRequest "MS0101" 400 "The request is malformed",
    Unauthenticated "MS0102" 401 "A token is needed",
    Forbidden "MS0103" 403 "The token may not do this",
    TooManyFailures "MS0104" 429 "Too many failed attempts",
    CrossSite "MS0105" 403 "Cross-site request refused",
    BadHost "MS0106" 403 "The Host header is not allowed",
    NotFound "MS0107" 404 "Not found",
    MethodNotAllowed "MS0108" 405 "The method is not allowed here",
    BodyTooLarge "MS0109" 413 "The body is too large",
    UrlTooLong "MS0110" 414 "The URL is too long",
    HeadersTooLarge "MS0111" 431 "The headers are too large",
    BodyTimeout "MS0112" 408 "The body came too slowly",
    Overloaded "MS0113" 503 "Too many requests in flight",
    KeyMissing "MS0114" 400 "Idempotency-Key is missing",
    KeyReused "MS0115" 422 "Idempotency-Key was used for another request",
    SagaConflict "MS0116" 409 "A saga with this id has another input",
    PreconditionRequired "MS0117" 428 "If-Match is missing",
    PreconditionFailed "MS0118" 412 "The saga moved on",
    IllegalAction "MS0119" 409 "The action is not possible now",
    Draining "MS0120" 503 "The server is stopping",
    UnknownDefinition "MS0121" 422 "No such definition",
    DefinitionConflict "MS0122" 409 "This version exists with another content",
    StoreUnavailable "MS0123" 503 "The store does not answer",
    UnsupportedMedia "MS0124" 415 "The media type is not supported",
    BadQuery "MS0127" 400 "The query is not valid",
    TimedOut "MS0128" 503 "The request took too long",
    KeyBusy "MS0129" 409 "A request with this key is still running",
    BulkTooLarge "MS0130" 422 "Too many sagas match",
    LeaseHeld "MS0131" 409 "Somebody else holds it",
    LeaseGone "MS0132" 412 "The lease is gone",
    PlacementInput "MS0301" 0 "The placement input is not valid",
    PlacementImpossible "MS0302" 0 "The placement rules cannot be kept",
    PlacementConflict "MS0303" 0 "Two placements disagree",
}

impl Code {
    /// Every code.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|e| e.code)
    }

    fn entry(self) -> &'static Entry {
        // The enum and the table are in the same order; `codes_and_table_agree` keeps it so.
        &TABLE[self as usize]
    }

    /// `MS0001`.
    pub(crate) fn name(self) -> &'static str {
        self.entry().name
    }

    /// The HTTP status, when the code can answer a request.
    pub(crate) fn status(self) -> Option<u16> {
        Some(self.entry().status).filter(|s| *s != 0)
    }

    /// One line for people.
    pub(crate) fn title(self) -> &'static str {
        self.entry().title
    }

    /// The page: cause and remedies.
    pub(crate) fn page(self) -> &'static str {
        self.entry().page
    }

    /// Finds a code by its name, in any case.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::all().find(|c| c.name().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_table_agree() {
        for (i, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.code as usize, i, "{} is out of order", entry.name);
            assert_eq!(Code::parse(entry.name), Some(entry.code), "{} appears once", entry.name);
        }
    }

    #[test]
    fn every_code_has_a_page_and_every_page_a_code() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/error_codes");
        let pages: std::collections::BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap().replace(".md", ""))
            .collect();
        let codes: std::collections::BTreeSet<String> = Code::all().map(|c| c.name().to_owned()).collect();
        assert_eq!(pages, codes);
        for code in Code::all() {
            let page = code.page();
            assert!(page.starts_with(&format!("# {}: {}\n", code.name(), code.title())), "{page}");
            assert!(page.contains("## Cause\n") && page.contains("## Remedies\n\n1. "), "{page}");
        }
    }
}
