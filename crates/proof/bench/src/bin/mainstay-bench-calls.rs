//! Measures our guarded calls, as the rivals' program measures theirs.

fn main() -> std::process::ExitCode {
    mainstay_bench::calls()
}
