//! nginx: `hash $arg_k consistent`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use mainstay_partition::{Place, compat};
use mainstay_sim::servers::{Cover, Launch, Server, Trial, find};

use crate::http::ask;
use crate::keys::{KEYS, URL, random};

/// Upstream groups by path: names as the configuration writes them, weight, whether it is down. Three-part
/// addresses like 127.200.513 are names to nginx and are resolved like host names; what is hashed is the name.
type Servers = &'static [(&'static str, u32, bool)];

const GROUPS: [(&str, Servers); 4] = [
    ("equal", &[("127.99.1.1", 1, false), ("127.99.1.2", 1, false), ("127.99.1.3", 1, false)]),
    (
        "weights",
        &[
            ("127.99.2.1", 1, false),
            ("127.99.2.2", 3, false),
            ("127.99.2.3", 2, false),
            ("127.99.2.4", 10, false),
        ],
    ),
    (
        "names",
        &[
            ("127.99.769", 1, false),
            ("127.99.770", 2, false),
            ("LOCALHOST", 1, false),
            ("127.99.3.9", 1, false),
        ],
    ),
    (
        "down",
        &[
            ("127.99.4.1", 1, false),
            ("127.99.4.2", 2, true),
            ("127.99.4.3", 1, false),
            ("127.99.4.4", 1, false),
        ],
    ),
];

pub(crate) fn cover() -> Cover {
    let Some(server) = find("nginx").map(|program| start(&program)) else {
        return Cover::new("nginx", GROUPS.len(), vec![]);
    };
    let server = Arc::new(server);
    let trial = |(path, servers): (&'static str, Servers)| {
        let server = Arc::clone(&server);
        Trial::test(format!("nginx_{path}"), move || {
            check(server.address(), path, servers);
            Ok(())
        })
    };
    Cover::new("nginx", GROUPS.len(), GROUPS.into_iter().map(trial).collect())
}

/// Where a name leads, and thereby which server answered.
fn resolved(name: &str) -> String {
    match name {
        "LOCALHOST" => "127.0.0.1".into(),
        _ => match name.split('.').collect::<Vec<_>>()[..] {
            [a, b, rest] => {
                let rest: u16 = rest.parse().unwrap();
                format!("{a}.{b}.{}.{}", rest >> 8, rest & 255)
            }
            _ => name.into(),
        },
    }
}

fn start(program: &std::path::Path) -> Server {
    Server::start(program, |setup| {
        let (dir, port) = (setup.dir.display(), setup.address.port());
        let mut text = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr;
             events {{ worker_connections 512; }}
             http {{ access_log off; keepalive_requests 1000000;
             client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
             uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n"
        );
        let mut listen = String::new();
        let mut locations = String::new();
        for (path, servers) in GROUPS {
            let _ = write!(text, "upstream {path} {{ hash $arg_k consistent;");
            for (name, weight, down) in servers {
                let mark = if *down { " down" } else { "" };
                let _ = write!(text, " server {name}:{port} weight={weight} max_fails=0{mark};");
                let _ = write!(listen, " listen {}:{port};", resolved(name));
            }
            text.push_str(" keepalive 8; }\n");
            let _ = write!(
                locations,
                "location /{path} {{ proxy_pass http://{path}; proxy_http_version 1.1;
                 proxy_set_header Connection \"\"; proxy_next_upstream off;
                 add_header X-Owner $upstream_addr always; }}\n"
            );
        }
        let _ = write!(
            text,
            "server {{{listen} return 204; }}\nserver {{ listen {}; {locations} }} }}",
            setup.address
        );
        let config = setup.dir.join("nginx.conf");
        let arguments = [
            "-e".into(),
            "stderr".into(),
            "-p".into(),
            setup.dir.into(),
            "-c".into(),
            config.into_os_string(),
        ];
        Launch::new().file("nginx.conf", text).args(arguments)
    })
    .unwrap()
}

fn check(address: SocketAddr, path: &str, servers: Servers) {
    let port = address.port();
    let profile = servers.iter().fold(compat::nginx(), |b, (name, weight, down)| {
        let name = format!("{name}:{port}");
        if *down { b.down(name, *weight) } else { b.server(name, *weight) }
    });
    let profile = profile.build().unwrap();
    let keys = random(1, URL);
    let answers = ask(address, &format!("/{path}"), &keys, "X-Owner");
    assert_eq!(answers.len(), KEYS);
    let mut seen = vec![0; servers.len()];
    for (key, answer) in keys.iter().zip(answers) {
        // More than 20 points of servers that are down: nginx gives up and answers for none.
        if profile.bypass(key).is_some() {
            continue;
        }
        let owner = profile.owner(key).unwrap().as_usize();
        let wanted = format!("{}:{port}", resolved(servers[owner].0));
        assert_eq!(answer, wanted, "{path}, key {}", String::from_utf8_lossy(key));
        seen[owner] += 1;
    }
    assert!(seen.iter().sum::<usize>() > KEYS * 99 / 100, "{seen:?}");
    assert!(seen.iter().zip(servers).all(|(count, server)| (*count > 0) != server.2), "{seen:?}");
}
