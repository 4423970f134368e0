//! `ring verify`: is this map whole, do two agree, does a profile answer like the system it stands for?

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use mainstay_partition::compat::{self, HaproxyFunction, HaproxyHash, KetamaMode};
use mainstay_partition::slots::{Planner, SlotMap};
use mainstay_partition::{Node, NodeIdx, Place, Spread};
use serde_json::json;

use super::{input, percent, refused};
use crate::cli::output::plain;
use crate::cli::{Output, print};
use crate::error::{Code, Error, Result};

/// Disagreements that are shown.
const SHOWN: usize = 10;

/// Arguments of `ring verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A slot map to check.
    #[arg(long)]
    map: Option<PathBuf>,
    /// Replicas that every slot must have, with --map. Without it: as many as the fullest slot has.
    #[arg(long)]
    rf: Option<usize>,
    /// The zone rule that every slot must keep, with --map.
    #[arg(long, default_value = "any", value_parser = input::spread)]
    zones: Spread,
    /// Another map, or another client's copy: which is newer, and whether two of one epoch are the same.
    #[arg(long, requires = "map")]
    against: Option<PathBuf>,
    /// A profile to compare with the answers of the system it stands for.
    #[arg(long, value_enum, conflicts_with = "map", requires = "answers")]
    profile: Option<Profile>,
    /// The names exactly as the other configuration writes them, in its order: `name[*weight],...` or a file. With
    /// --profile cassandra: `name/token/token...`. Not with redis.
    #[arg(long)]
    nodes: Option<String>,
    /// Lines `KEY<tab>OWNER`, as the other system answered; with --profile redis the owner is the slot.
    #[arg(long)]
    answers: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Profile {
    Cassandra,
    EnvoyMaglev,
    EnvoyRing,
    EnvoyRingMurmur2,
    Guava,
    Haproxy,
    HaproxyCrc32,
    HaproxyCrc32Avalanche,
    HaproxyDjb2,
    HaproxyDjb2Avalanche,
    HaproxySdbm,
    HaproxySdbmAvalanche,
    Ketama,
    KetamaPlain,
    KetamaSpy,
    Nginx,
    Redis,
}

/// Runs `ring verify`.
pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    match (&args.map, args.profile) {
        (Some(path), _) => maps(args, &input::map(path)?, output),
        (None, Some(profile)) => answers(args, profile, output),
        (None, None) => Err(Error::new(Code::PlacementInput, "give --map FILE or --profile NAME")),
    }
}

