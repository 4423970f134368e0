//! Carries out the planned faults.

use std::sync::PoisonError;
use std::time::Duration;

use mainstay_store::memory::MemoryLeaseStore;

use super::faults::{FaultKind, Target, Window, unit};
use super::pause;
use super::world::{Cut, World};
use crate::history::{Event, Fault};

/// Starts the windows of a run, and its heal.
pub(super) fn unleash(world: &World, windows: Vec<Window>) {
    for window in windows {
        let inner = world.clone();
        world.spawn(async move {
            pause(window.start).await;
            let start = inner.recorder().stamp();
            let undo = begin(&inner, &window);
            pause(window.end - window.start).await;
            undo(&inner);
            let target = match window.target {
                Target::Store => "store".to_owned(),
                Target::Node(i) => inner.name(i).to_owned(),
                Target::Link(from, to) => inner.via(from, to),
            };
            // Both directions of a link are one link to who uses it.
            let target = match target.split_once('>') {
                Some(("store", node)) => format!("{node}>store"),
                _ => target,
            };
            let end = inner.recorder().stamp();
            inner.recorder().fault(Fault::new(&window.id, window.kind.name(), &target, start, end));
        });
    }
    if world.0.options.liveness.is_some() {
        let inner = world.clone();
        world.spawn(async move {
            inner.healed().await;
            let at_ns = inner.recorder().stamp();
            inner.recorder().push(Event::Heal { at_ns });
        });
    }
}

type Undo = Box<dyn FnOnce(&World) + Send>;

fn begin(world: &World, window: &Window) -> Undo {
    match window.target {
        Target::Link(from, to) => link(world, window.kind, from, to),
        Target::Node(i) => node(world, window, i),
        Target::Store => store(world, window),
    }
}

/// Cuts links until the window ends.
fn cut(world: &World, links: Vec<(usize, usize)>, how: Cut) -> Undo {
    links.iter().for_each(|(from, to)| world.set_cut(*from, *to, Some(how)));
    Box::new(move |world| links.iter().for_each(|(from, to)| world.set_cut(*from, *to, None)))
}

fn link(world: &World, kind: FaultKind, from: usize, to: usize) -> Undo {
    match kind {
        FaultKind::Reset => {
            world.reset(&[(from, to)]);
            Box::new(|_| {})
        }
        FaultKind::OneWay => cut(world, vec![(from, to)], Cut::Lost),
        FaultKind::Clog => cut(world, vec![(from, to), (to, from)], Cut::Clogged),
        _ => cut(world, vec![(from, to), (to, from)], Cut::Lost),
    }
}

fn node(world: &World, window: &Window, i: usize) -> Undo {
    let clock = &world.0.nodes[i].clock;
    match window.kind {
        FaultKind::Isolate => {
            let others = (0..=world.nodes()).filter(|o| *o != i);
            cut(world, others.flat_map(|o| [(i, o), (o, i)]).collect(), Cut::Lost)
        }
        FaultKind::Pause => {
            world.set_paused(i, true);
            Box::new(move |world| world.set_paused(i, false))
        }
        FaultKind::Crash => {
            world.crash(i);
            Box::new(move |world| world.reboot(i))
        }
        FaultKind::StaleRestart => {
            world.crash(i);
            Box::new(move |world| world.restart(i, |values| drop(values.pop())))
        }
        FaultKind::EmptyRestart => {
            world.crash(i);
            Box::new(move |world| world.restart(i, Vec::clear))
        }
        FaultKind::ClockJump => {
            clock.jump_boot(Duration::from_secs(60).mul_f64(unit(window.bits)));
            Box::new(|_| {})
        }
        FaultKind::WallJump => {
            clock.jump_wall(wall_jump(window.bits));
            Box::new(|_| {})
        }
        _ => Box::new(|_| {}),
    }
}

/// Up to a day either way, and now and then to the year 9999.
fn wall_jump(bits: u64) -> i64 {
    const DAY_MS: f64 = 86_400_000.0;
    const TO_9999_MS: i64 = 251_634_384_000_000;
    if bits.is_multiple_of(8) {
        return TO_9999_MS;
    }
    // Within a day: the cast is exact enough for a jump.
    (DAY_MS * (2.0 * unit(bits) - 1.0)) as i64
}

fn store(world: &World, window: &Window) -> Undo {
    let all: Vec<(usize, usize)> =
        (0..world.nodes()).flat_map(|i| [(i, world.nodes()), (world.nodes(), i)]).collect();
    let leases = || world.0.backend.leases.lock().unwrap_or_else(PoisonError::into_inner);
    match window.kind {
        FaultKind::StorePause => {
            world.0.backend.clock.pause();
            Box::new(|world| world.0.backend.clock.resume())
        }
        FaultKind::StoreCrash => {
            world.reset(&all);
            cut(world, all, Cut::Lost)
        }
        FaultKind::StoreEmpty | FaultKind::StoreStale => {
            let old = match window.kind {
                FaultKind::StoreStale => leases().snapshot(),
                _ => MemoryLeaseStore::new(std::sync::Arc::new(world.0.backend.clock.clone())),
            };
            Box::new(move |world| {
                world.reset(&all);
                *world.0.backend.leases.lock().unwrap_or_else(PoisonError::into_inner) = old;
            })
        }
        _ => Box::new(|_| {}),
    }
}
