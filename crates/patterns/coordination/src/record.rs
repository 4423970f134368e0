//! Compare and set on one record, for recipes whose steps can be repeated.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::{Outcome, PutIf, RecordStore};

use crate::coordinator::Core;
use crate::{Error, ErrorKind};

/// Between two tries after another writer was faster, or the store failed: from this, doubling, to the other.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Tries without a deadline: others make progress with each of them, a store that fails does not come back
/// in this many.
const TRIES: u32 = 64;

/// What a step makes of a record.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// It is as it should be: the answer.
    Keep(T),
    /// Write this; the answer once it is written.
    Write(Vec<u8>, T),
}

/// One record of a recipe.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Arc<dyn RecordStore>,
    /// Its key.
    pub(crate) key: String,
}

impl Record {
    /// Applies `step` to the record until it was kept or written. `step` must find its own mark when it is applied
    /// again: a write may have happened though its answer was lost.
    ///
    /// # Errors
    /// What `step` says; `Unreachable` when the store fails until `limit`, or too often; `Store` when trying again cannot help.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn update<T>(
        &self,
        limit: Deadline,
        mut step: impl FnMut(Option<&[u8]>) -> Result<Step<T>, Error>,
    ) -> Result<T, Error> {
        let mut tries = 0;
        loop {
            let tried = async {
                let found = self.store.get(&self.key).await?;
                let value = match step(found.as_ref().map(|r| r.value.as_slice())) {
                    Err(error) => return Ok(Some(Err(error))),
                    Ok(Step::Keep(answer)) => return Ok(Some(Ok(answer))),
                    Ok(Step::Write(value, answer)) => (value, answer),
                };
                let expected = found.map(|r| r.version);
                Ok(match self.store.put_if(&self.key, expected, value.0, None).await? {
                    PutIf::Stored(_) => Some(Ok(value.1)),
                    PutIf::Conflict(_) => None,
                })
            };
            let failed: Option<mainstay_store::Error> = match tried.await {
                Ok(Some(answer)) => return answer,
                Ok(None) => None,
                Err(error) => Some(error),
            };
            tries += 1;
            self.again(limit, tries, failed).await?;
        }
    }

    /// Waits before another try, or gives up.
    async fn again(
        &self,
        limit: Deadline,
        tries: u32,
        failed: Option<mainstay_store::Error>,
    ) -> Result<(), Error> {
        let hopeless = failed.as_ref().is_some_and(|e| !e.is_retryable() && e.outcome() != Outcome::Unknown);
        let over = limit.is_some() && self.core.now() >= limit.instant();
        let often = !limit.is_some() && tries >= TRIES;
        if hopeless || over || often {
            return Err(match failed {
                Some(error) => Error::store(&self.key, error),
                None => {
                    Error::new(ErrorKind::Unreachable, format!("`{}`: others write all the time", self.key))
                }
            });
        }
        let pause = PAUSE_MIN.saturating_mul(1 << (tries - 1).min(9)).min(PAUSE_MAX);
        let until = self.core.now().saturating_add(pause.mul_f64(0.5 + self.core.unit()));
        self.core.clock().sleep_until(until.min(limit.instant())).await;
        Ok(())
    }

    /// Reads the record.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn get(&self) -> Result<Option<Vec<u8>>, Error> {
        let found = self.store.get(&self.key).await.map_err(|e| Error::store(&self.key, e))?;
        Ok(found.map(|r| r.value))
    }
}

/// The version of every record below.
const VERSION: &str = "mainstay 1";

/// Lines of words, for what recipes keep: readable with the tools of any store.
///
/// A word is percent-escaped where it has a space, a control character or a percent sign.
pub(crate) fn written(lines: &[Vec<String>]) -> Vec<u8> {
    let mut text = VERSION.to_owned();
    for line in lines {
        text.push('\n');
        let words: Vec<String> = line.iter().map(|word| escaped(word)).collect();
        text.push_str(&words.join(" "));
    }
    text.into_bytes()
}

/// The lines of a record.
///
/// # Errors
/// `ApiMisuse` for a record of somebody else, or of a newer version.
pub(crate) fn read(key: &str, value: &[u8]) -> Result<Vec<Vec<String>>, Error> {
    let foreign = || {
        let why = format!("the record `{key}` is none of ours, or of a newer version");
        Error::new(ErrorKind::ApiMisuse, why)
    };
    let mut lines = std::str::from_utf8(value).map_err(|_| foreign())?.lines();
    if lines.next() != Some(VERSION) {
        return Err(foreign());
    }
    lines
        .map(|line| line.split(' ').map(unescaped).collect::<Option<Vec<String>>>())
        .collect::<Option<_>>()
        .ok_or_else(foreign)
}

fn escaped(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    for c in word.chars() {
        if c == '%' || c == ' ' || c.is_control() {
            let mut bytes = [0; 4];
            for b in c.encode_utf8(&mut bytes).bytes() {
                text.push_str(&format!("%{b:02x}"));
            }
        } else {
            text.push(c);
        }
    }
    text
}

fn unescaped(word: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{read, written};

    #[test]
    fn what_is_written_is_read_and_the_rest_is_refused() {
        let lines = vec![
            vec!["gen".to_owned(), "7".to_owned()],
            vec!["in".to_owned(), "a b%\n\u{85}c".to_owned(), String::new()],
        ];
        assert_eq!(read("k", &written(&lines)).unwrap(), lines);
        assert_eq!(read("k", &written(&[])).unwrap(), Vec::<Vec<String>>::new());
        for bad in [&b""[..], b"mainstay 2", b"{}", b"mainstay 1\nx %zz", b"mainstay 1\nx %f", b"\xff"] {
            assert!(read("k", bad).is_err(), "{bad:?}");
        }
    }
}
