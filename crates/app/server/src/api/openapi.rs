//! `GET /openapi.json`: every route with its parameters and every status it answers with.

use std::sync::Arc;

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::api::App;
use crate::api::json::reply;
use crate::error::Code;

/// A route and method.
struct Operation {
    path: &'static str,
    method: &'static str,
    about: &'static str,
    query: &'static [&'static str],
    headers: &'static [&'static str],
    /// The statuses of success, then of its own problems.
    statuses: &'static [u16],
}

/// What any route may answer: limits, authentication, overload, stopping.
const ANYWHERE: &[u16] = &[400, 401, 403, 404, 405, 408, 413, 414, 429, 431, 500, 503];

/// An attribute of a saga by its name, which is the caller's.
const ATTR: &str = "attr.NAME";

const FILTERS: &[&str] = &[
    ATTR,
    "attention",
    "attempt_gte",
    "attempt_lte",
    "created_gte",
    "created_lte",
    "cursor",
    "definition",
    "error~",
    "id",
    "limit",
    "overdue",
    "paused",
    "retrying",
    "status",
    "step",
];

macro_rules! operations {
    ($($method:literal $path:literal $about:literal $query:expr, $headers:expr, $statuses:expr;)*) => {
        const OPERATIONS: &[Operation] = &[$(Operation {
            path: $path, method: $method, about: $about,
            query: $query, headers: $headers, statuses: $statuses,
        },)*];
    };
}

operations! {
    "get" "/livez" "Up" &[], &[], &[200];
    "get" "/metrics" "Prometheus text" &[], &[], &[200];
    "get" "/openapi.json" "This document" &[], &[], &[200];
    "get" "/problems/{code}" "The page of an error code" &[], &[], &[200];
    "get" "/readyz" "Ready to take work" &[], &[], &[200];
    "get" "/v1/attention" "Sagas that wait for a person: only one can move them on, or they are overdue" FILTERS, &[], &[200];
    "get" "/v1/audit" "Who did what, chained by hashes" &["after", "limit"], &[], &[200];
    "get" "/v1/definitions" "Every definition" &[], &[], &[200];
    "get" "/v1/definitions/{name}" "A definition" &["version"], &[], &[200];
    "put" "/v1/definitions/{name}" "Store a version; its graph never changes" &[], &["If-Match"], &[200, 201, 409, 412, 415, 422, 428];
    "get" "/v1/elections/{name}" "Who leads; with If-None-Match and a wait, when that changes" &["wait"], &["If-None-Match", "Prefer"], &[200];
    "put" "/v1/elections/{name}" "Stand as a candidate; with bind=connection for as long as the stream is open" &["bind", "wait"], &["Idempotency-Key", "Prefer"], &[200, 409, 412, 422];
    "patch" "/v1/elections/{name}" "Renew a term, and proclaim a value" &[], &["If-Match"], &[200, 412, 428];
    "delete" "/v1/elections/{name}" "End a term" &[], &["If-Match"], &[200, 412, 428];
    "post" "/v1/elections/{name}/step-down" "Hand leadership to a candidate, or take it away" &[], &["If-Match"], &[200, 409, 412];
    "get" "/v1/events" "Server-sent events" &["after", "definition", "saga"], &["Last-Event-ID"], &[200];
    "get" "/v1/jobs" "Bulk actions of this node, newest first" &[], &[], &[200];
    "get" "/v1/jobs/{id}" "A bulk action" &[], &[], &[200];
    "get" "/v1/locks" "Every lock" &["prefix"], &[], &[200];
    "get" "/v1/locks/{name}" "A lock: holder, waiters, note" &[], &[], &[200];
    "put" "/v1/locks/{name}" "Acquire, in line for as long as the request may wait; with bind=connection for as long as the stream is open" &["bind", "wait"], &["Idempotency-Key", "Prefer"], &[200, 409, 412, 422];
    "patch" "/v1/locks/{name}" "Renew" &[], &["If-Match"], &[200, 412, 428];
    "delete" "/v1/locks/{name}" "Release; with force and a reason, take away" &["force", "reason"], &["If-Match"], &[200, 412, 428];
    "get" "/v1/nodes" "Which nodes are there, and whose breakers are open" &[], &[], &[200];
    "get" "/v1/nodes/state" "What the nodes told each other, as in gossip.state: for mainstay replica diff" &[], &[], &[200];
    "get" "/v1/members/{group}" "Who is in a group; with If-None-Match and a wait, when that changes" &["wait"], &["If-None-Match", "Prefer"], &[200];
    "get" "/v1/members/{group}/{name}" "A member" &[], &[], &[200];
    "put" "/v1/members/{group}/{name}" "Join; with bind=connection for as long as the stream is open" &["bind", "wait"], &["Idempotency-Key", "Prefer"], &[200, 409, 412, 422];
    "patch" "/v1/members/{group}/{name}" "Renew, and replace the metadata" &[], &["If-Match"], &[200, 412, 428];
    "delete" "/v1/members/{group}/{name}" "Leave; with force and a reason, take away" &["force", "reason"], &["If-Match"], &[200, 412, 428];
    "get" "/v1/observe/elections/{name}" "Server-sent events: the leader, whenever it changes" &["after"], &["Last-Event-ID"], &[200];
    "get" "/v1/observe/locks/{name}" "Server-sent events: the holders, whenever they change" &["after"], &["Last-Event-ID"], &[200];
    "get" "/v1/observe/members/{group}" "Server-sent events: a snapshot of a group, then every change" &["after"], &["Last-Event-ID"], &[200];
    "get" "/v1/sagas" "A page of sagas, newest first" FILTERS, &[], &[200];
    "post" "/v1/sagas" "Start a saga" &[], &["Idempotency-Key"], &[202, 409, 422];
    "post" "/v1/sagas/actions" "One action on every saga that matches" &[], &[], &[200, 202, 422];
    "get" "/v1/sagas/{uid}" "A saga with its steps" &["wait"], &["Prefer"], &[200];
    "post" "/v1/sagas/{uid}/actions" "Move a saga on" &[], &["If-Match", "Idempotency-Key"], &[200, 202, 409, 412, 422, 428];
    "get" "/v1/sagas/{uid}/export" "Everything about a saga in one document" &[], &[], &[200];
    "get" "/v1/sagas/{uid}/history" "Every record of a saga" &[], &[], &[200];
    "post" "/v1/sagas/{uid}/steps/{step}/complete" "A participant reports how an accepted step ended" &[], &[], &[200, 409];
    "get" "/v1.0/healthz" "Up, for clients of Dapr" &[], &[], &[204];
    "get" "/v1.0/healthz/outbound" "Up, for clients of Dapr" &[], &[], &[204];
    "get" "/v1.0/metadata" "Which lock stores there are, for clients of Dapr" &[], &[], &[200];
    "post" "/v1.0-alpha1/lock/{store}" "Dapr: try to lock" &[], &[], &[200];
    "post" "/v1.0-alpha1/unlock/{store}" "Dapr: unlock" &[], &[], &[200];
    "get" "/version" "Name, version, mode" &[], &[], &[200];
}

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/openapi.json", get(openapi))
}

