//! The form of an action and its execution: from exactly the state that the operator saw.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::StatusCode;
use mainstay_saga::definition::Definition;
use mainstay_saga::fold::State as SagaState;
use mainstay_saga::wire::{Fact, Operation, decode};
use mainstay_store::journal::Loaded;
use maud::{Markup, html};
use serde_json::{Map, Value};

use crate::api::actions::{message_of, operate};
use crate::api::operation::MAX_REASON;
use crate::api::query::Query;
use crate::api::{sagas, view};
use crate::console::page::{Page, Place};
use crate::console::press::{self, Press};
use crate::console::visit::Visit;
use crate::console::{Console, attention, login, parts, see_other, words};
use crate::error::Code;
use crate::http::Problem;

/// What the form asks for and carries.
struct Asked {
    press: &'static Press,
    step: Option<String>,
    /// The version that the operator saw.
    seen: u64,
    reason: String,
    /// Input or output, as typed.
    json: Option<String>,
    typed: String,
    key: String,
}

impl Asked {
    /// Reads the parameters of a link or the fields of a form.
    fn read(mut query: Query) -> Result<Self, Problem> {
        let bad = |why: &str| Problem::new(Code::BadQuery, why);
        let press = query.take("do").and_then(|name| press::find(&name));
        let press = press.ok_or_else(|| bad("`do` is none of the actions"))?;
        let asked = Self {
            press,
            step: query.take("step"),
            seen: query.take_as("seen")?.ok_or_else(|| bad("`seen` is missing"))?,
            reason: query.take("reason").unwrap_or_default(),
            json: query.take("json"),
            typed: query.take("name").unwrap_or_default(),
            key: query.take("key").unwrap_or_default(),
        };
        query.end()?;
        if asked.press.on_step != asked.step.is_some() {
            return Err(bad("`step` is for actions on a step, and needed there"));
        }
        Ok(asked)
    }

    /// Whether it takes JSON, and what it is called.
    fn takes(&self) -> Option<&'static str> {
        match self.press.name {
            "resolve_done" => Some("output"),
            "retry_with_input" => Some("input"),
            _ => None,
        }
    }

    /// The operation, or what is wrong with the fields.
    fn operation(&self, shown: &Shown<'_>) -> Result<Operation, String> {
        let step = self.step.clone().unwrap_or_default();
        let value = match (self.takes(), self.json.as_deref().map(str::trim)) {
            (None, _) | (Some(_), None | Some("")) => Value::Null,
            (Some(what), Some(text)) => {
                serde_json::from_str(text).map_err(|e| format!("the {what} is not JSON: {e}"))?
            }
        };
        if let Some(plain) = self.press.plain(step.clone()) {
            return Ok(plain);
        }
        Ok(match self.takes() {
            Some("input") => {
                let before = shown.input(&step);
                Operation::Retry { step, input: Some(shown.console.redact.restored(value, &before)) }
            }
            _ => Operation::ResolveDone { step, output: value },
        })
    }

    /// The body of the same call by the API.
    fn body(&self) -> Value {
        let reason = if self.reason.is_empty() { self.press.asks } else { &self.reason };
        let mut body = body_of(self.press, self.step.as_deref(), reason);
        if let Some(what) = self.takes() {
            body[what] = Value::Object(Map::new());
        }
        body
    }
}

/// The body of an action's call by the API.
pub(super) fn body_of(press: &Press, step: Option<&str>, reason: &str) -> Value {
    let mut body = Map::new();
    let (action, resolved) = match press.name.split_once('_') {
        Some(("resolve", as_what)) => ("resolve", Some(as_what)),
        // Without a step it is a retry of the whole saga.
        Some(("retry", _) | ("take", _)) => ("retry", None),
        _ => (press.name, None),
    };
    body.insert("action".to_owned(), action.into());
    body.extend(step.map(|s| ("step".to_owned(), s.into())));
    body.extend(resolved.map(|r| ("as".to_owned(), r.into())));
    body.insert("reason".to_owned(), reason.into());
    Value::Object(body)
}

/// The saga that an action is for.
struct Shown<'a> {
    console: &'a Console,
    loaded: &'a Loaded,
    /// None when the node cannot read it.
    known: Option<(&'a Definition, &'a SagaState)>,
}

impl Shown<'_> {
    fn input(&self, step: &str) -> Value {
        self.known.map_or(Value::Null, |(definition, state)| attention::input(definition, state, step))
    }

    fn has_turned_back(&self) -> bool {
        self.known.is_some_and(|(_, state)| state.stop.is_some())
    }

    /// What cannot be read takes what needs no reading.
    fn takes(&self, press: &Press) -> bool {
        self.known.is_some() || view::legal_on_saga(&self.loaded.summary, None).contains(&press.name)
    }
}

