//! The one encoding of what an edit says: the first version of that of Yjs, with everything in order.

use crate::document::changes::{Changes, Content, Home, Id, Run};
use crate::document::read::{BUFFER, info};

/// What `changes` are as bytes, which must be [settled](Changes::settle).
pub(super) fn write(changes: &Changes) -> Vec<u8> {
    let mut out = Vec::new();
    let authors = changes.by_author();
    number(&mut out, authors.len() as u64);
    // The library writes later authors first.
    for (author, runs) in authors.into_iter().rev() {
        let gaps = runs.windows(2).filter(|pair| pair[0].end() < pair[1].id.clock).count();
        number(&mut out, (runs.len() + gaps) as u64);
        number(&mut out, author);
        let mut clock = runs.first().map_or(0, |run| run.id.clock);
        number(&mut out, clock.into());
        for run in runs {
            if clock < run.id.clock {
                out.push(info::GAP);
                number(&mut out, (run.id.clock - clock).into());
            }
            block(&mut out, run);
            clock = run.end();
        }
    }
    let removed: Vec<_> = changes.removed.chunk_by(|a, b| a.author == b.author).collect();
    number(&mut out, removed.len() as u64);
    for ranges in removed.into_iter().rev() {
        number(&mut out, ranges[0].author);
        number(&mut out, ranges.len() as u64);
        for range in ranges {
            number(&mut out, range.from.into());
            number(&mut out, (range.to - range.from).into());
        }
    }
    out
}

fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn block(out: &mut Vec<u8>, run: &Run) {
    let kind = match run.content {
        Content::Removed(_) => info::REMOVED,
        Content::Text(_) => info::TEXT,
        Content::Values(_) => info::VALUES,
    };
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let neighbors = flag(run.left.is_some(), info::LEFT) | flag(run.right.is_some(), info::RIGHT);
    out.push(kind | neighbors | flag(run.keyed, info::KEY));
    for Id { author, clock } in run.left.iter().chain(&run.right) {
        number(out, *author);
        number(out, (*clock).into());
    }
    if let Some(Home { kind, name, key }) = &run.home {
        number(out, 1);
        bytes(out, format!("{}{name}", kind.letter()).as_bytes());
        if let Some(key) = key {
            bytes(out, key.as_bytes());
        }
    }
    match &run.content {
        Content::Removed(len) => number(out, (*len).into()),
        Content::Text(text) => bytes(out, text.as_bytes()),
        Content::Values(values) => {
            number(out, values.len() as u64);
            for value in values {
                out.push(BUFFER);
                bytes(out, value);
            }
        }
    }
}
