//! Keeping leases and giving them back.

use mainstay_store::lease::{Released, Renewed};
use mainstay_store::{Outcome, Result};

use crate::conn::Repeat;
use crate::line::Held;
use crate::ops::Op;
use crate::state::{operation, seconds};
use crate::store::EtcdLeases;
use crate::wire::{self, RequestOp, TxnRequest, TxnResponse};

impl EtcdLeases {
    /// An operation by its id: this process knows it, or etcd has its record.
    async fn find(&self, op_id: &str) -> Result<Option<Op>> {
        if let Some(op) = self.0.ops.get(op_id) {
            return Ok(Some(op));
        }
        let answer = self.read(vec![wire::get(self.0.scheme.operation(op_id))]).await?;
        let Some(known) = wire::found(answer.responses.into_iter().next()).pop() else { return Ok(None) };
        let record = operation(&known)?;
        let ttl = std::time::Duration::from_nanos(record.ttl_nanos);
        let seconds = seconds(ttl);
        let created = Some(known.create_revision);
        let (names, lease) = (record.names, record.lease);
        Ok(Some(Op { names, lease, seconds, ttl, created, held: false, releasing: false }))
    }

    pub(crate) async fn extend(&self, op_id: &str) -> Result<Renewed> {
        let Some(op) = self.find(op_id).await? else { return Ok(Renewed::Lost) };
        let proofs = match self.held_as(op_id, &op.names, op.lease).await? {
            Held::Proved(proofs) => proofs,
            // A key that somebody deleted is not brought back by a lease that lives on.
            Held::Broken => return Ok(Renewed::Broken),
            Held::Gone => return Ok(Renewed::Lost),
        };
        if !self.0.conn.keep_alive(op.lease).await? {
            return Ok(Renewed::Closed);
        }
        Ok(Renewed::Renewed(self.grants(&op.names, &proofs, op.ttl)?))
    }

    pub(crate) async fn give_back(&self, op_id: &str) -> Result<Released> {
        let Some(op) = self.find(op_id).await? else { return Ok(Released::AlreadyGone) };
        self.0.ops.releases(op_id, op.lease);
        let answer = self.0.conn.txn(Repeat::Harmless, self.freeing(op_id, &op)).await?;
        self.0.hub.unfollow(op_id);
        op.names.iter().for_each(|name| self.0.hub.fire(name));
        let TxnResponse { succeeded, responses, .. } = answer.reply;
        // An earlier try, of this call or of one before whose answer was lost, may have found all names held: then the
        // operation is gone, and the lease lives on without it.
        let known = wire::found(responses.into_iter().next()).pop();
        let doubtful = (answer.in_doubt || op.releasing) && op.held && !succeeded && known.is_none();
        let clean = match doubtful {
            true => {
                self.0.conn.remaining(op.lease).await.map_err(|e| e.with_outcome(Outcome::Unknown))?.is_some()
            }
            false => succeeded,
        };
        // What may still be on its way finds no lease.
        match self.0.conn.revoke(op.lease).await {
            Ok(_) => self.0.ops.end(op_id, op.lease),
            Err(error) if op.created.is_none() => return Err(error.with_outcome(Outcome::Unknown)),
            // Its keys are gone; it ends by itself.
            Err(error) => {
                tracing::debug!(%error, "a lease without keys was not ended");
                self.0.ops.end(op_id, op.lease);
            }
        }
        Ok(if clean { Released::Clean } else { Released::AlreadyGone })
    }

    pub(crate) async fn step_out(&self, op_id: &str) -> Result<()> {
        let Some(op) = self.find(op_id).await? else { return Ok(()) };
        let scheme = &self.0.scheme;
        let own = wire::is_of(scheme.operation(op_id), op.lease);
        // Whoever holds by now is not in line.
        let waits = op.names.iter().map(|n| wire::is_created(scheme.mark(n, op.lease), 0));
        let compare = std::iter::once(own).chain(waits).collect();
        let keys = self.deletes_of(&op);
        let success = std::iter::once(wire::delete(scheme.operation(op_id))).chain(keys).collect();
        let txn = TxnRequest { compare, success, failure: Vec::new() };
        let answer = self.0.conn.txn(Repeat::Harmless, txn).await?;
        if answer.reply.succeeded {
            op.names.iter().for_each(|name| self.0.hub.fire(name));
            self.abandon(op_id, op.lease).await?;
        }
        Ok(())
    }

    /// Frees all names of an operation and forgets it, if it holds them. Otherwise what is left of it, and it stays known
    /// until its lease ends: so a repetition learns which of both it was.
    fn freeing(&self, op_id: &str, op: &Op) -> TxnRequest {
        let scheme = &self.0.scheme;
        // Nothing else has this lease, so whatever of the operation a newer one has made is left alone (F18).
        let mut compare = vec![wire::is_of(scheme.operation(op_id), op.lease)];
        for name in &op.names {
            compare.push(wire::is_of(scheme.lock(name, op.lease), op.lease));
            compare.push(wire::is_of(scheme.mark(name, op.lease), op.lease));
        }
        let keys = self.deletes_of(op);
        let success = std::iter::once(wire::delete(scheme.operation(op_id))).chain(keys.clone()).collect();
        let failure = std::iter::once(wire::get(scheme.operation(op_id))).chain(keys).collect();
        TxnRequest { compare, success, failure }
    }

    fn deletes_of(&self, op: &Op) -> Vec<RequestOp> {
        let scheme = &self.0.scheme;
        let keys = |name: &String| {
            [scheme.lock(name, op.lease), scheme.mark(name, op.lease), scheme.place(name, op.lease)]
        };
        op.names.iter().flat_map(keys).map(wire::delete).collect()
    }
}
