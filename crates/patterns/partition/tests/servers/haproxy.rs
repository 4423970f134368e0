//! HAProxy: `balance url_param k`, `hash-type consistent`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use mainstay_partition::Place;
use mainstay_partition::compat::{self, HaproxyFunction, HaproxyHash};
use mainstay_sim::servers::{Cover, Launch, Server, Trial, find};

use crate::http::ask;
use crate::keys::{KEYS, URL, random};

type Servers = &'static [(&'static str, u32, Option<u32>)];

const WEIGHED: Servers = &[
    ("a", 1, None),
    ("b.example", 7, Some(1)),
    ("c", 256, None),
    ("d", 0, None),
    ("e", 30, Some(900)),
    ("f", 3, None),
];
const EQUAL: Servers = &[("s1", 1, None), ("s2", 1, None), ("s3", 1, None), ("s4", 1, None), ("s5", 1, None)];

/// Backends by path: the `hash-type` line, what it means, the servers.
const GROUPS: [(&str, &str, HaproxyHash, Servers); 7] = [
    ("equal", "", HaproxyHash::Default, EQUAL),
    ("weighed", "", HaproxyHash::Default, WEIGHED),
    ("sdbm", "sdbm", HaproxyHash::Bare(HaproxyFunction::Sdbm), WEIGHED),
    ("djb2", "djb2", HaproxyHash::Bare(HaproxyFunction::Djb2), WEIGHED),
    ("djb2-avalanche", "djb2 avalanche", HaproxyHash::Avalanche(HaproxyFunction::Djb2), WEIGHED),
    ("crc32", "crc32", HaproxyHash::Bare(HaproxyFunction::Crc32), WEIGHED),
    ("crc32-avalanche", "crc32 avalanche", HaproxyHash::Avalanche(HaproxyFunction::Crc32), EQUAL),
];

pub(crate) fn cover() -> Cover {
    let Some(server) = find("haproxy").map(|program| start(&program)) else {
        return Cover::new("haproxy", GROUPS.len(), vec![]);
    };
    let server = Arc::new(server);
    let trial = |(path, _, hash, servers)| {
        let server = Arc::clone(&server);
        Trial::test(format!("haproxy_{path}"), move || {
            check(server.address(), path, hash, servers);
            Ok(())
        })
    };
    Cover::new("haproxy", GROUPS.len(), GROUPS.into_iter().map(trial).collect())
}

fn start(program: &std::path::Path) -> Server {
    Server::start(program, |setup| {
        let mut text = String::from(
            "defaults\n mode http\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n option http-keep-alive\n",
        );
        // Every server leads back here; who was chosen is said in a header.
        let _ = writeln!(text, "frontend all\n bind {}", setup.address);
        text.push_str(" http-request return status 200 if { path /answer }\n");
        let mut backends = String::new();
        for (path, line, _, servers) in GROUPS {
            let _ = writeln!(text, " use_backend {path} if {{ path /{path} }}");
            let _ = writeln!(backends, "backend {path}\n balance url_param k\n hash-type consistent {line}");
            backends.push_str(" http-request set-path /answer\n http-response set-header X-Owner %s\n");
            for (name, weight, id) in servers {
                let id = id.map_or_else(String::new, |id| format!(" id {id}"));
                let _ = writeln!(backends, " server {name} {} weight {weight}{id}", setup.address);
            }
        }
        text.push_str(&backends);
        let config = setup.dir.join("haproxy.cfg");
        Launch::new().file("haproxy.cfg", text).args(["-db".into(), "-f".into(), config.into_os_string()])
    })
    .unwrap()
}

fn check(address: SocketAddr, path: &str, hash: HaproxyHash, servers: Servers) {
    let builder = servers.iter().fold(compat::haproxy().hash_type(hash), |b, (name, weight, id)| match id {
        Some(id) => b.server_id(*name, *weight, *id),
        None => b.server(*name, *weight),
    });
    let profile = builder.build().unwrap();
    let keys = random(2, URL);
    let answers = ask(address, &format!("/{path}"), &keys, "X-Owner");
    assert_eq!(answers.len(), KEYS);
    let mut seen = vec![0; servers.len()];
    for (key, answer) in keys.iter().zip(answers) {
        let owner = profile.owner(key).unwrap();
        assert_eq!(
            answer,
            profile.nodes()[owner].id.as_str(),
            "{path}, key {}",
            String::from_utf8_lossy(key)
        );
        seen[owner.as_usize()] += 1;
    }
    assert!(seen.iter().zip(servers).all(|(count, server)| (*count > 0) == (server.1 > 0)), "{seen:?}");
}
