//! Histories as JSON lines. Integers that can pass 2^53 are decimal text.

use super::Event;

/// A line that is no event.
#[derive(Debug, thiserror::Error)]
#[error("line {line} is no event of a history")]
pub struct ReadError {
    /// Its number, from 1.
    pub line: usize,
    source: serde_json::Error,
}

/// The events as JSON lines.
///
/// ```
/// use mainstay_sim::history::{Ended, Event, Op, read, write};
///
/// let events = vec![Event::Op(Op::new(1, "read", "x", 5, Some(9), Ended::Ok))];
/// let text = write(&events);
/// assert!(text.contains(r#""invoke_ns":"5""#));
/// assert_eq!(read(&text).unwrap(), events);
/// ```
#[must_use]
pub fn write(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        // No event has a map or a number that JSON cannot express.
        text.push_str(&serde_json::to_string(event).unwrap_or_default());
        text.push('\n');
    }
    text
}

/// Reads what [`write()`] wrote. Empty lines are skipped.
///
/// # Errors
/// [`ReadError`] naming the first line that is no event.
pub fn read(text: &str) -> Result<Vec<Event>, ReadError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| serde_json::from_str(line).map_err(|source| ReadError { line: i + 1, source }))
        .collect()
}

pub(super) mod text {
    //! A number as decimal text.

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(n: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(n)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

pub(super) mod text_option {
    //! A number as decimal text, or null.

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(n: &Option<u64>, s: S) -> Result<S::Ok, S::Error> {
        match n {
            Some(n) => s.collect_str(n),
            None => s.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
        Option::<String>::deserialize(d)?.map(|n| n.parse().map_err(D::Error::custom)).transpose()
    }
}
