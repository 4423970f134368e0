//! The disk that power cuts are made on: what a sync covers, and what it does not.

use std::collections::BTreeSet;
use std::path::Path;

use mainstay_sim::power::{Disk, Image, Loss, Op, OpKind, Trace};

const ROOT: &str = "/data";

fn ops(kinds: &[(i32, OpKind)]) -> Vec<Op> {
    kinds.iter().map(|(fd, kind)| Op { fd: *fd, kind: kind.clone(), end: 0 }).collect()
}

fn after(kinds: &[(i32, OpKind)]) -> Disk {
    let mut disk = Disk::new(ROOT);
    ops(kinds).iter().for_each(|op| disk.apply(op));
    disk
}

fn write(at: u64, text: &str) -> OpKind {
    OpKind::Write(at, text.as_bytes().to_vec())
}

fn file(image: &Image, name: &str) -> Option<String> {
    image.files.get(Path::new(name)).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// A file whose name and first content are on the disk.
fn begun() -> Vec<(i32, OpKind)> {
    vec![
        (3, OpKind::Create("/data/a".into())),
        (4, OpKind::Open("/data".into())),
        (4, OpKind::Sync),
        (3, write(0, "old")),
        (3, OpKind::Sync),
    ]
}

#[test]
fn a_name_survives_with_the_sync_of_its_folder_and_content_with_that_of_its_file() {
    let made = [(3, OpKind::Create("/data/a".into())), (3, write(0, "x")), (3, OpKind::Sync)];
    assert_eq!(file(&after(&made).cut(Loss::Everything, 1), "a"), None, "its folder was not synced");
    let disk = after(&begun());
    assert_eq!(file(&disk.cut(Loss::Everything, 1), "a").as_deref(), Some("old"));
    let removed = [begun(), vec![(-1, OpKind::Unlink("/data/a".into()))]].concat();
    assert_eq!(file(&after(&removed).cut(Loss::Everything, 1), "a").as_deref(), Some("old"), "it comes back");
    assert_eq!(file(&after(&removed).cut(Loss::Nothing, 1), "a"), None);
}

#[test]
fn what_a_failed_sync_left_out_no_later_one_brings_in() {
    let failed =
        [begun(), vec![(3, write(0, "new")), (3, OpKind::SyncFailed(5)), (3, OpKind::Sync)]].concat();
    assert_eq!(file(&after(&failed).cut(Loss::Everything, 1), "a").as_deref(), Some("old"));
    // Written again, it is dirty again.
    let again = [failed, vec![(3, write(0, "new")), (3, OpKind::Sync)]].concat();
    assert_eq!(file(&after(&again).cut(Loss::Everything, 1), "a").as_deref(), Some("new"));
}

#[test]
fn unsynced_writes_survive_in_any_order_in_pieces_and_as_garbage() {
    let two = [begun(), vec![(3, write(0, &"x".repeat(1_024))), (3, write(2_048, "end"))]].concat();
    let disk = after(&two);
    let mut seen = BTreeSet::new();
    for seed in 0..5_000 {
        let bytes = disk.cut(Loss::Sectors, seed).files[Path::new("a")].clone();
        let sector = |i: usize| match bytes.get(i * 512..bytes.len().min((i + 1) * 512)) {
            Some(part) if !part.is_empty() && part.iter().all(|b| *b == b'x') => "new",
            Some(part) if part.iter().all(|b| *b == 0) || part.starts_with(b"old") => "old",
            Some(b"old") | None => "old",
            Some(_) => "garbage",
        };
        seen.insert((sector(0), sector(1), bytes.len() > 2_048));
    }
    for first in ["new", "old", "garbage"] {
        for second in ["new", "old", "garbage"] {
            for last in [true, false] {
                assert!(seen.contains(&(first, second, last)), "{first} {second} {last}: {seen:?}");
            }
        }
    }
    // In order: the second is never there without the first.
    for seed in 0..300 {
        let bytes = disk.cut(Loss::Tail, seed).files[Path::new("a")].clone();
        assert!(bytes.len() <= 2_048 || bytes.starts_with(b"xxxx"), "{seed}");
    }
    assert_eq!(disk.cut(Loss::Sectors, 7), disk.cut(Loss::Sectors, 7), "a seed is an image");
}

#[test]
fn a_trace_ends_where_the_process_was_killed_and_garbage_is_none() {
    let mut note = vec![b'w', 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'x'];
    let whole = Trace::parse(&note).unwrap();
    assert_eq!(whole.ops, [Op { fd: 3, kind: write(2, "x"), end: 25 }]);
    note.extend(note.clone());
    assert_eq!(Trace::parse(&note[..40]).unwrap(), whole);
    note[0] = b'?';
    assert!(Trace::parse(&note).is_err());
}