/// `GET sagas/{uid}/act`: what the action does, and its form.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    if !visit.operates() {
        return Err(Problem::new(Code::Forbidden, "acting needs scope operate; your token may look"));
    }
    let mut asked = Asked::read(Query::parse(raw.as_deref())?)?;
    // A link must not fill in what a person has to say.
    (asked.reason, asked.typed) = (String::new(), String::new());
    asked.key = format!("{:016x}", console.app.rt.rng().next_u64());
    answer(&console, &visit, &uid, &asked, None).await
}

async fn answer(
    console: &Console,
    visit: &Visit,
    uid: &str,
    asked: &Asked,
    wrong: Option<&str>,
) -> Result<Response, Problem> {
    let loaded = sagas::look(&console.app, uid).await?;
    if loaded.summary.next_seq != asked.seen {
        return Ok(late(console, visit, &loaded, asked).await);
    }
    let definition = console.app.engine.definition(&loaded.summary.definition, Some(loaded.summary.version));
    let state = view::state(definition.as_deref(), &loaded);
    let shown = Shown { console, loaded: &loaded, known: definition.as_deref().zip(state.as_ref()) };
    if !shown.takes(asked.press) {
        let why = "the node cannot read this saga: it can be read anew or closed, and nothing else";
        return Err(Problem::new(Code::IllegalAction, why));
    }
    let status = if wrong.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    let page = Page { root: "../../", status, ..Page::new(console, visit, Place::Sagas, asked.press.title) };
    Ok(page.render(form(visit, &shown, asked, wrong)?, html! {}).await)
}

