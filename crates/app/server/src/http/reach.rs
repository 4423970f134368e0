//! What a request reaches, for callers that may not reach everything.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// What a request touches, as far as its path says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reach<'p> {
    /// The handler knows: the name stands in the body, in the query or in a saga.
    Asked,
    /// All of the node. Every route that is not known to reach less.
    Everything,
    /// What has this name.
    Named(Cow<'p, str>),
    /// Nothing that has a name.
    Nothing,
}

impl<'p> Reach<'p> {
    /// What `path` reaches; its segments are decoded as the router does.
    pub(crate) fn of(path: &'p str) -> Self {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let named =
            |part: &'p str| percent_decode_str(part).decode_utf8().map_or(Self::Everything, Self::Named);
        match parts.as_slice() {
            ["openapi.json" | "version"] | ["problems", _] | ["v1.0", ..] => Self::Nothing,
            ["v1", "definitions" | "elections" | "locks" | "members", name, ..] => named(name),
            ["v1", "observe", _, name] => named(name),
            ["v1", "attention" | "definitions" | "events" | "locks"] => Self::Asked,
            ["v1", "jobs", _] | ["v1", "sagas", ..] | ["v1.0-alpha1", ..] => Self::Asked,
            _ => Self::Everything,
        }
    }
}

/// Whether `namespace` covers `name`: the name itself, and what begins with it and a `.`, `/` or `:`.
pub(crate) fn covers(namespace: &str, name: &str) -> bool {
    let rest = name.strip_prefix(namespace);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/', ':']))
}

/// Whether a text is a namespace: 1 to 128 letters, digits or `-_./:`.
pub(crate) fn is_namespace(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    (1..=128).contains(&text.len()) && text.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_04_a_namespace_covers_whole_parts_of_names_only() {
        for (namespace, name, want) in [
            ("team-a", "team-a", true),
            ("team-a", "team-a/nightly", true),
            ("team-a", "team-a.nightly", true),
            ("team-a", "team-a:nightly", true),
            ("team-a", "team-ab", false),
            ("team-a", "team-a-2", false),
            ("team-a", "team", false),
            ("team-a", "", false),
            ("team-a", "x/team-a", false),
            ("team-a", "election/team-a", false),
            ("team-a/x", "team-a", false),
        ] {
            assert_eq!(covers(namespace, name), want, "{namespace} {name}");
        }
        assert!(
            is_namespace("team-a/x") && !is_namespace("") && !is_namespace("a b") && !is_namespace("a,b")
        );
    }

    #[test]
    fn sec_04_what_a_path_reaches_is_known_or_it_is_everything() {
        let named = |name: &'static str| Reach::Named(name.into());
        for (path, want) in [
            ("/v1/locks/a", named("a")),
            ("/v1/locks/team%2Da%2Fx", named("team-a/x")),
            ("/v1/locks/%FF", Reach::Everything),
            ("/v1/elections/a/step-down", named("a")),
            ("/v1/members/g/n", named("g")),
            ("/v1/observe/locks/a", named("a")),
            ("/v1/definitions/d", named("d")),
            ("/v1/locks", Reach::Asked),
            ("/v1/sagas/x/history", Reach::Asked),
            ("/version", Reach::Nothing),
            ("/metrics", Reach::Everything),
            ("/v1/nodes", Reach::Everything),
            ("/v1/nodes/state", Reach::Everything),
            ("/v1/jobs", Reach::Everything),
            ("/v1/audit", Reach::Everything),
            ("/console/now", Reach::Everything),
            ("/", Reach::Everything),
            ("", Reach::Everything),
            ("/v1/new", Reach::Everything),
        ] {
            assert_eq!(Reach::of(path), want, "{path}");
        }
    }
}
