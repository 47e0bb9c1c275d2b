//! What a process of this machine uses, by Linux' /proc. Elsewhere nothing is known.

use std::time::Duration;

/// Processor ticks a second in /proc: fixed for user space by the kernel's ABI, whatever its own clock does.
const TICKS_A_SECOND: u64 = 100;
/// Bytes of a kB in /proc.
const KB: u64 = 1024;

/// What a process has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processor time, of all its threads, since it began.
    pub(crate) cpu: Duration,
    /// Memory that it holds now, in bytes.
    pub(crate) memory: u64,
}

/// Looks at a process.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    Some(Usage { cpu: cpu(&read("stat")?)?, memory: memory(&read("status")?)? })
}

/// User and system time of /proc/PID/stat. The name before them may contain anything, parentheses and blanks too.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
}

fn memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * KB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_does_not_hide_the_times() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu("no process"), None);
    }

    #[test]
    fn memory_is_what_is_resident() {
        assert_eq!(memory("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t  2048 kB\n"), Some(2048 * 1024));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_something() {
        assert!(usage(std::process::id()).is_some_and(|usage| usage.memory > 0));
        assert_eq!(usage(u32::MAX), None);
    }
}