fn form(visit: &Visit, shown: &Shown<'_>, asked: &Asked, wrong: Option<&str>) -> Result<Markup, Problem> {
    let s = &shown.loaded.summary;
    let press = asked.press;
    let back = format!("../{}", words::encode(s.uid.as_str()));
    let with_token = shown.console.access.needed()?;
    let curl = parts::curl_act(visit, with_token, s.uid.as_str(), asked.seen, &asked.body());
    Ok(html! {
        div.narrow {
            h1 { (press.title) }
            p.sub { @if let Some(step) = &asked.step { "step " code { (step) } " of " } "saga " a href=(back) { (s.id) } " (" (s.definition) ")" }
            p { (press.about) }
            @if press.name == "resolve_done" && shown.has_turned_back() {
                p.notice.warn { "This saga has turned back: what you say happened is undone next, and nothing goes forward." }
            }
            @if press.destructive { p.notice.bad { strong { (press::counts(press, shown.known)) } " This cannot be taken back." } }
            @if let Some(wrong) = wrong { p.notice.bad role="alert" #wrong { (wrong) } }
            form.stack method="post" action="act" data-once {
                (parts::form_token(visit))
                input type="hidden" name="do" value=(press.name);
                input type="hidden" name="seen" value=(asked.seen);
                input type="hidden" name="key" value=(asked.key);
                @if let Some(step) = &asked.step { input type="hidden" name="step" value=(step); }
                (value_field(shown, asked))
                label for="reason" { "Reason" }
                textarea #reason name="reason" rows="3" required maxlength="4000" aria-describedby="asks" { (asked.reason) }
                p.dim #asks { (press.asks) " It stands in the audit." }
                @if press.destructive {
                    label for="name" { "Type the id of the saga: " code { (s.id) } }
                    input #name name="name" required autocomplete="off" spellcheck="false" value=(asked.typed);
                }
                div.go {
                    button type="submit" class=(if press.destructive { "danger" } else { "primary" }) { (press.title) }
                    a.button href=(back) { "Back" }
                }
            }
            p.dim { "It is done only if the saga is still as you saw it (version " (asked.seen) "). If somebody is faster, nothing happens and you are told." }
            (parts::command("c-act", "The same by the API", &curl))
        }
    })
}

fn value_field(shown: &Shown<'_>, asked: &Asked) -> Markup {
    let Some(what) = asked.takes() else { return html! {} };
    let step = asked.step.as_deref().unwrap_or_default();
    let text = asked.json.clone().unwrap_or_else(|| match what {
        "input" => {
            let value = shown.console.redact.shown(&shown.input(step));
            serde_json::to_string_pretty(&value).unwrap_or_default()
        }
        _ => String::new(),
    });
    html! {
        label for="json" { @if what == "input" { "Input" } @else { "Output" } " (JSON)" }
        textarea.code #json name="json" rows="8" spellcheck="false" { (text) }
        @if what == "input" { p.dim { "Values shown as " code { (crate::redact::HIDDEN) } " stay as they are unless you replace them." } }
        @else { p.dim { "What later steps may read. Empty is null." } }
    }
}

/// The page of whoever was slower: what happened meanwhile, and that nothing of theirs did.
async fn late(console: &Console, visit: &Visit, loaded: &Loaded, asked: &Asked) -> Response {
    let s = &loaded.summary;
    let now = console.app.rt.clock().wall();
    let since = loaded.records.iter().filter(|r| r.seq >= asked.seen);
    let people: Vec<(String, &'static str, _)> = since
        .filter_map(|r| match decode(r) {
            Ok(Fact::Action(a)) => Some((a.who, a.operation.name(), r.at)),
            Ok(Fact::Closed(c)) => Some((c.who, Operation::Abandon.name(), r.at)),
            _ => None,
        })
        .collect();
    let body = html! {
        div.narrow {
            h1 { "The saga moved on before you" }
            p.notice.warn role="alert" {
                strong { "Nothing of yours was done. " }
                "You saw version " (asked.seen) " of " (s.id) "; it is at version " (s.next_seq) " now and " (words::of_row(&s.row).2) "."
            }
            @for (who, what, at) in &people { p { strong { (who) } " was faster: " code { (what) } ", " (words::ago(now, *at)) "." } }
            @if people.is_empty() { p { "No person did that: the node went on by itself." } }
            p { a.button.primary href={ "../" (words::encode(s.uid.as_str())) } { "Look at it again" } }
        }
    };
    let page = Page {
        root: "../../",
        status: StatusCode::CONFLICT,
        ..Page::new(console, visit, Place::Sagas, "The saga moved on")
    };
    page.render(body, html! {}).await
}

/// `POST sagas/{uid}/act`.
pub(super) async fn submit(
    State(console): State<Arc<Console>>,
    Path(uid): Path<String>,
    visit: Visit,
    body: Bytes,
) -> Result<Response, Problem> {
    if !visit.operates() {
        return Err(Problem::new(Code::Forbidden, "acting needs scope operate; your token may look"));
    }
    let asked = Asked::read(login::fields(&visit.form, &body)?)?;
    let loaded = sagas::look(&console.app, &uid).await?;
    let done = format!("../{}?did={}", words::encode(&uid), asked.press.name);
    let scope = format!("console/{}/{uid}/{}", visit.caller.name, asked.key);
    let message = message_of(&scope);
    // The same form sent twice is one action.
    let sent = |r| match decode(r) {
        Ok(Fact::Action(a)) => a.message == message,
        Ok(Fact::Closed(c)) => c.message == message,
        _ => false,
    };
    if !asked.key.is_empty() && loaded.records.iter().any(sent) {
        return Ok(see_other(&done));
    }
    if loaded.summary.next_seq != asked.seen {
        return Ok(late(&console, &visit, &loaded, &asked).await);
    }
    let operation = match checked(&console, &loaded, &asked) {
        Ok(operation) => operation,
        Err(Some(wrong)) => return answer(&console, &visit, &uid, &asked, Some(&wrong)).await,
        Err(None) => return answer(&console, &visit, &uid, &asked, None).await,
    };
    let scope = (!asked.key.is_empty()).then_some(scope);
    let (who, reason) = (visit.caller.name.clone(), asked.reason.clone());
    match operate(&console.app, who, &uid, (scope, asked.seen), reason, operation).await {
        Ok(_) => Ok(see_other(&done)),
        Err(problem) if problem.code() == Code::PreconditionFailed => {
            let loaded = sagas::look(&console.app, &uid).await?;
            Ok(late(&console, &visit, &loaded, &asked).await)
        }
        Err(problem) => Err(problem),
    }
}

/// The operation when every field is right; else what is wrong, if it can be said here.
fn checked(console: &Console, loaded: &Loaded, asked: &Asked) -> Result<Operation, Option<String>> {
    let s = &loaded.summary;
    let definition = console.app.engine.definition(&s.definition, Some(s.version));
    let state = view::state(definition.as_deref(), loaded);
    let shown = Shown { console, loaded, known: definition.as_deref().zip(state.as_ref()) };
    if !shown.takes(asked.press) {
        return Err(None);
    }
    if asked.reason.trim().is_empty() {
        return Err(Some("Give a reason: it stands in the audit.".to_owned()));
    }
    if asked.reason.len() > MAX_REASON {
        return Err(Some(format!("A reason has at most {MAX_REASON} bytes.")));
    }
    if asked.press.destructive && asked.typed.trim() != s.id.trim() {
        return Err(Some(format!("Type the id of the saga, {}, to show that you mean it.", s.id)));
    }
    asked.operation(&shown).map_err(Some)
}
