//! One action on several sagas of *Attention*: chosen there, confirmed here, with what came of each.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use futures_util::future::join_all;
use http::StatusCode;
use mainstay_saga::wire::Operation;
use mainstay_store::journal::{Loaded, Summary, Uid};
use maud::{Markup, html};

use crate::api::actions::operate;
use crate::api::operation::MAX_REASON;
use crate::api::query::Query;
use crate::api::{sagas, view};
use crate::console::page::{Page, Place};
use crate::console::press::{self, Press};
use crate::console::visit::Visit;
use crate::console::{Console, act, attention, login, parts, words};
use crate::error::Code;
use crate::http::Problem;

/// Names of fields that choose a saga begin so; the uid follows, and the value is the version that was seen.
const PICK: &str = "pick.";
/// Most sagas of one form: as many as a page of *Attention* shows.
const MOST: usize = attention::SAGAS;

/// The box that chooses a saga. It belongs to the form of [`chooser`], wherever it stands.
pub(super) fn pick(row: &Summary) -> Markup {
    let uid = row.uid.as_str();
    html! {
        span.pick {
            input type="checkbox" form="bulk" id={ "p-" (uid) } name={ (PICK) (uid) } value=(row.next_seq);
            label for={ "p-" (uid) } class="sr" { "Choose " (row.id) }
        }
    }
}

/// The form below the list.
pub(super) fn chooser() -> Markup {
    html! {
        form.bulk #bulk method="get" action="attention/act" {
            button type="submit" { "Act on the chosen ones" }
            span.dim { "Choose several that need the same: one action, done to each, with what came of it." }
        }
    }
}

/// An action and the step that it is for.
type Choice = (&'static Press, Option<String>);

/// What the form carries.
struct Asked {
    /// Sagas with the versions that the operator saw.
    picks: Vec<(String, u64)>,
    chosen: Option<Choice>,
    reason: String,
    typed: String,
    key: String,
}

impl Asked {
    fn read(mut query: Query) -> Result<Self, Problem> {
        let bad = |why: &str| Problem::new(Code::BadQuery, why);
        let chosen =
            query.take("do").map(|text| choice(&text).ok_or_else(|| bad("`do` is none of the actions")));
        let chosen = chosen.transpose()?;
        let reason = query.take("reason").unwrap_or_default();
        let (typed, key) = (query.take("count").unwrap_or_default(), query.take("key").unwrap_or_default());
        let mut picks = Vec::new();
        for (name, value) in query.pairs() {
            let uid = name.strip_prefix(PICK).ok_or_else(|| bad("a parameter is not one of this page"))?;
            let seen = value.parse().map_err(|_| bad("a version that was seen is malformed"))?;
            picks.push((uid.to_owned(), seen));
        }
        if picks.len() > MOST {
            return Err(bad(
                "more sagas than a page shows: use `mainstay saga bulk` or POST /v1/sagas/actions",
            ));
        }
        Ok(Self { picks, chosen, reason, typed, key })
    }
}

/// Reads what [`value_of`] wrote. Nothing that takes more than a reason.
fn choice(text: &str) -> Option<Choice> {
    let (name, step) =
        text.split_once(' ').map_or((text, None), |(name, step)| (name, Some(step.to_owned())));
    let choice = (press::find(name)?, step);
    (choice.0.on_step == choice.1.is_some() && operation_of(&choice).is_some()).then_some(choice)
}

fn value_of((press, step): &Choice) -> String {
    step.as_ref().map_or_else(|| press.name.to_owned(), |step| format!("{} {step}", press.name))
}

fn operation_of((press, step): &Choice) -> Option<Operation> {
    press.plain(step.clone().unwrap_or_default())
}

/// What may be pressed on one saga, by name and step.
fn legal(console: &Console, loaded: &Loaded) -> BTreeSet<(&'static str, Option<String>)> {
    let row = &loaded.summary;
    let definition = console.app.engine.definition(&row.definition, Some(row.version));
    let state = view::state(definition.as_deref(), loaded);
    let known = definition.as_deref().zip(state.as_ref());
    let whole = view::legal_on_saga(row, known).into_iter().map(|name| (name, None));
    let steps = known.into_iter().flat_map(|(d, s)| {
        d.steps().iter().flat_map(move |step| {
            s.legal_on_step(d, &step.name).into_iter().map(move |name| (name, Some(step.name.clone())))
        })
    });
    whole.chain(steps).collect()
}

/// A chosen saga as it is now.
struct Chosen {
    loaded: Loaded,
    seen: u64,
}

async fn load(console: &Console, picks: &[(String, u64)]) -> Result<Vec<Chosen>, Problem> {
    let mut chosen = Vec::with_capacity(picks.len());
    for (uid, seen) in picks {
        // One that is gone needs nothing any more.
        if let Some(loaded) = sagas::find(&console.app, &Uid::new(uid.as_str())).await? {
            chosen.push(Chosen { loaded, seen: *seen });
        }
    }
    Ok(chosen)
}

/// What may be pressed on each of them, the harmless first.
fn common(console: &Console, chosen: &[Chosen]) -> Vec<Choice> {
    let mut all = chosen.iter().map(|c| legal(console, &c.loaded));
    let Some(first) = all.next() else { return Vec::new() };
    let shared = all.fold(first, |shared, next| shared.intersection(&next).cloned().collect());
    let choices = press::ALL.iter().flat_map(|p| {
        shared.iter().filter(move |(name, _)| *name == p.name).map(move |(_, step)| (p, step.clone()))
    });
    choices.filter(|choice| operation_of(choice).is_some()).collect()
}

/// `GET attention/act`: what may be done to all that were chosen.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    operates(&visit)?;
    let mut asked = Asked::read(Query::parse(raw.as_deref())?)?;
    // A link must not fill in what a person has to say.
    (asked.chosen, asked.reason, asked.typed) = (None, String::new(), String::new());
    asked.key = format!("{:016x}", console.app.rt.rng().next_u64());
    form(&console, &visit, &asked, None).await
}

