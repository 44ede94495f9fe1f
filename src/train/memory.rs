//! How much memory this process uses, where the system tells (Linux).

/// Largest resident set so far, in MB.
pub fn peak_rss_mb() -> Option<f64> {
    status_mb("VmHWM:")
}

/// Resident memory that is not backed by a file, in MB.
pub fn anonymous_mb() -> Option<f64> {
    status_mb("RssAnon:")
}

fn status_mb(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(key))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_large_allocation_raises_the_peak() {
        let before = super::peak_rss_mb().unwrap();
        let block = vec![1u8; 64_000_000 + (before * 1e6) as usize];
        assert!(
            super::peak_rss_mb().unwrap() >= before + 60.0,
            "{} bytes",
            block.len()
        );
    }
}
