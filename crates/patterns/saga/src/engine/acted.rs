//! Actions of a person, as a drive takes them up.

use std::sync::Arc;

use mainstay_store::journal::Audit;

use super::drive::{Drive, MAX_REMARK};
use crate::fold::{Illegal, Refusal};
use crate::next::{cut, fits, fits_the_end};
use crate::wire::{Action, ActionRefused, Closed, Fact, Operation, encode};

impl Drive {
    /// An action: on the log, or refused, and audited in both cases.
    pub(super) fn act(&mut self, mut action: Action) -> Result<(), Illegal> {
        let definition = Arc::clone(&self.registered.definition);
        if self.taken_at.take().is_some_and(|seen| action.expected_seq == Some(seen)) {
            // What a crash cut short was noted just now, because of this very action.
            action.expected_seq = Some(self.state.seq + 1);
        }
        // A person who saw the row before the facts of this very append is not late.
        let before = self.state.status(&definition);
        let fact = self.fact_of(&action);
        let repeats = self.state.repeats(&definition, &action);
        let legal = match &fact {
            _ if repeats => Ok(()),
            Fact::Closed(_) => self.state.is_current(&action),
            _ => self.state.allows(&definition, &action),
        };
        let allowed = match legal {
            Ok(()) if !repeats => self.has_room(&action.operation, &fact),
            legal => legal,
        };
        let message = action.message.clone();
        let (who, name) = (action.who.clone(), action.operation.name());
        let target =
            action.operation.step().map_or_else(|| self.uid.to_string(), |s| format!("{}/{s}", self.uid));
        let target = cut(target, MAX_REMARK);
        let reason = action.reason.clone();
        match &allowed {
            Ok(()) if repeats => self.note(format!("cancelled again by {who}: {reason}"))?,
            Ok(()) => self.record(&fact)?,
            Err(why) => {
                let refused = ActionRefused {
                    message: message.clone(),
                    who: cut(who.clone(), MAX_REMARK),
                    action: name.to_owned(),
                    why: cut(why.to_string(), MAX_REMARK),
                };
                self.remark(Fact::ActionRefused(refused))?;
            }
        }
        let after = match &allowed {
            Ok(()) => self.state.status(&definition).to_string(),
            Err(why) => format!("refused: {why}"),
        };
        self.audit.push(Audit {
            who,
            action: name.to_owned(),
            target,
            reason,
            before: before.to_string(),
            after,
            request_id: message.clone(),
        });
        self.answers.push((message, allowed));
        Ok(())
    }

    /// What an action puts on the log. One that gives up a saga that was set aside closes it, whatever the rules say of it.
    fn fact_of(&self, action: &Action) -> Fact {
        let asks = self.state.nodes.iter().any(|n| n.item.is_some());
        match (&action.operation, &self.was_aside) {
            (Operation::Abandon, Some(why)) if !asks => Fact::Closed(Closed {
                message: action.message.clone(),
                who: action.who.clone(),
                reason: action.reason.clone(),
                why: why.clone(),
            }),
            _ => Fact::Action(action.clone()),
        }
    }

    /// Whether the log has room for the action, and for what must still follow.
    fn has_room(&self, operation: &Operation, fact: &Fact) -> Result<(), Refusal> {
        let (definition, bytes) = (&self.registered.definition, encode(fact).bytes.len());
        let no = |why| Err(Refusal::NotLegal { action: operation.name(), why });
        match operation {
            Operation::Pause | Operation::Retry { .. } if !fits(definition, &self.state, 1, bytes) => {
                no("the saga's log is nearly full, and the rest is for what ends it")
            }
            Operation::TakeUp if self.was_aside.is_none() => no("the saga is not set aside; name the step"),
            // Nothing follows.
            Operation::Abandon => Ok(()),
            _ if !fits_the_end(definition, &self.state, bytes) => {
                no("the saga's log is nearly full: say less, or abandon the saga")
            }
            _ => Ok(()),
        }
    }
}
