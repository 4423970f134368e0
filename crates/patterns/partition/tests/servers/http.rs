//! As much HTTP as it takes to ask one question 20,000 times over one connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Requests sent before their answers are read.
const WINDOW: usize = 50;

/// The value of `header` in the answer to each `GET path?k=KEY`, in order.
pub(crate) fn ask(address: SocketAddr, path: &str, keys: &[Vec<u8>], header: &str) -> Vec<String> {
    let mut write = TcpStream::connect(address).unwrap();
    // A server that says nothing fails the test.
    write.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut read = BufReader::new(write.try_clone().unwrap());
    let mut answers = Vec::with_capacity(keys.len());
    for window in keys.chunks(WINDOW) {
        let mut text = Vec::new();
        for key in window {
            text.extend_from_slice(format!("GET {path}?k=").as_bytes());
            text.extend_from_slice(key);
            text.extend_from_slice(b" HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        write.write_all(&text).unwrap();
        answers.extend(window.iter().map(|_| answer(&mut read, header)));
    }
    answers
}

fn answer(read: &mut BufReader<TcpStream>, header: &str) -> String {
    let (mut value, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert!(read.read_line(&mut line).unwrap() > 0, "the server closed the connection");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, rest)) = line.split_once(':') {
            if name.eq_ignore_ascii_case(header) {
                value = rest.trim().to_owned();
            } else if name.eq_ignore_ascii_case("content-length") {
                length = rest.trim().parse().unwrap();
            }
        }
    }
    std::io::copy(&mut std::io::Read::take(read, length), &mut std::io::sink()).unwrap();
    value
}
