//! Documents: what several people see, what is refused, and that it is a type like the others.

use std::sync::mpsc::channel;

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::document::{Draft, Edit, Editor, Edits, Json, MAX_EDIT};
use mainstay_consistency::laws::network::{Network, Weather, converges};
use mainstay_consistency::wire::{MAX_DEPTH, decode, encode};
use mainstay_consistency::{Actor, ActorId, ErrorKind, Join as _, Result};

use crate::actor;
use crate::forged::watched;
use crate::laws::number;

/// One random change.
fn scribble(draft: &mut Draft<'_>, seen: &Editor, rng: &SeededRng) -> Result<()> {
    let n = rng.below(1_000) as i64;
    // What the draft itself added is not counted: places of what was there are always good.
    let (text, list) = (seen.text("t"), seen.list("l"));
    let place = |len: usize| rng.below(len as u64 + 1) as usize;
    match rng.below(6) {
        0 | 1 => {
            let at = (0..=place(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            draft.insert_text("t", at, ["a", "\u{e9}", "\u{1f600}", "word "][rng.below(4) as usize])
        }
        2 => match text.char_indices().nth(place(text.chars().count())) {
            Some((at, c)) => draft.remove_text("t", at..at + c.len_utf8()),
            None => Ok(()),
        },
        3 => draft.insert("l", place(list.len()), &Json::Int(n)),
        4 if !list.is_empty() => {
            let at = place(list.len() - 1);
            draft.remove("l", at..at + 1)
        }
        _ => draft.set("m", ["x", "y"][rng.below(2) as usize], &Json::Int(n)),
    }
}

fn shown(editor: &Editor) -> String {
    format!("{:?} {:?} {:?}", editor.text("t"), editor.list("l"), editor.map("m"))
}

/// Edits of three people, some of them joined by now.
fn edited(seed: u64) -> (Edits, Vec<Edits>) {
    let rng = SeededRng::new(seed);
    let mut people: Vec<(Edits, Actor, Editor)> =
        (1..=3).map(|n| (Edits::new(), actor(n), Editor::new())).collect();
    let mut deltas = Vec::new();
    for step in 0..60 {
        let (at, from) = (rng.below(3) as usize, rng.below(3) as usize);
        if rng.below(3) == 0 {
            let other = people[from].0.clone();
            let _ = people[at].0.join(&other).unwrap();
            continue;
        }
        let (edits, actor, editor) = &mut people[at];
        let _ = editor.follow(edits).unwrap();
        let before = {
            let mut e = Editor::new();
            let _ = e.follow(edits).unwrap();
            e
        };
        let delta = if step % 20 == 19 {
            editor.compact(edits, actor)
        } else {
            editor.edit(edits, actor, |draft| scribble(draft, &before, &rng))
        };
        deltas.push(delta.unwrap());
    }
    let mut all = Edits::new();
    for (edits, ..) in &people {
        let _ = all.join(edits).unwrap();
    }
    for (edits, _, editor) in &mut people {
        let _ = edits.join(&all).unwrap();
        let _ = editor.follow(edits).unwrap();
    }
    let views: Vec<String> = people.iter().map(|p| shown(&p.2)).collect();
    assert!(views.windows(2).all(|w| w[0] == w[1]), "seed {seed}: {views:#?}");
    (all, deltas)
}

#[test]
fn everybody_sees_the_same_whatever_the_order() {
    for seed in 0..40 {
        let (all, mut deltas) = edited(seed);
        let mut fresh = Editor::new();
        let _ = fresh.follow(&all).unwrap();
        // One by one, shuffled, some twice; the library holds back what comes too early.
        let rng = SeededRng::new(seed);
        for i in (1..deltas.len()).rev() {
            deltas.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let (mut edits, mut late) = (Edits::new(), Editor::new());
        for delta in deltas.iter().chain(&deltas[..5]) {
            let _ = edits.join(delta).unwrap();
            let _ = late.follow(&edits).unwrap();
        }
        assert_eq!(edits, all, "seed {seed}");
        assert_eq!(shown(&late), shown(&fresh), "seed {seed}");
        assert_eq!(decode::<Edits>(&encode(&all)).unwrap(), all, "seed {seed}");
    }
}

#[test]
fn l11_documents_converge_in_the_storm() {
    converges::<Edits>(0..4, Weather::STORM).unwrap_or_else(|violation| panic!("{violation}"));
    let mut net = Network::<Edits>::new(3, 5, |c| c).unwrap();
    let mut people: Vec<(Actor, Editor)> = (1..=3).map(|n| (actor(n), Editor::new())).collect();
    net.weather = Weather::STORM;
    for round in 0..30 {
        let at = round % 3;
        let (actor, editor) = &mut people[at];
        let line = format!("{round} ");
        net.node_mut(at).change(|edits| editor.edit(edits, actor, |d| d.insert_text("t", 0, &line))).unwrap();
        net.run(1);
    }
    net.converge(300).unwrap();
    let mut views = Vec::new();
    for (at, (_, editor)) in people.iter_mut().enumerate() {
        let _ = editor.follow(net.node(at).state()).unwrap();
        views.push(editor.text("t"));
    }
    assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
    assert_eq!(views[0].split_whitespace().count(), 30, "nothing is lost");
}

#[test]
fn lists_and_maps_hold_values_that_change_as_a_whole() {
    let (mut at, mut edits, mut editor) = (actor(1), Edits::new(), Editor::new());
    let line = Json::Map(
        [("sku".to_owned(), "a".into()), ("parts".to_owned(), Json::List(vec![Json::Null]))].into(),
    );
    let made = editor.edit(&mut edits, &mut at, |draft| {
        draft.insert("lines", 0, &line)?;
        draft.insert("lines", 1, &Json::Float(0.5))?;
        draft.insert("lines", 1, &true.into())?;
        draft.remove("lines", 2..3)?;
        draft.set("head", "to", &"ada".into())?;
        draft.set("head", "from", &"bob".into())?;
        draft.unset("head", "from")
    });
    assert_eq!(made.unwrap().context().count(), 1, "one call, one edit");
    assert_eq!(editor.list("lines"), [line, Json::Bool(true)]);
    assert_eq!(editor.map("head"), [("to".to_owned(), Json::from("ada"))].into());
    // The name of a list is free for a text.
    assert_eq!(editor.text("lines"), "");
    assert!(editor.edit(&mut edits, &mut at, |_| Ok(())).unwrap().context().is_empty(), "nothing is no edit");
}

#[test]
fn a_refused_change_changes_nothing() {
    let (mut at, mut edits, mut editor) = (actor(1), Edits::new(), Editor::new());
    let _ = editor.edit(&mut edits, &mut at, |d| d.insert_text("t", 0, "\u{e9}t\u{e9}")).unwrap();
    let before = (edits.clone(), shown(&editor));
    let mut deep = Json::Null;
    for _ in 0..=MAX_DEPTH {
        deep = Json::List(vec![deep]);
    }
    let long = "x".repeat(300);
    let large = "x".repeat(MAX_EDIT);
    type Change<'a> = &'a dyn Fn(&mut Draft<'_>) -> Result<()>;
    type Refused = fn(ErrorKind) -> bool;
    let changes: [(Change<'_>, Refused); 11] = [
        (&|d| d.insert_text("t", 1, "x"), |k| k == ErrorKind::OutOfBounds { at: 1, len: 5 }),
        (&|d| d.insert_text("t", 6, "x"), |k| k == ErrorKind::OutOfBounds { at: 6, len: 5 }),
        (&|d| d.remove_text("t", 3..4), |k| k == ErrorKind::OutOfBounds { at: 4, len: 5 }),
        (&|d| d.insert("l", 1, &Json::Null), |k| k == ErrorKind::OutOfBounds { at: 1, len: 0 }),
        (&|d| d.remove("l", 0..1), |k| k == ErrorKind::OutOfBounds { at: 1, len: 0 }),
        (&|d| d.insert_text("", 0, "x"), |k| matches!(k, ErrorKind::OutOfBounds { .. })),
        (&|d| d.set("m", &long, &Json::Null), |k| matches!(k, ErrorKind::OutOfBounds { at: 300, .. })),
        (&|d| d.set("m", "k", &deep), |k| k == ErrorKind::TooDeep),
        (&|d| d.set("m", "k", &Json::Float(f64::NAN)), |k| k == ErrorKind::Overflow),
        (&|d| d.insert_text("t", 0, &large), |k| k == ErrorKind::TooLarge),
        (&|d| d.insert_text("t", 0, "kept?").and_then(|()| d.remove("l", 4..5)), |k| {
            matches!(k, ErrorKind::OutOfBounds { .. })
        }),
    ];
    for (index, (change, expected)) in changes.into_iter().enumerate() {
        let kind = editor.edit(&mut edits, &mut at, |d| change(d)).unwrap_err().kind();
        assert!(expected(kind), "{index}: {kind:?}");
        let _ = editor.follow(&edits).unwrap();
        assert_eq!((edits.clone(), shown(&editor)), before, "{index}");
    }
    let _ = editor.edit(&mut edits, &mut at, |d| d.insert_text("t", 5, "!")).unwrap();
    assert_eq!(editor.text("t"), "\u{e9}t\u{e9}!");
}

#[test]
fn an_editor_serves_one_document_and_any_actor() {
    let (mut at, mut edits, mut editor) = (actor(1), Edits::new(), Editor::new());
    let _ = editor.edit(&mut edits, &mut at, |d| d.insert_text("t", 0, "a")).unwrap();
    assert_eq!(editor.follow(&Edits::new()).unwrap_err().kind(), ErrorKind::ForeignContext);
    let twice = editor.edit(&mut Edits::new(), &mut at, |d| d.insert_text("t", 0, "a"));
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::ForeignActor);
    // The same node in a later epoch is another author: its work is beside the former.
    let mut later = Actor::new(ActorId::new(1, 2, 0));
    let _ = editor.edit(&mut edits, &mut later, |d| d.insert_text("t", 1, "b")).unwrap();
    let mut fresh = Editor::new();
    let _ = fresh.follow(&edits).unwrap();
    assert_eq!(fresh.text("t"), "ab");
}

#[test]
fn joined_edits_are_fewer_and_show_the_same() {
    let (mut at, mut edits, mut editor) = (actor(1), Edits::new(), Editor::new());
    for n in 0..400 {
        let _ = editor.edit(&mut edits, &mut at, |d| d.insert_text("t", n, "x")).unwrap();
    }
    let (before, size) = (shown(&editor), encode(&edits).len());
    let mut replica = edits.clone();
    let delta = editor.compact(&mut edits, &mut at).unwrap();
    assert_eq!(edits.store().values().count(), 1);
    assert!(encode(&edits).len() * 4 < size, "{} of {size}", encode(&edits).len());
    let _ = replica.join(&delta).unwrap();
    assert_eq!(replica, edits);
    let mut fresh = Editor::new();
    let _ = fresh.follow(&edits).unwrap();
    assert_eq!((shown(&fresh), shown(&editor)), (before.clone(), before));
    let _ = editor.edit(&mut edits, &mut at, |d| d.insert_text("t", 400, "!")).unwrap();
    let _ = fresh.follow(&edits).unwrap();
    assert!(fresh.text("t").ends_with("x!"));
}

#[test]
fn a_large_document_is_joined_in_pieces_and_its_removed_text_is_dropped_when_it_fits() {
    let (mut at, mut edits, mut editor) = (actor(1), Edits::new(), Editor::new());
    let line = "0123456789".repeat(200);
    for n in 0..60 {
        let _ = editor.edit(&mut edits, &mut at, |d| d.insert_text("t", n * line.len(), &line)).unwrap();
    }
    let shown_before = shown(&editor);
    let _ = editor.compact(&mut edits, &mut at).unwrap();
    let pieces: Vec<usize> = edits.store().values().map(|e| e.as_bytes().len()).collect();
    assert!(
        pieces.len() > 1 && pieces.len() < 6 && pieces.iter().all(|size| *size <= MAX_EDIT),
        "{pieces:?}"
    );
    let mut fresh = Editor::new();
    let _ = fresh.follow(&edits).unwrap();
    assert_eq!(shown(&fresh), shown_before);
    // All but ten letters go; a writer who has not heard of that types in the middle of them.
    let mut other = edits.clone();
    let (mut late, mut theirs) = (actor(2), Editor::new());
    let typed = theirs.edit(&mut other, &mut late, |d| d.insert_text("t", 5_000, "HERE")).unwrap();
    let _ = editor.edit(&mut edits, &mut at, |d| d.remove_text("t", 10..60 * line.len())).unwrap();
    let _ = editor.compact(&mut edits, &mut at).unwrap();
    assert_eq!(edits.store().values().count(), 1);
    assert!(encode(&edits).len() < 1_000, "{} bytes", encode(&edits).len());
    let _ = edits.join(&typed).unwrap();
    let _ = other.join(&edits).unwrap();
    for view in [&mut editor, &mut fresh, &mut theirs] {
        let _ = view.follow(&other).unwrap();
        assert_eq!(view.text("t"), "0123456789HERE");
    }
}

/// What was read as an edit is shown to the library, together with good ones.
fn survives(bytes: &[u8], good: &Edits) -> bool {
    let Ok(edit) = Edit::read_from(bytes) else { return false };
    let mut other: Edits = good.clone();
    let register = mainstay_consistency::crdt::MvRegister::<Edit>::new();
    let mut forged = register;
    let delta = forged.write(&mut actor(66), edit).unwrap();
    let _ = other.join(&delta).unwrap();
    let mut editor = Editor::new();
    let _ = editor.follow(&other);
    let _ = shown(&editor);
    let _ = editor.edit(&mut other, &mut actor(67), |d| d.insert_text("t", 0, "x"));
    true
}

#[test]
fn c22_no_bytes_hurt_a_document() {
    // Counts without anything behind them, nested values, numbers without an end, clocks beyond the end.
    let cases: [&[u8]; 8] = [
        &[],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 0],
        &[1, 1, 1, 0, 8, 1, 2, b'l', b'x', 0xff, 0xff, 0xff, 0x7f],
        &[1, 1, 1, 0, 8, 1, 2, b'l', b'x', 1, 117, 1, 117, 1, 117, 0, 0],
        &[1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 4, 1, 2, b't', b'x', 1, b'a', 0],
        &[0, 1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
    ];
    for bytes in cases {
        let info = allocation_counter::measure(|| assert!(Edit::read_from(bytes).is_err(), "{bytes:?}"));
        assert!(info.bytes_max < 1_024, "{} bytes for {bytes:?}", info.bytes_max);
    }
    let (send, reads) = channel();
    let seed = number("MAINSTAY_DOCUMENT_SEED", 0);
    let seeds = number("MAINSTAY_MUTATED_SEEDS", 4);
    watched(seed..seed + seeds, move |seed| {
        let mut read = 0_u32;
        let (good, _) = edited(seed);
        let rng = SeededRng::new(seed);
        for edit in good.store().values() {
            let whole = edit.as_bytes();
            (0..whole.len()).for_each(|end| read += u32::from(survives(&whole[..end], &good)));
            for _ in 0..120 {
                let mut bytes = whole.to_vec();
                for _ in 0..=rng.below(3) {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = match rng.below(3) {
                        0 => rng.below(256) as u8,
                        1 => bytes[at] ^ (1 << rng.below(8)),
                        _ => [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
                    };
                }
                read += u32::from(survives(&bytes, &good));
            }
        }
        send.send(read).unwrap();
    });
    let read: u32 = reads.iter().sum();
    println!("{read} forged edits were read and shown");
    assert!(read > 25 * seeds as u32, "only {read} forged edits got as far as the library");
}

#[test]
fn documents_are_kept_and_handed_around() {
    fn one<T: Send + Sync + std::fmt::Debug>() {}
    one::<Editor>();
    one::<Edits>();
    one::<Edit>();
    one::<Json>();
}