fn maps(args: &Args, map: &SlotMap, output: Output) -> Result<ExitCode> {
    let other = args.against.as_deref().map(|path| against(map, path)).transpose()?;
    let rf = input::rf(args.rf, map);
    let repair = Planner::new(map).rf(rf).zones(args.zones).solve().map_err(refused)?;
    let short = (0..map.slots()).filter(|s| map.replicas(*s).len() < rf).count();
    let crowded = crowded(map, rf, args.zones);
    let shares = map.shares();
    let mut json = json!({
        "epoch": map.epoch(),
        "fingerprint": format!("{:032x}", map.fingerprint()),
        "slots": map.slots(),
        "nodes": map.nodes().len(),
        "short_slots": short,
        "crowded_slots": crowded,
        "moves_to_repair": repair.moves().len(),
        "max_over_mean": shares.max_over_mean(),
        "min_over_mean": shares.min_over_mean(),
    });
    let mut rows = vec![
        ("epoch", map.epoch().to_string()),
        ("fingerprint", format!("{:032x}", map.fingerprint())),
        ("slots", map.slots().to_string()),
        ("nodes", map.nodes().len().to_string()),
        ("slots with too few replicas", short.to_string()),
        ("slots in too few zones", crowded.to_string()),
        ("moves to keep rules and shares", repair.moves().len().to_string()),
        ("primaries, max/mean", format!("{:.3}", shares.max_over_mean())),
        ("primaries, min/mean", format!("{:.3}", shares.min_over_mean())),
    ];
    if let Some(Against { epoch, fingerprint, is }) = other {
        json["against"] = json!({"epoch": epoch, "fingerprint": fingerprint, "is": is});
        rows.push(("the other map", format!("{is}, epoch {epoch}, fingerprint {fingerprint}")));
    }
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output.rows(&["WHAT", "VALUE"], rows, &json)?;
    let kept = short == 0 && (crowded == 0 || !matches!(args.zones, Spread::Hard { .. }));
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The other map, seen from the first.
struct Against {
    epoch: u64,
    fingerprint: String,
    is: &'static str,
}

fn against(map: &SlotMap, path: &Path) -> Result<Against> {
    let other = input::map(path)?;
    let (a, b) = (map.fingerprint(), other.fingerprint());
    let is = match other.epoch().cmp(&map.epoch()) {
        Ordering::Less => "older",
        Ordering::Greater => "newer",
        Ordering::Equal if a == b => "the same",
        Ordering::Equal => {
            let why = format!("both maps claim epoch {}; fingerprints {a:032x} and {b:032x}", map.epoch());
            return Err(Error::new(Code::PlacementConflict, why));
        }
    };
    Ok(Against { epoch: other.epoch(), fingerprint: format!("{b:032x}"), is })
}

/// Slots whose replicas are in fewer zones than the rule asks for. One that is only preferred asks for no more than
/// there are.
fn crowded(map: &SlotMap, rf: usize, rule: Spread) -> usize {
    let nodes = map.nodes();
    let zones = |list: &[NodeIdx]| list.iter().map(|n| nodes.zone_of(*n)).collect::<BTreeSet<_>>().len();
    let live: Vec<NodeIdx> = nodes.iter().filter(|(_, n)| n.weight > 0).map(|(idx, _)| idx).collect();
    let least = match rule {
        Spread::Hard { min } => min,
        Spread::Prefer { min } => min.min(rf).min(zones(&live)),
        _ => 1,
    };
    // A slot without replicas is short, and counted there.
    let lists = (0..map.slots()).map(|s| map.replicas(s)).filter(|list| !list.is_empty());
    lists.filter(|list| zones(list) < least).count()
}

/// `host:port` of a memcached server.
fn host_port(node: &Node) -> Result<(String, u16)> {
    let name = node.id.as_str();
    let parts = name.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    parts.ok_or_else(|| Error::new(Code::PlacementInput, format!("`{name}` is no host:port")))
}

/// `name/token/token...` of a Cassandra node.
fn tokens(node: &Node) -> Result<(String, Vec<i64>)> {
    let mut parts = node.id.as_str().split('/');
    let name = parts.next().unwrap_or_default();
    let tokens: Option<Vec<i64>> = parts.map(|token| token.parse().ok()).collect();
    match tokens {
        Some(tokens) if !tokens.is_empty() => Ok((name.to_owned(), tokens)),
        _ => Err(Error::new(Code::PlacementInput, format!("`{}` is no name/token/token...", node.id))),
    }
}

/// The line `hash-type consistent ...` of a profile for `HAProxy`.
fn hash_type(profile: Profile) -> HaproxyHash {
    match profile {
        Profile::HaproxyCrc32 => HaproxyHash::Bare(HaproxyFunction::Crc32),
        Profile::HaproxyCrc32Avalanche => HaproxyHash::Avalanche(HaproxyFunction::Crc32),
        Profile::HaproxyDjb2 => HaproxyHash::Bare(HaproxyFunction::Djb2),
        Profile::HaproxyDjb2Avalanche => HaproxyHash::Avalanche(HaproxyFunction::Djb2),
        Profile::HaproxySdbm => HaproxyHash::Bare(HaproxyFunction::Sdbm),
        Profile::HaproxySdbmAvalanche => HaproxyHash::Avalanche(HaproxyFunction::Sdbm),
        _ => HaproxyHash::Default,
    }
}

fn build(profile: Profile, nodes: &[Node]) -> Result<Box<dyn Place>> {
    let named = || nodes.iter().map(|n| (n.id.as_str(), n.weight));
    let place: Box<dyn Place> = match profile {
        Profile::Nginx => {
            let all = named().fold(compat::nginx(), |b, (name, weight)| b.server(name, weight));
            Box::new(all.build().map_err(refused)?)
        }
        Profile::Haproxy
        | Profile::HaproxyCrc32
        | Profile::HaproxyCrc32Avalanche
        | Profile::HaproxyDjb2
        | Profile::HaproxyDjb2Avalanche
        | Profile::HaproxySdbm
        | Profile::HaproxySdbmAvalanche => {
            let start = compat::haproxy().hash_type(hash_type(profile));
            let all = named().fold(start, |b, (name, weight)| b.server(name, weight));
            Box::new(all.build().map_err(refused)?)
        }
        Profile::EnvoyRing | Profile::EnvoyRingMurmur2 => {
            let start = compat::envoy_ring(1024, 8_388_608);
            let start = if matches!(profile, Profile::EnvoyRing) { start } else { start.murmur2() };
            Box::new(named().fold(start, |b, (name, weight)| b.host(name, weight)).build().map_err(refused)?)
        }
        Profile::EnvoyMaglev => {
            let start = compat::envoy_maglev(65_537);
            Box::new(named().fold(start, |b, (name, weight)| b.host(name, weight)).build().map_err(refused)?)
        }
        Profile::Ketama | Profile::KetamaPlain | Profile::KetamaSpy => {
            let mode = match profile {
                Profile::KetamaPlain => KetamaMode::Plain,
                Profile::KetamaSpy => KetamaMode::Spy,
                _ => KetamaMode::Weighted,
            };
            let mut all = compat::ketama(mode);
            for node in nodes {
                let (host, port) = host_port(node)?;
                all = all.server(host, port, node.weight);
            }
            Box::new(all.build().map_err(refused)?)
        }
        Profile::Cassandra => {
            let mut all = compat::cassandra_murmur3();
            for node in nodes {
                let (name, tokens) = tokens(node)?;
                all = all.node(name, tokens);
            }
            Box::new(all.build().map_err(refused)?)
        }
        Profile::Guava => {
            let buckets = compat::guava_jump(1).nodes(nodes.iter().cloned());
            Box::new(buckets.build().map_err(refused)?)
        }
        // Every slot has a node of its number.
        Profile::Redis => {
            let slots = || 0..16_384_u32;
            let all = compat::redis_slots(1)
                .nodes(slots().map(|slot| Node::new(slot.to_string())))
                .replicas(|slot| vec![slot.to_string().into()]);
            Box::new(all.build().map_err(refused)?)
        }
    };
    Ok(place)
}

fn answers(args: &Args, profile: Profile, output: Output) -> Result<ExitCode> {
    let missing = |what: &str| Error::new(Code::PlacementInput, format!("give {what}"));
    let nodes = match (&args.nodes, profile) {
        (None, Profile::Redis) => Vec::new(),
        (Some(_), Profile::Redis) => {
            return Err(Error::new(
                Code::PlacementInput,
                "--profile redis compares slots: it has no --nodes",
            ));
        }
        (Some(nodes), _) => input::nodes(nodes)?,
        (None, _) => return Err(missing("--nodes NODES")),
    };
    let path = args.answers.as_deref().ok_or_else(|| missing("--answers FILE"))?;
    let place = build(profile, &nodes)?;
    let text = input::read(path)?;
    let (mut keys, mut wrong) = (0_u64, Vec::new());
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.is_empty()) {
        let Some((key, theirs)) = line.split_once('\t') else {
            let why = format!("{}:{}: no tab between key and owner", path.display(), number + 1);
            return Err(Error::new(Code::PlacementInput, why));
        };
        keys += 1;
        let ours = place.owner(key.as_bytes()).map(|i| place.nodes()[i].id.to_string()).unwrap_or_default();
        if ours != theirs {
            wrong.push((key.to_owned(), ours, theirs.to_owned()));
        }
    }
    if keys == 0 {
        return Err(Error::new(Code::PlacementInput, format!("{} has no answers", path.display())));
    }
    let agree = (keys - wrong.len() as u64) as f64 / keys as f64;
    let fingerprint = format!("{:032x}", place.fingerprint());
    if output == Output::Json {
        let list = wrong.iter().take(SHOWN).map(|(k, o, t)| json!({"key": k, "ours": o, "theirs": t}));
        let json = json!({
            "keys": keys, "agree": agree, "disagreements": wrong.len(),
            "first": list.collect::<Vec<_>>(), "fingerprint": fingerprint,
        });
        print(&format!("{json:#}\n"))?;
    } else {
        let mut text = format!("{} of {keys} keys agree; fingerprint {fingerprint}\n", percent(agree));
        for (key, ours, theirs) in wrong.iter().take(SHOWN) {
            text += &format!("{}: ours {}, theirs {}\n", plain(key), plain(ours), plain(theirs));
        }
        print(&text)?;
    }
    if wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let why = format!("{} of {keys} keys have another owner", wrong.len());
    Err(Error::new(Code::PlacementConflict, why))
}
