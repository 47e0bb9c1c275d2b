//! The machine: processor, cores, memory, disk, open files, clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chassis::units::ByteSize;

use super::finding::Finding;

/// Free space below which logs and models soon have no place.
const DISK_WANTED: ByteSize = ByteSize::gib(2);
const DISK_NEEDED: ByteSize = ByteSize::mib(200);
/// What the processes need beside their models.
const MEMORY_BESIDE_MODELS: ByteSize = ByteSize::mib(512);
/// Each connection and each log is an open file; the gateway takes thousands of connections.
const OPEN_FILES_WANTED: u64 = 4096;
const OPEN_FILES_NEEDED: u64 = 256;
/// No clock that is right is before this: 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// What the processor can, by the flags of /proc/cpuinfo.
pub(crate) fn judge_cpu(cpuinfo: &str) -> Finding {
    const CHECK: &str = "processor";
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let Some(flags) = value("flags").or_else(|| value("Features")) else {
        let help = "nothing need be done; numbers of `tamis bench load` tell how fast it is";
        return Finding::warn(CHECK, model, "its features cannot be read here").help(help);
    };
    let has = |flag: &str| flags.split_whitespace().any(|known| known == flag);
    if has("asimd") {
        return Finding::ok(CHECK, model, "NEON");
    }
    let known = [
        ("avx2", "AVX2"),
        ("fma", "FMA"),
        ("avx512f", "AVX-512 F"),
        ("avx512_bf16", "AVX-512 BF16"),
        ("avx512_vnni", "AVX-512 VNNI"),
        ("avx_vnni", "AVX VNNI"),
    ];
    let names: Vec<_> = known.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name).collect();
    if !has("avx2") || !has("fma") {
        let what = format!("no AVX2 with FMA ({}); models run several times slower", or_none(&names));
        return Finding::warn(CHECK, model, what)
            .help("use a processor from 2015 or later, or a VM that passes them on");
    }
    Finding::ok(CHECK, model, names.join(", "))
}

/// Cores, and what a container lets this process have of them, by cgroup's cpu.max.
pub(crate) fn judge_cores(cores: usize, cpu_max: Option<&str>) -> Finding {
    const CHECK: &str = "cores";
    let subject = format!("{cores}");
    let quota = cpu_max.and_then(|text| {
        let mut fields = text.split_whitespace().map(str::parse::<f64>);
        let (quota, period) = (fields.next()?.ok()?, fields.next()?.ok()?);
        (period > 0.0).then_some(quota / period)
    });
    match quota {
        Some(quota) if quota < 1.0 => {
            let what = format!("the container may use {quota:.2} of a core: every call is stopped again and again");
            Finding::warn(CHECK, subject, what).help("give the container one core or more, as in `--cpus 2`")
        }
        Some(quota) => Finding::ok(CHECK, subject, format!("the container may use {quota:.2}")),
        None => Finding::ok(CHECK, subject, "without a quota"),
    }
}

/// Memory that can be had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) available: ByteSize,
    /// What the container may use, if it is bounded.
    pub(crate) limit: Option<ByteSize>,
}

impl Memory {
    /// By /proc/meminfo, and cgroup's memory.max and memory.current.
    pub(crate) fn parse(meminfo: &str, memory_max: Option<&str>, memory_current: Option<&str>) -> Option<Self> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let available = ByteSize::kib(line.split_whitespace().next()?.parse().ok()?);
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok());
        let limit = number(memory_max);
        let left = limit.map(|limit| limit.saturating_sub(number(memory_current).unwrap_or(0)));
        let available = left.map_or(available, |left| available.min(ByteSize(left)));
        Some(Self { available, limit: limit.map(ByteSize) })
    }
}

/// Memory against the models; those of a mesh that runs have theirs already.
pub(crate) fn judge_memory(memory: Option<Memory>, models: ByteSize, runs: bool) -> Finding {
    const CHECK: &str = "memory";
    let Some(memory) = memory else {
        let help = format!("see that {models} for the models and {MEMORY_BESIDE_MODELS} beside them are free");
        return Finding::warn(CHECK, "-", "it cannot be read here").help(help);
    };
    let limit = memory.limit.map_or_else(String::new, |limit| format!(", {limit} for the container"));
    let subject = format!("{} available{limit}", memory.available);
    let needed = if runs { MEMORY_BESIDE_MODELS } else { ByteSize(models.as_u64() + MEMORY_BESIDE_MODELS.as_u64()) };
    if memory.available < needed {
        let what = format!("the models are {models}, and {needed} should be free");
        return Finding::warn(CHECK, subject, what).help("end something else, or leave a service out with --replicas");
    }
    Finding::ok(CHECK, subject, format!("the models are {models}"))
}

/// Space on the data directory's disk.
pub(crate) fn judge_disk(place: &str, free: Option<ByteSize>) -> Finding {
    const CHECK: &str = "disk";
    let help = "remove something, or name a data directory on another disk with --data-dir";
    match free {
        None => Finding::warn(CHECK, place, "its free space cannot be read").help("see that there are some GB"),
        Some(free) if free < DISK_NEEDED => Finding::fail(CHECK, place, format!("{free} free")).help(help),
        Some(free) if free < DISK_WANTED => Finding::warn(CHECK, place, format!("{free} free")).help(help),
        Some(free) => Finding::ok(CHECK, place, format!("{free} free")),
    }
}

