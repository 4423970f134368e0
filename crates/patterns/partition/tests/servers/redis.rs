//! A Redis Cluster node: `CLUSTER KEYSLOT`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use mainstay_partition::compat::redis_slot;
use mainstay_sim::servers::{Cover, Launch, Server, Trial, find};

use crate::keys::{KEYS, random};

pub(crate) fn cover() -> Cover {
    let Some(program) = find("redis-server") else { return Cover::new("redis", 1, vec![]) };
    let server = Server::start(&program, |setup| {
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        // The cluster bus has a port of its own; its default is the port plus 10000, which may not exist.
        let bus = mainstay_sim::servers::free_address().unwrap().port().to_string();
        Launch::new().args([
            "--bind",
            &ip,
            "--port",
            &port,
            "--cluster-port",
            &bus,
            "--cluster-enabled",
            "yes",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ])
    })
    .unwrap();
    Cover::new(
        "redis",
        1,
        vec![Trial::test("redis_keyslot", move || {
            check(&server);
            Ok(())
        })],
    )
}

fn check(server: &Server) {
    let mut write = TcpStream::connect(server.address()).unwrap();
    // A server that says nothing fails the test.
    write.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut read = BufReader::new(write.try_clone().unwrap());
    // Many braces and every kind of byte.
    let mut alphabet: Vec<u8> = (0..=255).collect();
    alphabet.extend(std::iter::repeat_n(*b"{}", 60).flatten());
    let keys = random(3, &alphabet);
    let mut tagged = 0;
    for window in keys.chunks(200) {
        let mut text = Vec::new();
        for key in window {
            text.extend_from_slice(
                format!("*3\r\n$7\r\nCLUSTER\r\n$7\r\nKEYSLOT\r\n${}\r\n", key.len()).as_bytes(),
            );
            text.extend_from_slice(key);
            text.extend_from_slice(b"\r\n");
        }
        write.write_all(&text).unwrap();
        for key in window {
            let mut line = String::new();
            read.read_line(&mut line).unwrap();
            assert_eq!(line.trim_end(), format!(":{}", redis_slot(key)), "{key:?}");
            tagged += usize::from(key.contains(&b'{') && key.contains(&b'}'));
        }
    }
    assert!(tagged > KEYS / 2);
}
