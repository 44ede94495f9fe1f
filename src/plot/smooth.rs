//! Noisy curves made readable: a moving mean, and no more points than a drawing can show.

/// Points that a curve is drawn with at most; about one per pixel.
const POINTS: usize = 400;

/// Points that the moving mean of a curve of `points` points covers: a twentieth, and 1 for short ones.
pub fn window(points: usize) -> usize {
    match points {
        0..40 => 1,
        _ => points / 20 + 1 - points / 20 % 2,
    }
}

/// The mean of up to `window` values around each point; towards the ends, of those there are.
pub fn moving_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let mut sums = Vec::with_capacity(points.len() + 1);
    sums.push(0.0);
    for (i, (_, y)) in points.iter().enumerate() {
        sums.push(sums[i] + y);
    }
    let mean = |i: usize| {
        let reach = window / 2;
        let (first, end) = (i.saturating_sub(reach), (i + reach + 1).min(points.len()));
        (sums[end] - sums[first]) / (end - first) as f64
    };
    points
        .iter()
        .enumerate()
        .map(|(i, (x, _))| (*x, mean(i)))
        .collect()
}

/// Few enough points, the lowest and the highest of each stretch among them.
pub fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points;
    }
    let stretch = points.len().div_ceil(POINTS / 2);
    let extremes = |part: &[(f64, f64)]| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = part.iter().min_by(by_value).copied();
        let high = part.iter().max_by(by_value).copied();
        let mut both: Vec<_> = low.into_iter().chain(high).collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        both.dedup();
        both
    };
    points.chunks(stretch).flat_map(extremes).collect()
}