fn operates(visit: &Visit) -> Result<(), Problem> {
    if visit.operates() {
        return Ok(());
    }
    Err(Problem::new(Code::Forbidden, "acting needs scope operate; your token may look"))
}

async fn form(
    console: &Console,
    visit: &Visit,
    asked: &Asked,
    wrong: Option<&str>,
) -> Result<Response, Problem> {
    let chosen = load(console, &asked.picks).await?;
    let choices = common(console, &chosen);
    let status = if wrong.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    let title = "Act on several sagas";
    let body = html! {
        div.narrow {
            h1 { (title) }
            @if chosen.is_empty() {
                p.notice.warn role="alert" { "No saga is chosen. Tick those that need the same, then come back." }
                p { a.button.primary href="../attention" { "Back to Attention" } }
            } @else {
                (list(&chosen))
                @if choices.is_empty() {
                    p.notice.warn role="alert" { "There is nothing that may be done to all of them: choose sagas that need the same." }
                    p { a.button.primary href="../attention" { "Back to Attention" } }
                } @else {
                    @if let Some(wrong) = wrong { p.notice.bad role="alert" #wrong { (wrong) } }
                    (fields(console, visit, asked, &chosen, &choices)?)
                }
            }
        }
    };
    let page = Page { root: "../", status, ..Page::new(console, visit, Place::Attention, title) };
    Ok(page.render(body, html! {}).await)
}

fn list(chosen: &[Chosen]) -> Markup {
    html! {
        ul.rows {
            @for one in chosen {
                @let row = &one.loaded.summary;
                li.row {
                    div.main {
                        p.lead { a href={ "../sagas/" (words::encode(row.uid.as_str())) } { (row.id) } " " span.dim { (row.definition) } }
                        @if row.next_seq != one.seen { p.why { "It moved on since you saw it, and will be left alone." } }
                    }
                    div.side { (words::of_row(&row.row).badge()) }
                }
            }
        }
    }
}

fn fields(
    console: &Console,
    visit: &Visit,
    asked: &Asked,
    chosen: &[Chosen],
    choices: &[Choice],
) -> Result<Markup, Problem> {
    let with_token = console.access.needed()?;
    let ticked = asked.chosen.as_ref().or(choices.first());
    let many = asked.picks.len();
    let gives_up = choices.iter().any(|(p, _)| p.destructive);
    let curl = ticked.map(|choice| curl(visit, with_token, chosen, choice)).unwrap_or_default();
    Ok(html! {
        form.stack method="post" action="act" data-once {
            (parts::form_token(visit))
            input type="hidden" name="key" value=(asked.key);
            @for (uid, seen) in &asked.picks { input type="hidden" name={ (PICK) (uid) } value=(seen); }
            fieldset.choices {
                legend { "Done to each" }
                ul { @for (i, choice) in choices.iter().enumerate() {
                    @let value = value_of(choice);
                    li {
                        input type="radio" name="do" id={ "do-" (i) } value=(value) required checked[ticked.map(value_of).as_ref() == Some(&value)];
                        label for={ "do-" (i) } title=(choice.0.about) {
                            (choice.0.title) @if let Some(step) = &choice.1 { " " span.dim { "(step " (step) ")" } }
                        }
                    }
                } }
            }
            label for="reason" { "Reason" }
            textarea #reason name="reason" rows="3" required maxlength="4000" aria-describedby="asks" { (asked.reason) }
            p.dim #asks { "It stands in the audit of each saga. Where you say what happened, name the ledger line, ticket or person." }
            @if gives_up {
                label for="count" { "To turn back, to close or to leave as it is, type how many: " code { (many) } }
                input #count name="count" autocomplete="off" inputmode="numeric" value=(asked.typed) aria-describedby="many";
                p.dim #many { "This cannot be taken back. Nothing needs to be typed for the others." }
            }
            div.go {
                button.primary type="submit" { "Do it to " (words::plural(many as u64, "saga")) }
                a.button href="../attention" { "Back" }
            }
        }
        p.dim { "Each is done only if that saga is still as you saw it. What becomes of one changes nothing for the others." }
        (parts::command("c-bulk", "The same by the API", &curl))
    })
}

fn curl(visit: &Visit, with_token: bool, chosen: &[Chosen], choice: &Choice) -> String {
    let body = act::body_of(choice.0, choice.1.as_deref(), choice.0.asks);
    let each = chosen
        .iter()
        .map(|c| parts::curl_act(visit, with_token, c.loaded.summary.uid.as_str(), c.seen, &body));
    each.collect::<Vec<_>>().join("\n")
}

/// What is wrong with the fields, else what is to be done.
fn checked(asked: &Asked) -> Result<(&Choice, Operation), String> {
    let chosen = asked.chosen.as_ref().and_then(|choice| Some((choice, operation_of(choice)?)));
    let Some((choice, operation)) = chosen else { return Err("Choose what is to be done.".to_owned()) };
    if asked.reason.trim().is_empty() {
        return Err("Give a reason: it stands in the audit.".to_owned());
    }
    if asked.reason.len() > MAX_REASON {
        return Err(format!("A reason has at most {MAX_REASON} bytes."));
    }
    let many = asked.picks.len();
    if choice.0.destructive && asked.typed.trim() != many.to_string() {
        return Err(format!("Type how many sagas this is for, {many}, to show that you mean it."));
    }
    Ok((choice, operation))
}

/// `POST attention/act`.
pub(super) async fn submit(
    State(console): State<Arc<Console>>,
    visit: Visit,
    body: Bytes,
) -> Result<Response, Problem> {
    operates(&visit)?;
    let asked = Asked::read(login::fields(&visit.form, &body)?)?;
    let (choice, operation) = match checked(&asked) {
        Ok(checked) if !asked.picks.is_empty() => checked,
        Ok(_) => return form(&console, &visit, &asked, None).await,
        Err(wrong) => return form(&console, &visit, &asked, Some(&wrong)).await,
    };
    // All at once: they share commits, and one that waits for its node holds up no other.
    let each = asked.picks.iter().map(|(uid, seen)| one(&console, &visit, &asked, &operation, uid, *seen));
    let came: Vec<Came> = join_all(each).await;
    let done = came.iter().filter(|c| c.problem.is_none()).count();
    let title = format!("Done to {done} of {}", words::plural(came.len() as u64, "saga"));
    let body = html! {
        h1 { (title) }
        p.sub { (choice.0.title) @if let Some(step) = &choice.1 { ", step " code { (step) } } ": " (asked.reason) }
        ul.rows {
            @for (came, (uid, _)) in came.iter().zip(&asked.picks) { (result(came, uid)) }
        }
        p.pages { a.button.primary href="../attention" { "Back to Attention" } }
    };
    let page = Page { root: "../", ..Page::new(&console, &visit, Place::Attention, &title) };
    Ok(page.render(body, html! {}).await)
}

/// What came of one.
struct Came {
    /// As it is now, if it is there.
    loaded: Option<Loaded>,
    /// Why nothing was done.
    problem: Option<Problem>,
}

/// Acts on one of them. The same form sent twice is one action.
async fn one(
    console: &Console,
    visit: &Visit,
    asked: &Asked,
    operation: &Operation,
    uid: &str,
    seen: u64,
) -> Came {
    let who = visit.caller.name.clone();
    let scope = (!asked.key.is_empty()).then(|| format!("console/{who}/{uid}/{}", asked.key));
    let reason = asked.reason.clone();
    match operate(&console.app, who, uid, (scope, seen), reason, operation.clone()).await {
        Ok(loaded) => Came { loaded: Some(loaded), problem: None },
        Err(problem) => Came { loaded: sagas::look(&console.app, uid).await.ok(), problem: Some(problem) },
    }
}

fn result(came: &Came, uid: &str) -> Markup {
    let (loaded, problem) = (came.loaded.as_ref(), came.problem.as_ref());
    html! {
        li.row {
            div.main {
                p.lead {
                    a href={ "../sagas/" (words::encode(uid)) } { (loaded.map_or(uid, |l| l.summary.id.as_str())) } " "
                    @match problem {
                        None => (words::Sign("good", "\u{2713}", "done").badge()),
                        Some(_) => (words::Sign("bad", "!", "not done").badge()),
                    }
                }
                @if let Some(problem) = problem { p.why { (problem.detail()) } }
            }
            @if let Some(loaded) = loaded { div.side { (words::of_row(&loaded.summary.row).badge()) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plain_action_can_be_chosen_and_is_read_back() {
        for press in &press::ALL {
            let chosen = (press, press.on_step.then(|| "a step with spaces".to_owned()));
            let written = value_of(&chosen);
            let read = operation_of(&chosen).map(|_| chosen);
            assert_eq!(choice(&written), read, "{written}");
        }
        for wrong in ["", "retry", "cancel a", "resolve_done a", "retry_with_input a", "nothing", " a"] {
            assert_eq!(choice(wrong), None, "{wrong}");
        }
    }
}
