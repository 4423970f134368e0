//! The graph of a saga as SVG, drawn here: forward to the right (or down), undo back against the arrows.

use mainstay_saga::definition::{Definition, StepKind};
use mainstay_saga::fold::{Node, State};
use maud::{Markup, html};

use crate::api::view;
use crate::console::words;

/// Most steps that are drawn; beyond it a picture tells less than the list below it.
const MAX_STEPS: usize = 60;
/// Width of a letter of a name and of the words below it, in tenths of a pixel; a bit more than they need.
const LETTERS: (i64, i64) = (86, 62);
/// Width of the narrow picture.
const NARROW: i64 = 366;

/// Which way forward is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Down,
    Right,
}

/// Sizes of one orientation, in pixels.
struct Sizes {
    way: Way,
    id: &'static str,
    width: i64,
    height: i64,
    /// Between layers.
    ahead: i64,
    /// Between boxes of a layer.
    beside: i64,
    /// Around the picture, and before the first layer.
    margin: i64,
}

const RIGHT: Sizes =
    Sizes { way: Way::Right, id: "r", width: 168, height: 56, ahead: 56, beside: 34, margin: 26 };

/// Downwards, as narrow as the widest layer allows; what does not fit is scrolled.
fn down(widest: usize) -> Sizes {
    let n = whole(widest.max(1));
    let (beside, margin) = if n < 3 { (20, 24) } else { (10, 16) };
    let width = ((NARROW - 2 * margin - (n - 1) * beside) / n).clamp(100, 200);
    Sizes { way: Way::Down, id: "d", width, height: 56, ahead: 40, beside, margin }
}

/// A box with its place.
struct Place {
    x: i64,
    y: i64,
}

/// The picture, once for wide and once for narrow screens. The steps below it say the same in words.
pub(super) fn draw(definition: &Definition, state: &State) -> Markup {
    let steps = definition.steps().len();
    html! {
        @if steps > MAX_STEPS {
            p.dim { (words::plural(steps as u64, "step")) ": too many for a picture; they are listed below." }
        } @else {
            div.graph.wide tabindex="0" role="region" aria-label="Picture of the steps" { (picture(&RIGHT, definition, state)) }
            div.graph.slim tabindex="0" role="region" aria-label="Picture of the steps" { (picture(&down(widest(&layers(definition))), definition, state)) }
        }
    }
}

/// The layer of each step: one behind the last of those it waits for.
fn layers(definition: &Definition) -> Vec<usize> {
    let steps = definition.steps();
    let mut layer = vec![0; steps.len()];
    // Checked definitions have no cycles, so this settles within as many rounds as there are layers.
    for _ in 0..steps.len() {
        for (i, step) in steps.iter().enumerate() {
            layer[i] = step.after.iter().map(|j| layer[*j] + 1).max().unwrap_or(0);
        }
    }
    layer
}

/// The most boxes beside each other.
fn widest(layer: &[usize]) -> usize {
    layer.iter().map(|l| layer.iter().filter(|x| *x == l).count()).max().unwrap_or(1)
}

fn places(sizes: &Sizes, layer: &[usize]) -> (Vec<Place>, i64, i64) {
    let deepest = layer.iter().copied().max().unwrap_or(0);
    let (along, across) = match sizes.way {
        Way::Down => (sizes.height + sizes.ahead, sizes.width + sizes.beside),
        Way::Right => (sizes.width + sizes.ahead, sizes.height + sizes.beside),
    };
    let full = whole(widest(layer)) * across - sizes.beside;
    let mut used = vec![0; deepest + 1];
    let places = layer.iter().map(|l| {
        let count = layer.iter().filter(|x| *x == l).count();
        let start = (full - (whole(count) * across - sizes.beside)) / 2;
        let (a, b) = (whole(*l) * along, start + whole(used[*l]) * across);
        used[*l] += 1;
        let lead = sizes.margin + 14;
        match sizes.way {
            Way::Down => Place { x: sizes.margin + b, y: lead + a },
            Way::Right => Place { x: lead + a, y: sizes.margin / 2 + b },
        }
    });
    let places: Vec<Place> = places.collect();
    let length = whole(deepest + 1) * along - sizes.ahead + 14;
    match sizes.way {
        Way::Down => (places, full + 2 * sizes.margin, length + 2 * sizes.margin),
        Way::Right => (places, length + 2 * sizes.margin, full + 2 * sizes.margin),
    }
}

fn whole(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(0)
}

fn picture(sizes: &Sizes, definition: &Definition, state: &State) -> Markup {
    let layer = layers(definition);
    let (places, width, height) = places(sizes, &layer);
    let start = match sizes.way {
        Way::Down => (width / 2, 10),
        Way::Right => (10, places.first().map_or(0, |p| p.y) + sizes.height / 2),
    };
    let text =
        format!("{} of {} steps are done", state.nodes.iter().filter(|n| n.done).count(), state.nodes.len());
    html! {
        svg width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(text) {
            defs {
                @for name in ["line", "run", "back", "bad"] {
                    marker id={ (sizes.id) "-" (name) } viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto" {
                        path class={ "tip " (name) } d="M0 0 8 4 0 8z" {}
                    }
                }
            }
            circle.start cx=(start.0) cy=(start.1) r="5" {}
            @for (i, step) in definition.steps().iter().enumerate() {
                @if step.after.is_empty() { (forward(sizes, start, &places[i], &state.nodes[i])) }
                @for j in &step.after { (forward(sizes, leave(sizes, &places[*j]), &places[i], &state.nodes[i])) }
                @if let Some(class) = undo(&state.nodes[i]) {
                    @if step.after.is_empty() { (back(sizes, class, &places[i], start)) }
                    @for j in &step.after { (back(sizes, class, &places[i], below(sizes, &places[*j]))) }
                }
            }
            @for (i, step) in definition.steps().iter().enumerate() {
                (boxed(sizes, &places[i], &step.name, step.kind, &state.nodes[i]))
            }
        }
    }
}

