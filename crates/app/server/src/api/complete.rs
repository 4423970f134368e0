//! `POST /v1/sagas/{uid}/steps/{step}/complete`: a participant that accepted a step says how it ended.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use http::StatusCode;
use mainstay_saga::wire::{AttemptRef, Completed, UndoVerdict, Verdict};
use mainstay_store::barrier::Op;
use mainstay_store::journal::Uid;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::json::{engine_problem, parse, reply};
use crate::api::{App, sagas};
use crate::error::Code;
use crate::http::{Caller, Problem};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/sagas/{uid}/steps/{step}/complete", post(complete))
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Done,
    Failed,
    Rejected,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    /// As in `Saga-Attempt`.
    attempt: u32,
    /// As in `Saga-Op`.
    #[serde(default = "action")]
    op: String,
    outcome: Outcome,
    #[serde(default)]
    output: Option<Value>,
    #[serde(default)]
    reason: Option<String>,
    /// `none`: no attempt under this key had an effect.
    #[serde(default)]
    effect: Option<String>,
}

fn action() -> String {
    "action".to_owned()
}

impl Report {
    fn read(self, step: String) -> Result<(AttemptRef, Completed), Problem> {
        let bad = |why: &str| Problem::new(Code::BadRequest, why);
        let op = Op::parse(&self.op).ok_or_else(|| bad("`op` is the `Saga-Op` of the request"))?;
        if self.effect.as_deref().is_some_and(|e| e != "none") {
            return Err(bad("`effect` is none, or absent"));
        }
        if self.output.is_some() && !matches!((&op, self.outcome), (Op::Action { .. }, Outcome::Done)) {
            return Err(bad("`output` is for an action that is done"));
        }
        let reason = self.reason.unwrap_or_else(|| "the participant gave no reason".to_owned());
        let is_final = self.effect.is_some();
        let (generation, result) = match op {
            Op::Action { generation } => {
                let verdict = match self.outcome {
                    Outcome::Done => Verdict::Done { output: Some(self.output.unwrap_or(Value::Null)) },
                    Outcome::Failed => Verdict::Unknown { reason, interrupted: false },
                    Outcome::Rejected => Verdict::Rejected { reason, is_final },
                };
                (generation, Completed::Action(verdict))
            }
            Op::Undo { generation } => {
                let verdict = match self.outcome {
                    Outcome::Done => UndoVerdict::Undone,
                    Outcome::Failed => UndoVerdict::Failed { reason },
                    Outcome::Rejected => UndoVerdict::Refused { reason },
                };
                (generation, Completed::Undo(verdict))
            }
        };
        Ok((AttemptRef { step, attempt: self.attempt, generation }, result))
    }
}

async fn complete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path((uid, step)): Path<(String, String)>,
    body: Bytes,
) -> Result<Response, Problem> {
    let report: Report = parse(&body)?;
    let (at, result) = report.read(step)?;
    // A participant reports for every step: only a narrowed one costs a look.
    if !caller.is_free() {
        sagas::look_for(&app, &caller, &uid).await?;
    }
    app.engine.complete(&Uid::new(uid), at, result).await.map_err(|e| engine_problem(&e))?;
    Ok(reply(StatusCode::OK, &json!({"taken": true})))
}