/// The limit of open files, by /proc/self/limits.
pub(crate) fn judge_open_files(limits: &str) -> Finding {
    const CHECK: &str = "open files";
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let limit = match soft {
        Some("unlimited") => u64::MAX,
        soft => match soft.and_then(|soft| soft.parse().ok()) {
            Some(limit) => limit,
            None => return Finding::warn(CHECK, "-", "the limit cannot be read").help("see `ulimit -n`"),
        },
    };
    let (subject, help) =
        (format!("{limit}"), format!("raise it with `ulimit -n {OPEN_FILES_WANTED}` before `tamis up`"));
    if limit < OPEN_FILES_NEEDED {
        return Finding::fail(CHECK, subject, "too few for the mesh's own files and connections").help(help);
    }
    if limit < OPEN_FILES_WANTED {
        return Finding::ok(CHECK, subject, "enough for this machine; a gateway with many clients wants more");
    }
    let subject = if limit == u64::MAX { "unlimited".to_owned() } else { subject };
    Finding::ok(CHECK, subject, "one for each connection")
}

/// The clock; a certificate that begins in the future is a finding of its own.
pub(crate) fn judge_clock(now: SystemTime, newest_file: Option<SystemTime>) -> Finding {
    const CHECK: &str = "clock";
    let subject = humantime::format_rfc3339_seconds(now).to_string();
    let help = "set it, best by NTP: with a wrong clock certificates are refused";
    if now < UNIX_EPOCH + EPOCH {
        return Finding::fail(CHECK, subject, "it is years behind").help(help);
    }
    match newest_file.and_then(|file| file.duration_since(now).ok()) {
        Some(behind) if behind > Duration::from_secs(60) => {
            let behind = humantime::format_duration(Duration::from_secs(behind.as_secs()));
            Finding::fail(CHECK, subject, format!("it is at least {behind} behind the files of the mesh")).help(help)
        }
        _ => Finding::ok(CHECK, subject, "plausible"),
    }
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none of the others".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    #[track_caller]
    fn check(finding: &Finding, mark: Mark, part: &str) {
        assert_eq!(finding.mark, mark, "{finding:?}");
        assert!(mark == Mark::Ok || finding.help.is_some(), "{finding:?}");
        assert!(format!("{} {}", finding.subject, finding.what).contains(part), "{finding:?}");
    }

    #[test]
    fn the_features_of_a_processor_are_named() {
        let cpu = |flags: &str| judge_cpu(&format!("processor\t: 0\nmodel name\t: Fast\nflags\t\t: fpu {flags}\n"));
        let all = "avx2 fma avx512f avx512_vnni avx512_bf16";
        check(&cpu(all), Mark::Ok, "AVX2, FMA, AVX-512 F, AVX-512 BF16, AVX-512 VNNI");
        check(&cpu("avx2 fma"), Mark::Ok, "AVX2, FMA");
        check(&cpu("avx2"), Mark::Warn, "no AVX2 with FMA");
        check(&judge_cpu("Features\t: fp asimd\n"), Mark::Ok, "NEON");
        check(&judge_cpu(""), Mark::Warn, "cannot be read");
    }

    #[test]
    fn a_quota_below_a_core_is_a_warning() {
        check(&judge_cores(8, Some("50000 100000\n")), Mark::Warn, "0.50 of a core");
        check(&judge_cores(8, Some("150000 100000")), Mark::Ok, "1.50");
        check(&judge_cores(8, Some("max 100000")), Mark::Ok, "without a quota");
        check(&judge_cores(2, None), Mark::Ok, "2 without");
    }

    #[test]
    fn memory_is_held_against_the_models() {
        let meminfo = "MemTotal: 9000000 kB\nMemAvailable:    4194304 kB\n";
        let memory = |max, current| Memory::parse(meminfo, max, current);
        let models = ByteSize::mib(300);
        check(&judge_memory(memory(None, None), models, false), Mark::Ok, "4.0 GiB available");
        let tight = memory(Some("734003200\n"), Some("209715200"));
        check(&judge_memory(tight, models, false), Mark::Warn, "812");
        let bounded = memory(Some("1073741824"), Some("0"));
        check(&judge_memory(bounded, models, false), Mark::Ok, "1.0 GiB for the container");
        check(&judge_memory(memory(Some("max"), None), models, true), Mark::Ok, "300");
        check(&judge_memory(None, models, false), Mark::Warn, "cannot be read");
    }

    #[test]
    fn a_full_disk_is_a_failure_and_a_nearly_full_one_a_warning() {
        check(&judge_disk("/data", Some(ByteSize::mib(100))), Mark::Fail, "100.0 MiB free");
        check(&judge_disk("/data", Some(ByteSize::gib(1))), Mark::Warn, "free");
        check(&judge_disk("/data", Some(ByteSize::gib(9))), Mark::Ok, "free");
        check(&judge_disk("/data", None), Mark::Warn, "cannot");
    }

    #[test]
    fn few_open_files_are_told() {
        let limits = |soft: &str| format!("Limit  Soft  Hard  Units\nMax open files            {soft}   4096  files\n");
        check(&judge_open_files(&limits("64")), Mark::Fail, "64");
        check(&judge_open_files(&limits("1024")), Mark::Ok, "1024");
        check(&judge_open_files(&limits("unlimited")), Mark::Ok, "unlimited");
        check(&judge_open_files(""), Mark::Warn, "cannot");
    }

    #[test]
    fn a_clock_that_went_back_is_told() {
        let now = UNIX_EPOCH + EPOCH + Duration::from_secs(1000);
        check(&judge_clock(now, None), Mark::Ok, "plausible");
        check(&judge_clock(now, Some(now + Duration::from_secs(30))), Mark::Ok, "plausible");
        check(&judge_clock(now, Some(now + Duration::from_secs(3600))), Mark::Fail, "1h behind");
        check(&judge_clock(UNIX_EPOCH, None), Mark::Fail, "years behind");
    }
}
