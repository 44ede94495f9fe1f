use super::scale::{Scale, number, power_of_ten};
use super::smooth::{moving_mean, thin};
use super::*;

fn labels(range: (f64, f64), scaling: Scaling) -> Vec<String> {
    let ticks = Scale::new(scaling, range, (0.0, 100.0)).ticks(5);
    ticks.marks.into_iter().map(|(_, label)| label).collect()
}

#[test]
fn ticks_are_round_numbers_inside_the_range() {
    assert_eq!(
        labels((0.0, 200.0), Scaling::Linear),
        ["0", "50", "100", "150", "200"]
    );
    assert_eq!(
        labels((0.31, 0.72), Scaling::Linear),
        ["0.4", "0.5", "0.6", "0.7"]
    );
    assert_eq!(labels((-0.3, 0.3), Scaling::Linear), ["−0.2", "0.0", "0.2"]);
    assert_eq!(
        labels((0.01, 100.0), Scaling::Log),
        ["0.01", "0.1", "1", "10", "100"]
    );
    // Less than a power of ten: as on a linear axis.
    assert_eq!(labels((0.5, 2.0), Scaling::Log), ["0.5", "1.0", "1.5", "2.0"]);
    // A single value has a range all the same.
    assert!(!labels((3.0, 3.0), Scaling::Linear).is_empty());
}

#[test]
fn small_values_share_a_power_of_ten() {
    let ticks = Scale::new(Scaling::Linear, (0.0, 1.8e-4), (0.0, 1.0)).ticks(5);
    assert_eq!(ticks.exponent, -4);
    let labels: Vec<&str> = ticks.marks.iter().map(|(_, label)| label.as_str()).collect();
    assert_eq!(labels, ["0.0", "0.5", "1.0", "1.5"]);
    assert_eq!(power_of_ten(-4), "10⁻⁴");
}

#[test]
fn numbers_keep_four_significant_digits() {
    for (value, text) in [
        (0.0, "0"),
        (0.748_062, "0.7481"),
        (-0.5, "−0.5"),
        (1160.0, "1160"),
        (20.191_059, "20.19"),
        (123_456.7, "123457"),
        (1.847_1e-4, "1.847×10⁻⁴"),
        (-2e9, "−2×10⁹"),
    ] {
        assert_eq!(number(value), text);
    }
}

#[test]
fn numbers_of_a_column_keep_their_digits() {
    for (value, digits, text) in [
        (19.0, 2, "19.00"),
        (-0.0331, 3, "−0.033"),
        (-1.2e-5, 3, "0.000"),
        (0.0, 0, "0"),
        (-20.4, 0, "−20"),
    ] {
        assert_eq!(fixed(value, digits), text);
    }
}

#[test]
fn intervals_say_the_power_of_ten_that_their_axis_leaves_out() {
    let plot = |value: f64| Intervals {
        title: "difference".into(),
        x: "mean".into(),
        rows: vec![IntervalRow {
            label: "tuned".into(),
            value,
            interval: Some((-0.5 * value, 2.0 * value)),
            colour: 0,
        }],
        reference: Some(0.0),
    };
    assert!(plot(0.8e-3).draw().unwrap().inline().contains("mean (×10⁻³)"));
    assert!(!plot(0.8).draw().unwrap().inline().contains('×'));
}

#[test]
fn a_moving_mean_keeps_straight_lines_inside_and_takes_what_there_is_at_the_ends() {
    let line: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i), f64::from(i))).collect();
    let mean = moving_mean(&line, 5);
    assert_eq!(mean[2..7], line[2..7]);
    assert_eq!((mean[0].1, mean[8].1), (1.0, 7.0));
}

#[test]
fn thinning_keeps_the_extremes() {
    let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 0.0)).collect();
    points[12_345].1 = 7.0;
    points[54_321].1 = -3.0;
    let few = thin(points);
    assert!(few.len() <= 400, "{}", few.len());
    assert!(few.contains(&(12_345.0, 7.0)) && few.contains(&(54_321.0, -3.0)));
    assert!(few.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

fn chart(points: Vec<(f64, f64)>) -> Chart {
    Chart {
        title: "A <b>title</b>".into(),
        series: vec![Series {
            label: "x & y".into(),
            points,
            colour: 9,
            dash: 1,
            noisy: false,
        }],
        ..Chart::default()
    }
}

#[test]
fn what_cannot_be_drawn_is_left_out() {
    assert!(chart(vec![]).draw().is_none());
    assert!(
        chart(vec![(1.0, f64::NAN), (2.0, f64::INFINITY)])
            .draw()
            .is_none()
    );
    let figure = chart(vec![(1.0, 0.5), (2.0, f64::NAN), (3.0, 0.25)])
        .draw()
        .unwrap();
    assert!(!figure.inline().contains("NaN"));
    assert_eq!(figure.description, "x & y: 0.5 at 1, 0.25 at 3.");
}

#[test]
fn a_page_gets_names_of_colours_and_a_file_gets_the_colours() {
    let figure = chart(vec![(0.0, 1.0), (1.0, 2.0)]).draw().unwrap();
    let (inline, file) = (figure.inline(), figure.file());
    assert!(
        !inline.contains('#') && inline.contains(r#"class="stroke1""#),
        "{inline}"
    );
    assert!(inline.contains("A &lt;b&gt;title&lt;/b&gt;") && !inline.contains("<b>"));
    assert!(file.contains(".plot .stroke1{stroke:#d55e00}") && !file.contains("var("));
    assert!(file.starts_with("<?xml") && file.contains("xmlns=\"http://www.w3.org/2000/svg\""));
}

#[test]
fn a_heat_map_shades_by_value() {
    let map = |hue| HeatMap {
        title: "map".into(),
        x: "step".into(),
        columns: vec!["1".into(), "2".into()],
        rows: vec![
            ("a".into(), vec![Some(0.0), Some(1.0)]),
            ("b".into(), vec![None, Some(0.5)]),
        ],
        hue,
    };
    let plain = map(Hue::Sequential).draw().unwrap().inline();
    for (title, opacity) in [
        ("a, step 1: 0", "0.06"),
        ("a, step 2: 1", "1.00"),
        ("b, step 2: 0.5", "0.53"),
    ] {
        let cell = format!(r#"fill-opacity="{opacity}"><title>{title}</title>"#);
        assert!(plain.contains(&cell), "{cell} in {plain}");
    }
    assert!(!plain.contains("b, step 1"), "what is not known has no cell");
    let around = map(Hue::Around(0.5)).draw().unwrap().inline();
    assert!(around.contains("class=\"low\"") && around.contains("class=\"high\""));
}

#[test]
fn both_themes_define_every_colour_that_drawings_use() {
    let names = |dark| -> Vec<String> {
        let text = variables(dark);
        text.split_terminator(';')
            .filter_map(|declaration| Some(declaration.split_once(':')?.0.to_owned()))
            .collect()
    };
    assert_eq!(names(false), names(true));
    let rules = page_rules();
    for used in rules
        .split("var(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        assert!(names(false).iter().any(|name| name == used), "{used}");
    }
}
