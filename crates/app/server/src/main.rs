//! The binary `mainstay`: sagas over HTTP, a command line, a console.

mod api;
mod cli;
mod config;
mod console;
mod demo;
mod durations;
mod error;
mod feeds;
mod files;
mod fleet;
mod hold;
mod http;
mod leases;
mod nearly;
mod participants;
mod process;
mod redact;

fn main() -> std::process::ExitCode {
    cli::main()
}
