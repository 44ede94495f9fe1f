//! From values to pixels, and the ticks between.

/// What stands before negative numbers for people.
pub const MINUS: &str = "\u{2212}";

/// How values are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scaling {
    /// Evenly.
    #[default]
    Linear,
    /// By their logarithms; values that are not positive are left out.
    Log,
}

/// One axis.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    scaling: Scaling,
    /// Lowest and highest value.
    pub values: (f64, f64),
    /// Their pixels.
    pub pixels: (f64, f64),
}

/// What ticks are written with.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticks {
    /// Value and label.
    pub marks: Vec<(f64, String)>,
    /// Power of ten that all labels are multiplied by; 0 for none.
    pub exponent: i32,
}

impl Ticks {
    /// An axis' label with the power of ten that the ticks leave out.
    pub fn label(&self, axis: &str) -> String {
        match self.exponent {
            0 => axis.to_owned(),
            power => format!("{axis} (×{})", power_of_ten(power)),
        }
    }
}

impl Scale {
    /// Covers `values`; a range without extent is widened.
    pub fn new(scaling: Scaling, (low, high): (f64, f64), pixels: (f64, f64)) -> Self {
        let values = match (scaling, high > low) {
            (_, true) => (low, high),
            (Scaling::Log, false) => (low / 2.0, low * 2.0),
            (Scaling::Linear, false) => {
                let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
                (low - room, low + room)
            }
        };
        Self {
            scaling,
            values,
            pixels,
        }
    }

    /// With a little room at both ends.
    pub fn padded(self) -> Self {
        let (low, high) = self.values;
        let values = match self.scaling {
            Scaling::Linear => (low - 0.04 * (high - low), high + 0.04 * (high - low)),
            Scaling::Log => {
                let room = (high / low).powf(0.04);
                (low / room, high * room)
            }
        };
        Self { values, ..self }
    }

    /// Whether the scale has a place for `value`.
    pub fn takes(scaling: Scaling, value: f64) -> bool {
        value.is_finite() && (scaling == Scaling::Linear || value > 0.0)
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let share = match self.scaling {
            Scaling::Linear => (value - low) / (high - low),
            Scaling::Log => (value / low).ln() / (high / low).ln(),
        };
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// About `wanted` round values.
    pub fn ticks(&self, wanted: usize) -> Ticks {
        let (low, high) = self.values;
        match self.scaling {
            Scaling::Log if high / low >= 10.0 => log_ticks(low, high, wanted),
            _ => linear_ticks(low, high, wanted),
        }
    }
}

fn linear_ticks(low: f64, high: f64, wanted: usize) -> Ticks {
    let step = round_step((high - low) / wanted.max(1) as f64);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    let largest = low.abs().max(high.abs());
    let magnitude = largest.log10().floor() as i32;
    let exponent = if (-2..5).contains(&magnitude) {
        0
    } else {
        magnitude
    };
    let unit = 10f64.powi(exponent);
    let digits = (-(step / unit).log10()).ceil().max(0.0) as usize;
    let label = |value: f64| format!("{:.digits$}", value / unit).replace('-', MINUS);
    let marks = (first..=last)
        .map(|k| k as f64 * step)
        .map(|value| (value, label(value)));
    Ticks {
        marks: marks.collect(),
        exponent,
    }
}

/// The next of 1, 2, 5, 10, 20, … that is not below `step`.
fn round_step(step: f64) -> f64 {
    let unit = 10f64.powf(step.log10().floor());
    let rounded = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * unit >= step * 0.999);
    rounded.unwrap_or(10.0) * unit
}

fn log_ticks(low: f64, high: f64, wanted: usize) -> Ticks {
    let (first, last) = (low.log10().ceil() as i32, high.log10().floor() as i32);
    let every = ((last - first + 1) as usize).div_ceil(wanted.max(1)).max(1);
    let marks = (first..=last)
        .step_by(every)
        .map(|power| (10f64.powi(power), power_of_ten(power)));
    Ticks {
        marks: marks.collect(),
        exponent: 0,
    }
}

/// `10⁻³`; powers that read better in full are.
pub fn power_of_ten(power: i32) -> String {
    match power {
        -2..=3 => format!("{}", 10f64.powi(power)),
        _ => format!("10{}", superscript(power)),
    }
}

fn superscript(power: i32) -> String {
    let raise = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => char::from_u32(u32::from('⁰') + u32::from(digit) - u32::from('0')).unwrap_or(digit),
    };
    power.to_string().chars().map(raise).collect()
}

/// A value for people: four significant digits, very large and small ones as `1.234×10⁻⁵`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let text = match magnitude {
        -3..4 => {
            let digits = (3 - magnitude).clamp(0, 6) as usize;
            let fixed = format!("{value:.digits$}");
            match fixed.contains('.') {
                true => fixed.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => fixed,
            }
        }
        4..7 => format!("{value:.0}"),
        _ => {
            let mantissa = format!("{:.3}", value / 10f64.powi(magnitude));
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}×10{}", superscript(magnitude))
        }
    };
    text.replace('-', MINUS)
}

/// A value with so many digits behind the point; what they round to zero has no sign.
pub fn fixed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
        true => text.trim_start_matches('-').to_owned(),
        false => text.replace('-', MINUS),
    }
}
