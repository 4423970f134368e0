//! Compiles the messages in pure Rust: nobody needs `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let messages = protox::compile(["proto/etcd.proto", "proto/record.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(messages)?;
    Ok(())
}
