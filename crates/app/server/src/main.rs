//! The binary `mainstay`: sagas over HTTP, a command line, a console.

mod api;
mod cli;
mod config;
mod console;
mod demo;
mod error;
mod http;
mod participants;

fn main() -> std::process::ExitCode {
    cli::main()
}
