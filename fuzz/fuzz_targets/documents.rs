//! Edits of documents: read or refused, in one encoding only; and what was read is shown, the same in every order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_consistency::crdt::MvRegister;
use mainstay_consistency::document::{Edit, Editor, Edits};
use mainstay_consistency::version::Dot;
use mainstay_consistency::wire::{decode, encode};
use mainstay_consistency::{Actor, ActorId, Join as _};

/// What somebody sees, and what is left out.
type State = (String, Vec<Dot>, Vec<Dot>);

fn state(deltas: &[Edits]) -> State {
    let (mut edits, mut editor) = (Edits::new(), Editor::new());
    for delta in deltas {
        let _ = edits.join(delta);
        let _ = editor.follow(&edits);
    }
    let shown = format!("{:?} {:?} {:?}", editor.text("x"), editor.list("x"), editor.map("x"));
    (shown, editor.refused().collect(), editor.waiting().collect())
}

/// The edits that follow each other in `data`: two bytes say how long each is, and whether it is of one call.
fn edits(mut data: &[u8]) -> Vec<Edits> {
    let mut found = Vec::new();
    while let [one, len, rest @ ..] = data {
        let (bytes, more) = rest.split_at(rest.len().min(usize::from(*len)));
        data = more;
        let Ok(mut edit) = Edit::read_from(bytes) else { continue };
        if one & 1 == 1 {
            // Behind the version and the list of actors.
            let mut wire = encode(&edit);
            wire[2] = 1;
            let Ok(whole) = decode(&wire) else { continue };
            edit = whole;
        }
        let node = u64::from(*one) << 8 | found.len() as u64;
        let mut actor = Actor::new(ActorId::new(node, 1, 0));
        found.extend(MvRegister::<Edit>::new().write(&mut actor, edit));
    }
    found
}

fuzz_target!(|data: &[u8]| {
    if let Ok(edits) = decode::<Edits>(data) {
        assert_eq!(encode(&edits), data, "two texts of one document");
    }
    let mut deltas = edits(data);
    let forward = state(&deltas);
    deltas.reverse();
    assert_eq!(state(&deltas), forward, "the order shows");
});