async fn openapi() -> Response {
    reply(StatusCode::OK, &document())
}

/// The document.
fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| Value::Object(Map::new()));
        path[operation.method] = describe(operation);
    }
    let codes: Vec<&str> = Code::all().filter(|c| c.status().is_some()).map(Code::name).collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "mainstay", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": {"Problem": problem_schema(&codes), "Start": start_schema(), "Action": action_schema(),
                "Bulk": bulk_schema(), "Report": report_schema(), "Lease": lease_schema(), "Member": member_schema(),
                "StepDown": step_down_schema(), "DaprLock": dapr_schema()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    })
}

fn describe(operation: &Operation) -> Value {
    let mut parameters = Vec::new();
    for part in operation.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}')) {
        parameters.push(json!({"name": part, "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    for name in operation.query {
        let schema = match *name {
            // Of an object in this form every property is a parameter.
            ATTR => json!({
                "type": "object",
                "propertyNames": {"pattern": "^attr\\."},
                "additionalProperties": {"type": "string"},
            }),
            _ => json!({"type": "string"}),
        };
        let mut parameter = json!({"name": name, "in": "query", "schema": schema});
        if *name == ATTR {
            (parameter["style"], parameter["explode"]) = (json!("form"), json!(true));
        }
        parameters.push(parameter);
    }
    for name in operation.headers {
        parameters.push(json!({"name": name, "in": "header", "schema": {"type": "string"}}));
    }
    let mut statuses: Vec<u16> = operation.statuses.iter().chain(ANYWHERE).copied().collect();
    statuses.sort_unstable();
    let responses: Map<String, Value> = statuses
        .into_iter()
        .map(|status| {
            let body = if status < 300 {
                json!({"description": "success"})
            } else {
                let schema = json!({"schema": {"$ref": "#/components/schemas/Problem"}});
                json!({"description": "problem", "content": {"application/problem+json": schema}})
            };
            (status.to_string(), body)
        })
        .collect();
    let mut described = json!({"summary": operation.about, "parameters": parameters, "responses": responses});
    let schema = match (operation.method, operation.path) {
        ("post", "/v1/sagas") => Some(json!({"$ref": "#/components/schemas/Start"})),
        ("post", "/v1/sagas/actions") => Some(json!({"$ref": "#/components/schemas/Bulk"})),
        ("post", path) if path.ends_with("/step-down") => {
            Some(json!({"$ref": "#/components/schemas/StepDown"}))
        }
        ("post", path) if path.starts_with("/v1.0") => Some(json!({"$ref": "#/components/schemas/DaprLock"})),
        ("put", path) if path.starts_with("/v1/members") => {
            Some(json!({"$ref": "#/components/schemas/Member"}))
        }
        ("put", path) if path.contains("{name}") && !path.starts_with("/v1/definitions") => {
            Some(json!({"$ref": "#/components/schemas/Lease"}))
        }
        ("post", path) if path.ends_with("/complete") => Some(json!({"$ref": "#/components/schemas/Report"})),
        ("post", _) => Some(json!({"$ref": "#/components/schemas/Action"})),
        ("put", _) => Some(json!({"type": "object"})),
        _ => None,
    };
    if let Some(schema) = schema {
        described["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    described
}

fn problem_schema(codes: &[&str]) -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance", "code", "trace_id"],
        "properties": {
            "type": text(), "title": text(), "detail": text(), "instance": text(), "trace_id": text(),
            "status": {"type": "integer"}, "retry_after": {"type": "integer"},
            "code": {"type": "string", "enum": codes},
            "errors": {"type": "array", "items": {
                "type": "object", "properties": {"pointer": text(), "reason": text()},
            }},
        },
    })
}

