//! Pieces that several pages show.

use maud::{Markup, html};
use serde_json::Value;

use crate::console::visit::Visit;
use crate::console::words;

/// The hidden field without which a form is refused.
pub(super) fn form_token(visit: &Visit) -> Markup {
    html! { input type="hidden" name="form" value=(visit.form.0); }
}

/// A payload behind a fold.
pub(super) fn payload(id: &str, title: &str, value: &Value) -> Markup {
    let text = words::json(value);
    html! {
        @if text.len() <= 48 && !text.contains('\n') {
            p.pair { span.dim { (title) } " " code { (text) } }
        } @else {
            details id=(id) { summary { (title) } pre tabindex="0" { (text) } }
        }
    }
}

/// A command with a button that copies it; without scripts a click selects it whole.
pub(super) fn command(id: &str, title: &str, text: &str) -> Markup {
    html! {
        details.api id={ "d-" (id) } {
            summary { (title) }
            div.copy {
                pre id=(id) tabindex="0" { (text) }
                button type="button" data-copy=(id) hidden { "Copy" }
            }
        }
    }
}

/// `curl` for a GET of the API.
pub(super) fn curl_get(visit: &Visit, with_token: bool, path: &str) -> String {
    let token = if with_token { " -H \"authorization: Bearer $MAINSTAY_TOKEN\"" } else { "" };
    format!("curl -sS{token} {}", words::shell(&format!("{}{path}", visit.origin)))
}

/// `curl` for an action on a saga.
pub(super) fn curl_act(visit: &Visit, with_token: bool, uid: &str, seen: u64, body: &Value) -> String {
    let token = if with_token { " \\\n  -H \"authorization: Bearer $MAINSTAY_TOKEN\"" } else { "" };
    let address = words::shell(&format!("{}/v1/sagas/{}/actions", visit.origin, words::encode(uid)));
    let etag = words::shell(&format!("if-match: \"{seen}\""));
    let body = words::shell(&body.to_string());
    format!(
        "curl -sS -X POST {address}{token} \\\n  -H {etag} -H 'content-type: application/json' \\\n  -d {body}"
    )
}

/// A row of columns, as many as `whole`: the newest is on the right. Its text says the same in words.
pub(super) fn columns(values: &[u64], whole: usize, class: &str, text: &str) -> Markup {
    /// Units of the picture; CSS scales it.
    const STEP: usize = 4;
    const HEIGHT: u64 = 32;
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let (width, empty) = (whole * STEP, whole.saturating_sub(values.len()));
    html! {
        svg class={ "columns " (class) } viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(text) {
            @for (i, v) in values.iter().enumerate() {
                @let tall = if *v == 0 { 0 } else { (v * HEIGHT / most).max(2) };
                @if tall > 0 {
                    rect x=((empty + i) * STEP) y=(HEIGHT - tall) width=(STEP - 1) height=(tall) {}
                }
            }
        }
    }
}
