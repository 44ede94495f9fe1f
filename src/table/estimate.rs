//! Estimates with their uncertainty as text: as many digits as the uncertainty leaves meaning to.

/// Digits behind the point that show two digits of an error.
pub fn digits_for(error: f64) -> usize {
    match error > 0.0 {
        true => (1.0 - error.log10().floor()).clamp(0.0, 6.0) as usize,
        false => 3,
    }
}

/// `0.714 ± 0.021`; the mean alone where no error is known.
pub fn with_error(mean: f64, error: Option<f64>, digits: usize) -> String {
    match error {
        Some(error) => format!("{mean:.digits$} ± {error:.digits$}"),
        None => format!("{mean:.digits$}"),
    }
}

/// `0.52 [0.48, 0.56]`, of which all three can be `signed`.
pub fn with_interval(value: f64, (low, high): (f64, f64), digits: usize, signed: bool) -> String {
    match signed {
        true => format!("{value:+.digits$} [{low:+.digits$}, {high:+.digits$}]"),
        false => format!("{value:.digits$} [{low:.digits$}, {high:.digits$}]"),
    }
}

/// A share and its ends in per cent: `52.0 [48.1, 56.0]`.
pub fn percent(share: f64, (low, high): (f64, f64)) -> String {
    with_interval(100.0 * share, (100.0 * low, 100.0 * high), 1, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_follow_the_error() {
        for (error, digits) in [
            (0.0, 3),
            (12.0, 0),
            (0.5, 2),
            (0.021, 3),
            (0.000_3, 5),
            (1e-12, 6),
        ] {
            assert_eq!(digits_for(error), digits, "{error}");
        }
        assert_eq!(with_error(0.7143, Some(0.0211), 3), "0.714 ± 0.021");
        assert_eq!(with_interval(0.5, (-0.25, 1.0), 2, true), "+0.50 [-0.25, +1.00]");
        assert_eq!(percent(0.52, (0.4813, 0.56)), "52.0 [48.1, 56.0]");
    }
}