fn start_schema() -> Value {
    json!({
        "type": "object",
        "required": ["definition"],
        "additionalProperties": false,
        "properties": {
            "definition": {"type": "string"}, "version": {"type": "integer"}, "id": {"type": "string"},
            "input": {}, "attrs": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    })
}

fn lease_schema() -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["owner", "ttl"],
        "additionalProperties": false,
        "properties": {"owner": text(), "ttl": text(), "note": text(), "value": text()},
    })
}

fn member_schema() -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["ttl"],
        "additionalProperties": false,
        "properties": {"owner": text(), "ttl": text(), "meta": text()},
    })
}

fn step_down_schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {"to": {"type": "string"}, "reason": {"type": "string"}},
    })
}

fn dapr_schema() -> Value {
    json!({
        "type": "object",
        "required": ["resourceId", "lockOwner"],
        "properties": {
            "resourceId": {"type": "string"}, "lockOwner": {"type": "string"},
            "expiryInSeconds": {"type": "integer"}, "renew": {"type": "boolean"},
        },
    })
}

const ACTIONS: &[&str] = &[
    "abandon",
    "acknowledge",
    "cancel",
    "compensate",
    "pause",
    "resolve",
    "resume",
    "retry",
    "run_again",
    "skip",
];

/// An action with a filter of saga lists.
fn bulk_schema() -> Value {
    let mut schema = action_schema();
    schema["required"] = json!(["action", "reason", "filter"]);
    schema["properties"]["filter"] = json!({"type": "object"});
    schema["properties"]["dry_run"] = json!({"type": "boolean"});
    schema
}

fn report_schema() -> Value {
    json!({
        "type": "object",
        "required": ["attempt", "outcome"],
        "additionalProperties": false,
        "properties": {
            "attempt": {"type": "integer"}, "op": {"type": "string"}, "output": {},
            "outcome": {"enum": ["done", "failed", "rejected"]},
            "reason": {"type": "string"}, "effect": {"enum": ["none"]},
        },
    })
}

fn action_schema() -> Value {
    json!({
        "type": "object",
        "required": ["action", "reason"],
        "additionalProperties": false,
        "properties": {
            "action": {"enum": ACTIONS},
            "from": {"type": "string"}, "id": {"type": "string"},
            "as": {"enum": ["done", "not_done", "undone"]},
            "step": {"type": "string"}, "input": {}, "output": {},
            "reason": {"type": "string"}, "evidence": {"type": "string"},
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn if_a10_every_route_is_in_the_document_and_every_entry_is_a_route() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api");
        let mut routed = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let paths = text.split(".route(").skip(1);
            let names = paths.filter_map(|p| p.trim_start().strip_prefix('"')?.split('"').next());
            routed.extend(names.filter(|p| p.starts_with('/')).map(str::to_owned));
        }
        let listed: BTreeSet<String> = OPERATIONS.iter().map(|o| o.path.to_owned()).collect();
        assert_eq!(routed, listed);
        assert_eq!(document()["paths"].as_object().unwrap().len(), listed.len());
    }

    #[test]
    fn if_a10_sagas_are_filtered_by_attributes_of_any_name() {
        for path in ["/v1/sagas", "/v1/attention"] {
            let parameters = document()["paths"][path]["get"]["parameters"].clone();
            let found = parameters.as_array().unwrap().iter().find(|p| p["name"] == "attr.NAME").cloned();
            let attr = found.unwrap_or_else(|| panic!("{path}: {parameters}"));
            // Each property of an object in this form is a parameter of its own.
            assert_eq!((&attr["style"], &attr["explode"]), (&json!("form"), &json!(true)));
            assert_eq!(attr["schema"]["propertyNames"]["pattern"], "^attr\\.");
        }
    }

    #[test]
    fn if_h07_only_routes_that_wait_are_free_of_the_limits_of_others() {
        for operation in OPERATIONS {
            let waits = operation.query.contains(&"wait");
            let free = crate::http::may_wait(&operation.method.to_uppercase(), operation.path);
            assert_eq!(free, waits, "{} {}", operation.method, operation.path);
        }
    }
}
