//! The caller of participants, as configured.

use std::sync::Arc;

use mainstay_clock::Clock;
use mainstay_saga::http::{AddressPolicy, HttpParticipant};

use crate::config::Config;
use crate::error::{Code, Error, Result};

/// Only the allowed origins are called; what their names resolve to is public or in an allowed network.
pub(crate) fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<HttpParticipant> {
    let refused = |e| Error::with(Code::BadValue, "participants", e);
    let mut policy = AddressPolicy::only(config.list("participants.allow")).map_err(refused)?;
    for network in config.list("participants.allow_network") {
        policy = policy.allow_network(network).map_err(refused)?;
    }
    let builder = HttpParticipant::builder(policy, Arc::clone(clock));
    builder.max_reply(config.count("participants.max_reply")).build().map_err(refused)
}
