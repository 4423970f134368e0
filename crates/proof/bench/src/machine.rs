//! Where and when a figure was measured.

use crate::Options;

/// One paragraph: date, machine, command.
pub(crate) fn conditions(suite: &str, options: &Options) -> String {
    let pieces = if options.pieces.is_some() { " --pieces DIR" } else { "" };
    let (seconds, repeat) = (options.seconds, options.repeat);
    let command = format!("cargo xtask bench {suite} --seconds {seconds} --repeat {repeat}{pieces}");
    format!("{}; {}; `{command}`.", minute(), describe())
}

/// Now.
pub(crate) fn minute() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// How busy the machine is, over the last minute.
pub(crate) fn load() -> String {
    read("/proc/loadavg").split_whitespace().next().unwrap_or("?").to_owned()
}

fn describe() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = read("/proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = load();
    format!(
        "{cores} {} of {model}, {} GiB, Linux {}, load {load} at the end",
        if cores == 1 { "core" } else { "cores" },
        memory / 1024 / 1024,
        kernel.trim()
    )
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}
