//! Runs the suites.

fn main() -> std::process::ExitCode {
    mainstay_bench::main()
}
