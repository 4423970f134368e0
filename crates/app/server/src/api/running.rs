//! Idempotency keys whose first request has not been answered yet.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Code;
use crate::http::Problem;

/// The keys of requests in flight; as many as there are requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningKeys(Arc<Mutex<BTreeSet<String>>>);

/// Holds a key; dropping it gives it back, however the request ends.
#[derive(Debug)]
pub(crate) struct Running {
    keys: RunningKeys,
    key: String,
}

impl RunningKeys {
    /// Takes a key for one request.
    ///
    /// # Errors
    /// 409 while another request holds it.
    pub(crate) fn take(&self, key: &str) -> Result<Running, Problem> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.insert(key.to_owned()) {
            return Err(
                Problem::new(Code::KeyBusy, "the first request with this key is running").retry_after(1)
            );
        }
        Ok(Running { keys: self.clone(), key: key.to_owned() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.keys.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