fn leave(sizes: &Sizes, p: &Place) -> (i64, i64) {
    match sizes.way {
        Way::Down => (p.x + sizes.width / 2, p.y + sizes.height),
        Way::Right => (p.x + sizes.width, p.y + sizes.height / 2),
    }
}

/// Where undo arrows touch a box: the side that forward arrows leave free.
fn below(sizes: &Sizes, p: &Place) -> (i64, i64) {
    match sizes.way {
        Way::Down => (p.x + sizes.width, p.y + sizes.height / 2),
        Way::Right => (p.x + sizes.width / 2, p.y + sizes.height),
    }
}

fn forward(sizes: &Sizes, from: (i64, i64), to: &Place, node: &Node) -> Markup {
    let class = if node.started() { "run" } else { "line" };
    let (x, y) = from;
    let d = match sizes.way {
        Way::Down => {
            let (tx, ty) = (to.x + sizes.width / 2, to.y - 1);
            let m = (y + ty) / 2;
            format!("M{x} {y}C{x} {m} {tx} {m} {tx} {ty}")
        }
        Way::Right => {
            let (tx, ty) = (to.x - 1, to.y + sizes.height / 2);
            let m = (x + tx) / 2;
            format!("M{x} {y}C{m} {y} {m} {ty} {tx} {ty}")
        }
    };
    html! { path class={ "edge " (class) } d=(d) marker-end={ "url(#" (sizes.id) "-" (class) ")" } {} }
}

/// How the way back of a step is drawn; none while nothing of it is undone.
fn undo(node: &Node) -> Option<&'static str> {
    let tried = node.generations.iter().any(|g| g.undo_attempts > 0 || g.undone);
    if !tried && node.undoing.is_none() {
        return None;
    }
    Some(if node.item.is_some() { "bad" } else { "back" })
}

fn back(sizes: &Sizes, class: &str, from: &Place, to: (i64, i64)) -> Markup {
    let (x, y) = below(sizes, from);
    let (tx, ty) = to;
    let far = 22;
    let d = match sizes.way {
        Way::Down => format!("M{x} {y}C{} {y} {} {ty} {} {ty}", x + far, tx.max(x) + far, tx + 2),
        Way::Right => format!("M{x} {y}C{x} {} {tx} {} {tx} {}", y + far, ty.max(y) + far, ty + 2),
    };
    let tip = if class == "bad" { "bad" } else { "back" };
    html! { path class={ "edge undo " (class) } d=(d) marker-end={ "url(#" (sizes.id) "-" (tip) ")" } {} }
}

/// Left of the text in a box.
const PAD: i64 = 11;

/// As much of a text as fits a box.
fn fit(text: &str, width: i64, letter: i64) -> String {
    let most = usize::try_from((width - 2 * PAD) * 10 / letter).unwrap_or(0).max(4);
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['\u{2026}']).collect()
}

fn boxed(sizes: &Sizes, p: &Place, name: &str, kind: StepKind, node: &Node) -> Markup {
    let word = view::word(node);
    let sign = words::of_step(word);
    let plain = format!("{} {}", sign.1, sign.2);
    let with_role = format!("{plain} \u{b7} pivot");
    let what = match kind {
        StepKind::Pivot if fit(&with_role, sizes.width, LETTERS.1) == with_role => with_role,
        _ => fit(&plain, sizes.width, LETTERS.1),
    };
    html! {
        g class={ "box " (sign.0) } {
            title { (name) ": " (sign.2) }
            rect x=(p.x) y=(p.y) width=(sizes.width) height=(sizes.height) rx="8" {}
            text.name x=(p.x + PAD) y=(p.y + 24) { (fit(name, sizes.width, LETTERS.0)) }
            text.what x=(p.x + PAD) y=(p.y + 43) { (what) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(steps: &str) -> Definition {
        let text = format!("{{\"name\":\"d\",\"version\":1,\"deadline\":\"1h\",\"steps\":[{steps}]}}");
        Definition::from_json(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_step_stands_behind_all_it_waits_for_and_no_box_covers_another() {
        let steps = r#"{"name":"d","local_undo":true,"after":["b","c"]},{"name":"b","local_undo":true,"after":["a"]},
            {"name":"c","local_undo":true,"after":["a"]},{"name":"a","local_undo":true}"#;
        let definition = definition(steps);
        assert_eq!(layers(&definition), [2, 1, 1, 0]);
        for sizes in [&RIGHT, &down(2)] {
            let (places, width, height) = places(sizes, &layers(&definition));
            for (i, a) in places.iter().enumerate() {
                assert!(a.x >= 0 && a.y >= 0 && a.x + sizes.width <= width && a.y + sizes.height <= height);
                for b in &places[i + 1..] {
                    let apart = (a.x - b.x).abs() >= sizes.width || (a.y - b.y).abs() >= sizes.height;
                    assert!(apart);
                }
            }
        }
    }

    #[test]
    fn if_c02_a_graph_of_a_thousand_steps_is_not_drawn() {
        let steps: Vec<String> =
            (0..1_000).map(|i| format!("{{\"name\":\"s{i}\",\"local_undo\":true}}")).collect();
        let definition = definition(&steps.join(","));
        let text = draw(&definition, &State::new(&definition)).0;
        assert!(text.len() < 1_000 && text.contains("1\u{202f}000 steps"), "{text}");
    }
}
