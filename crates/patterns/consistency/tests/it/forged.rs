//! Documents among members who forge edits: whatever they make, every replica ends, refuses the same, and shows the same.

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::crdt::MvRegister;
use mainstay_consistency::document::{Edit, Editor, Edits};
use mainstay_consistency::version::Dot;
use mainstay_consistency::wire::{decode, encode};
use mainstay_consistency::{ErrorKind, Join as _};

use crate::actor;
use crate::laws::number;

/// Longest time for one seed, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `case` for each seed; one that neither ends nor fails is named.
pub(crate) fn watched(seeds: std::ops::Range<u64>, case: impl Fn(u64) + Send + 'static) {
    let (progress, seen) = channel();
    let last = seeds.end;
    let worker = std::thread::spawn(move || {
        for seed in seeds {
            progress.send(seed).unwrap();
            case(seed);
        }
    });
    let mut at = None;
    loop {
        match seen.recv_timeout(PATIENCE) {
            Ok(seed) => at = Some(seed),
            Err(RecvTimeoutError::Timeout) => panic!("seed {at:?} of {last} does not end"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if worker.join().is_err() {
        let seed = at.unwrap_or_default();
        panic!("MAINSTAY_DOCUMENT_SEED={seed} MAINSTAY_DOCUMENT_SEEDS=1 replays what failed");
    }
}

type Id = (u64, u32);

#[derive(Clone, Debug)]
enum Content {
    Removed(u32),
    Text(&'static str),
    Values(u32),
}

impl Content {
    fn len(&self) -> u32 {
        match self {
            Self::Removed(n) | Self::Values(n) => *n,
            Self::Text(text) => text.encode_utf16().count() as u32,
        }
    }
}

/// A block as Yjs writes it, whatever sense it makes.
#[derive(Clone, Debug)]
struct Block {
    left: Option<Id>,
    right: Option<Id>,
    /// `t..`, `l..` or `m..`, and the key.
    home: (&'static str, Option<&'static str>),
    content: Content,
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn text(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len() as u64);
    out.extend(text.as_bytes());
}

/// Blocks of one author from a clock on, and removals.
fn forge(at: Id, blocks: &[Block], removed: &[(Id, u32)]) -> Vec<u8> {
    let mut out = vec![u8::from(!blocks.is_empty())];
    if !blocks.is_empty() {
        varint(&mut out, blocks.len() as u64);
        varint(&mut out, at.0);
        varint(&mut out, at.1.into());
    }
    for block in blocks {
        let kind = match block.content {
            Content::Removed(_) => 1,
            Content::Text(_) => 4,
            Content::Values(_) => 8,
        };
        let flags = u8::from(block.left.is_some()) << 7 | u8::from(block.right.is_some()) << 6;
        out.push(kind | flags | u8::from(block.home.1.is_some()) << 5);
        for id in block.left.iter().chain(&block.right) {
            varint(&mut out, id.0);
            varint(&mut out, id.1.into());
        }
        if block.left.is_none() && block.right.is_none() {
            out.push(1);
            text(&mut out, block.home.0);
            if let Some(key) = block.home.1 {
                text(&mut out, key);
            }
        }
        match block.content {
            Content::Removed(n) => varint(&mut out, n.into()),
            Content::Text(content) => text(&mut out, content),
            Content::Values(n) => {
                varint(&mut out, n.into());
                (0..n).for_each(|_| out.extend([116, 3, 1, 0, 0]));
            }
        }
    }
    varint(&mut out, removed.len() as u64);
    for ((author, from), len) in removed {
        varint(&mut out, *author);
        varint(&mut out, 1);
        varint(&mut out, (*from).into());
        varint(&mut out, (*len).into());
    }
    out
}

/// The edit of one call that `bytes` are.
fn one(bytes: &[u8]) -> Option<Edit> {
    let mut wire = encode(&Edit::read_from(bytes).ok()?);
    assert_eq!(wire[..3], [1, 0, 0], "the version, no actors, and that it is of several calls");
    wire[2] = 1;
    decode(&wire).ok()
}

/// `edit` under a dot of `node`.
fn delta(node: u64, edit: Edit) -> Edits {
    MvRegister::<Edit>::new().write(&mut actor(node), edit).unwrap()
}

fn shown(editor: &Editor) -> String {
    let texts = [editor.text("a"), editor.text("b")];
    format!("{texts:?} {:?} {:?}", editor.list("a"), editor.map("a"))
}

type State = (BTreeSet<Dot>, BTreeSet<Dot>, String);

fn state(editor: &Editor) -> State {
    (editor.refused().collect(), editor.waiting().collect(), shown(editor))
}

/// Follows, and says whether something was refused.
fn follow(editor: &mut Editor, edits: &Edits) -> bool {
    match editor.follow(edits) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
            true
        }
    }
}

/// What forgers know of a unit: where they put it.
#[derive(Clone, Copy, Debug)]
struct Unit {
    id: Id,
    left: Option<Id>,
    right: Option<Id>,
    home: (&'static str, Option<&'static str>),
}

/// Edits that lie about clocks, containers, neighbors and kinds, but not so often that all is refused.
fn forgeries(rng: &SeededRng, count: u64) -> Vec<Edits> {
    let homes =
        [("ta", None), ("ta", None), ("tb", None), ("la", None), ("ma", Some("k")), ("ma", Some("j"))];
    let mut units: Vec<Unit> = Vec::new();
    let mut ends = [0_u32; 6];
    let (mut made, mut all, mut was_bad) = (Vec::new(), Edits::new(), 0);
    let pick = |n: usize| rng.below(n as u64) as usize;
    let rarely = || rng.below(12) == 0;
    for n in 0..count {
        let author = pick(ends.len());
        let mut clock = ends[author];
        let before = units.len();
        if rarely() {
            clock = clock.saturating_sub(rng.below(4) as u32) + rng.below(3) as u32;
        }
        let (start, mut blocks) = (clock, Vec::new());
        for _ in 0..=rng.below(2) {
            let mut home = homes[pick(homes.len())];
            let (mut left, mut right) = (None, None);
            if !units.is_empty() {
                let one = units[pick(units.len())];
                home = one.home;
                (left, right) = match rng.below(10) {
                    0 => (Some(one.id), Some(units[pick(units.len())].id)),
                    1..=4 => (Some(one.id), one.right),
                    5 | 6 => (one.left, Some(one.id)),
                    7 => (Some(one.id), None),
                    _ => {
                        home = homes[pick(homes.len())];
                        (None, None)
                    }
                };
            }
            let of = |kind: char| match kind {
                't' => Content::Text(["x", "yz", "\u{1f600}", "a\u{1f600}b"][pick(4)]),
                'l' => Content::Values(1 + rng.below(2) as u32),
                _ => Content::Values(1),
            };
            let content = match rng.below(20) {
                0 => of(['t', 'l', 'm'][pick(3)]),
                1 => Content::Removed(1 + rng.below(3) as u32),
                _ => of(home.0.chars().next().unwrap()),
            };
            for offset in 0..content.len() {
                let id = (author as u64, clock + offset);
                let left = if offset == 0 { left } else { Some((author as u64, clock + offset - 1)) };
                units.push(Unit { id, left, right, home });
            }
            clock += content.len();
            blocks.push(Block { left, right, home, content });
        }
        let mut removed = Vec::new();
        if rng.below(3) == 0 {
            let unit = units[pick(units.len())];
            removed.push((unit.id, 1 + rng.below(3) as u32));
        }
        if rng.below(8) == 0 {
            blocks.clear();
        }
        let bytes = forge((author as u64, start), &blocks, &removed);
        let edit = if rng.below(3) == 0 { Edit::read_from(&bytes).ok() } else { one(&bytes) };
        let Some(edit) = edit else {
            units.truncate(before);
            continue;
        };
        // The order of the dots is not that of making.
        let delta = delta((rng.below(1 << 20) << 10) | n, edit);
        let mut with = all.clone();
        let _ = with.join(&delta).unwrap();
        let mut editor = Editor::new();
        follow(&mut editor, &with);
        let bad = editor.refused().chain(editor.waiting()).count();
        if bad > was_bad && (bad > 5 || rng.below(4) > 0) {
            units.truncate(before);
            continue;
        }
        if bad <= was_bad {
            ends[author] = ends[author].max(clock);
        }
        (all, was_bad) = (with, bad);
        made.push(delta);
    }
    made
}

fn shuffled(deltas: &[Edits], rng: &SeededRng) -> Vec<Edits> {
    let mut deltas = deltas.to_vec();
    for i in (1..deltas.len()).rev() {
        deltas.swap(i, rng.below(i as u64 + 1) as usize);
    }
    deltas
}

/// What one seed came to: edits taken, refused, waiting.
fn same_for_all(seed: u64) -> [usize; 3] {
    let rng = SeededRng::new(seed);
    let deltas = forgeries(&rng, 8 + rng.below(50));
    let mut all = Edits::new();
    for delta in &deltas {
        let _ = all.join(delta).unwrap();
    }
    let mut fresh = Editor::new();
    let refused = follow(&mut fresh, &all);
    let expected = state(&fresh);
    assert_eq!(refused, !expected.0.is_empty(), "seed {seed}: what is refused is said");
    for _ in 0..4 {
        let (mut edits, mut editor) = (Edits::new(), Editor::new());
        for delta in shuffled(&deltas, &rng) {
            let _ = edits.join(&delta).unwrap();
            if rng.below(3) > 0 {
                follow(&mut editor, &edits);
            }
        }
        follow(&mut editor, &edits);
        assert_eq!(state(&editor), expected, "seed {seed}");
        // It goes on among them, and is the same for others.
        let made = editor.edit(&mut edits, &mut actor(1 << 40), |d| d.insert_text("a", 0, "mine")).unwrap();
        assert_eq!(made.store().values().count(), 1, "seed {seed}");
        let mut other = Editor::new();
        follow(&mut other, &edits);
        assert_eq!(state(&other), state(&editor), "seed {seed}");
        assert!(other.text("a").contains("mine"), "seed {seed}");
    }
    // Joined, it shows the same, unless something waited for what is gone now because it was refused.
    let (mut edits, mut joiner) = (all.clone(), actor(1 << 41));
    let _ = fresh.compact(&mut edits, &mut joiner).unwrap();
    follow(&mut fresh, &edits);
    let mut other = Editor::new();
    follow(&mut other, &edits);
    assert_eq!(state(&other), state(&fresh), "seed {seed}");
    assert!(shown(&fresh) == expected.2 || !expected.1.is_empty(), "seed {seed}");
    let left = expected.0.union(&expected.1).count();
    [all.store().values().count() - left, expected.0.len(), expected.1.len()]
}

#[test]
fn c22_forged_edits_are_refused_the_same_by_all_in_any_order() {
    let seed = number("MAINSTAY_DOCUMENT_SEED", 0);
    let seeds = number("MAINSTAY_DOCUMENT_SEEDS", 400);
    let (send, sums) = channel();
    watched(seed..seed + seeds, move |seed| send.send(same_for_all(seed)).unwrap());
    let sum = sums.iter().fold([0; 3], |sum, one| [0, 1, 2].map(|i| sum[i] + one[i]));
    println!("{seeds} documents from seed {seed}: {sum:?} edits were taken, refused, and wait");
    assert!(
        seeds < 100 || (sum[0] as u64 > 4 * seeds && sum[1..].iter().all(|n| *n as u64 > seeds / 2)),
        "{sum:?}"
    );
}

const TEXT: (&str, Option<&str>) = ("ta", None);
const LIST: (&str, Option<&str>) = ("la", None);
const KEY: (&str, Option<&str>) = ("ma", Some("k"));

fn block(
    left: Option<Id>,
    right: Option<Id>,
    home: (&'static str, Option<&'static str>),
    content: Content,
) -> Block {
    Block { left, right, home, content }
}

/// A text of author 1 with a letter that counts twice, then `x` of author 4 in front of its `b`; a list of author 2; and
/// two values of author 3 at one key.
fn good() -> Vec<Edits> {
    let edits = [
        forge((1, 0), &[block(None, None, TEXT, Content::Text("ab\u{1f600}c"))], &[]),
        forge((2, 0), &[block(None, None, LIST, Content::Values(3))], &[]),
        forge((3, 0), &[block(None, None, KEY, Content::Values(1))], &[]),
        forge((3, 1), &[block(Some((3, 0)), None, KEY, Content::Values(1))], &[]),
        forge((4, 0), &[block(Some((1, 0)), Some((1, 1)), TEXT, Content::Text("x"))], &[]),
    ];
    edits.iter().zip(100..).map(|(bytes, node)| delta(node, one(bytes).unwrap())).collect()
}

/// What becomes of `bytes` beside the good edits, and that nothing of it is shown unless it is taken.
fn judged(bytes: &[u8]) -> &'static str {
    let Some(edit) = one(bytes) else { return "unreadable" };
    let mut edits = Edits::new();
    for delta in good() {
        let _ = edits.join(&delta).unwrap();
    }
    let mut editor = Editor::new();
    let _ = editor.follow(&edits).unwrap();
    let before = shown(&editor);
    let _ = edits.join(&delta(900, edit)).unwrap();
    let said = follow(&mut editor, &edits);
    let (refused, waiting, after) = state(&editor);
    assert_eq!(said, !refused.is_empty());
    match (refused.len(), waiting.len()) {
        (0, 0) => "taken",
        (1, 0) if before == after => "refused",
        (0, 1) if before == after => "waits",
        other => panic!("{other:?}: {after}"),
    }
}

#[test]
fn c22_what_nobody_can_have_seen_is_refused_before_the_library_sees_it() {
    use Content::{Removed, Text, Values};
    let at = (9, 0);
    let cases = [
        // Of what is where: this one kept the library busy for ever.
        ("refused", forge(at, &[block(Some((2, 1)), None, TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(None, Some((2, 1)), TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(Some((3, 1)), None, TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(Some((1, 0)), None, LIST, Values(1))], &[])),
        ("refused", forge(at, &[block(Some((3, 1)), None, LIST, Values(1))], &[])),
        ("refused", forge(at, &[block(Some((2, 2)), None, KEY, Values(1))], &[])),
        ("refused", forge(at, &[block(Some((1, 4)), Some((2, 0)), TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(Some((3, 1)), None, LIST, Removed(1))], &[])),
        ("unreadable", forge(at, &[block(None, Some((3, 1)), KEY, Values(1))], &[])),
        ("unreadable", forge(at, &[block(None, None, KEY, Values(2))], &[])),
        ("unreadable", forge(at, &[block(None, None, TEXT, Values(1))], &[])),
        ("unreadable", forge(at, &[block(None, None, ("xa", None), Text("x"))], &[])),
        // Of the order: the right one in front of the left one; something known in between; inside a letter.
        ("refused", forge(at, &[block(Some((1, 1)), Some((1, 0)), TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(Some((1, 0)), Some((1, 4)), TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(None, Some((1, 1)), TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(Some((4, 0)), None, TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[block(Some((1, 2)), Some((1, 3)), TEXT, Text("x"))], &[])),
        ("refused", forge(at, &[], &[((1, 3), 1)])),
        ("refused", forge(at, &[], &[((1, 1), 2)])),
        ("unreadable", forge(at, &[block(Some((9, 0)), None, TEXT, Text("x"))], &[])),
        ("unreadable", forge(at, &[block(Some((1, 0)), Some((1, 0)), TEXT, Text("x"))], &[])),
        // A good part does not save the rest; what another wrote is not written again.
        (
            "refused",
            forge(at, &[block(None, None, TEXT, Text("x")), block(Some((2, 1)), None, TEXT, Text("x"))], &[]),
        ),
        ("refused", forge(at, &[block(None, None, TEXT, Text("x"))], &[((1, 3), 1)])),
        ("refused", forge((4, 0), &[block(None, None, TEXT, Text("xyz"))], &[])),
        // What is not there: neighbors, earlier work of the author, the removed.
        ("waits", forge(at, &[block(Some((1, 5)), None, TEXT, Text("x"))], &[])),
        (
            "waits",
            forge(at, &[block(None, None, TEXT, Text("x")), block(Some((8, 0)), None, TEXT, Text("x"))], &[]),
        ),
        ("waits", forge((9, 1), &[block(None, None, TEXT, Text("x"))], &[])),
        ("waits", forge(at, &[], &[((1, 0), u32::MAX >> 2)])),
        ("waits", forge(at, &[block(None, None, TEXT, Text("x"))], &[((9, 0), 2)])),
        // Nothing is wrong with these.
        ("taken", forge(at, &[block(Some((1, 0)), Some((4, 0)), TEXT, Text("x"))], &[])),
        ("taken", forge(at, &[block(Some((1, 0)), Some((1, 1)), TEXT, Text("x"))], &[((4, 0), 1)])),
        ("taken", forge(at, &[block(Some((1, 4)), None, TEXT, Text("x"))], &[((1, 2), 2)])),
        ("taken", forge(at, &[block(None, None, TEXT, Text("x"))], &[((9, 0), 1)])),
        ("taken", forge(at, &[block(None, None, LIST, Removed(u32::MAX >> 2))], &[])),
        ("taken", forge(at, &[block(Some((3, 0)), None, KEY, Values(1))], &[])),
    ];
    watched(0..cases.len() as u64, move |n| {
        let (expected, bytes) = &cases[n as usize];
        assert_eq!(judged(bytes), *expected, "case {n}");
    });
}

#[test]
fn c22_circles_and_places_in_the_air_wait_for_ever_and_cost_nothing() {
    // Two authors, each beside the other: neither was first.
    let circle = [
        forge((8, 0), &[block(Some((9, 0)), None, TEXT, Content::Text("x"))], &[]),
        forge((9, 0), &[block(Some((8, 0)), None, TEXT, Content::Text("y"))], &[]),
    ];
    let (mut edits, mut editor) = (Edits::new(), Editor::new());
    for (node, bytes) in circle.iter().enumerate() {
        let _ = edits.join(&delta(node as u64, one(bytes).unwrap())).unwrap();
        let _ = editor.follow(&edits).unwrap();
    }
    assert_eq!((editor.waiting().count(), editor.text("a")), (2, String::new()));
    // It waits, and comes in when what it waits for does.
    let late = forge((7, 0), &[block(Some((6, 0)), None, TEXT, Content::Text("late"))], &[]);
    let _ = edits.join(&delta(50, one(&late).unwrap())).unwrap();
    let _ = editor.follow(&edits).unwrap();
    let first = forge((6, 0), &[block(None, None, TEXT, Content::Text("first, "))], &[]);
    let _ = edits.join(&delta(60, one(&first).unwrap())).unwrap();
    let _ = editor.follow(&edits).unwrap();
    assert_eq!(editor.text("a"), "first, late");
    assert_eq!(editor.waiting().count(), 2);
}
